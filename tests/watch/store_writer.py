"""Write events and corrections as fast as possible and say each number once it is acknowledged, until killed."""

from __future__ import annotations

import itertools
import sys

from dpm_edge.watch.events import Event
from dpm_edge.watch.records import Correction
from dpm_edge.watch.store import WatchStore

if __name__ == "__main__":
    path, first = sys.argv[1], int(sys.argv[2])
    with WatchStore(path) as store:
        for number in itertools.count(first):
            event = Event(
                kind="entered", rule="r", camera="door", wall=float(number), seconds=0.0, id=f"event-{number}"
            )
            store.add_events([event])
            store.add_correction(Correction(kind="name", wall=0.0, body={"identity": f"P{number}", "name": "x"}), [])
            print(number, flush=True)
