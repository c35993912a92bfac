"""A camera that calls its receiver (RTSP ANNOUNCE) and sends pictures that grow brighter, 20 a second by its stamps.

python rtsp_sender.py ADDRESS HELD SECONDS

Picture HELD leaves so many seconds late, and those after it as soon as they are due and it has left.
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction

import av
import numpy as np

RATE, PICTURES = 20, 40

if __name__ == "__main__":
    address, held, late = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    while True:
        out = av.open(address, "w", format="rtsp", options={"rtsp_transport": "tcp"})
        stream = out.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, "yuv420p", 1
        try:
            out.start_encoding()
            break
        except ConnectionRefusedError:  # nobody listens yet
            time.sleep(0.1)
    begin = time.monotonic()
    for number in range(PICTURES):
        due = begin + number / RATE + (late if number == held else 0.0)
        time.sleep(max(0.0, due - time.monotonic()))
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, np.uint8), format="bgr24")
        frame.pts, frame.time_base = number, Fraction(1, RATE)
        for packet in stream.encode(frame):
            out.mux(packet)
    for packet in stream.encode(None):
        out.mux(packet)
    out.close()
