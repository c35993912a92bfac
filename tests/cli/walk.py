"""Run command lines one after another in one situation, each in a forked process:  python walk.py CASES SITUATION FD.

The situation (a closed stderr, an encoding, no HOME) is that of this process from its start, so that Python and OpenCV
begin in it; forks only save the time of importing everything for each command. CASES is a JSON file of command → its
arguments; command → [exit code, stdout, stderr] goes as JSON to the file descriptor FD.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import pwd
import resource
import selectors
import signal
import sys

CAPSET = {"x86_64": 126, "aarch64": 91}
"""Machine → Linux's number of the system call `capset`."""


def collect(pipes: dict[int, int], pid: int) -> list[object]:
    """Read a child's stdout and stderr to their ends, then its exit code."""
    said: dict[int, bytes] = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as ready:
        for number, pipe in pipes.items():
            ready.register(pipe, selectors.EVENT_READ, number)
        while ready.get_map():
            for key, _ in ready.select():
                if data := os.read(key.fd, 65536):
                    said[key.data] += data
                else:
                    ready.unregister(key.fd)
                    os.close(key.fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [code, *(said.get(number, b"").decode("utf-8", "replace") for number in (1, 2))]


def main() -> None:
    """Fork a process for each case; the child leaves this loop and is the command."""
    closed = [number for number in (1, 2) if not is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # keeps the number from the pipes below
    with open(sys.argv[1], encoding="utf-8") as file:
        cases: dict[str, list[str]] = json.load(file)
    situation, answer = sys.argv[2], int(sys.argv[3])
    own = {"full stdout": [1], "broken pipe": [1]}.get(situation, closed)  # left as this process has them

    sys.modules["torch"] = None  # type: ignore[assignment]  # its import takes longer than all commands; as if missing
    import cv2  # noqa: F401
    import fastapi  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import qdrant_edge  # noqa: F401
    import uvicorn  # noqa: F401

    from dpm_edge import bench, build, demo, gallery, runtime, serve, watch  # noqa: F401
    from dpm_edge.cli import commands
    from dpm_edge.telemetry import import_openvino

    import_openvino("the walk")
    gc.freeze()  # or each child's collector, at its end, touches and so copies all that was imported

    results = {}
    for name in cases:
        pipes = {number: os.pipe() for number in (1, 2) if number not in own}
        pid = os.fork()
        if pid == 0:
            for number, (_, end) in pipes.items():
                os.dup2(end, number)
            for number in closed:
                os.close(number)
            break
        for _, end in pipes.values():
            os.close(end)
        results[name] = collect({number: start for number, (start, _) in pipes.items()}, pid)
    else:
        os.write(answer, json.dumps(results).encode()) if len(results) == len(cases) else None
        return
    if situation == "no room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if situation == "no name":
        pwd.getpwuid = lambda number: (_ for _ in ()).throw(KeyError(number))  # as for a user id that nobody has
    if situation == "no rights":
        respect_rights()
    if situation == "interrupt":
        interrupt_at_the_command()
    commands.main(cases[name], prog_name="dpm-edge")


def is_open(number: int) -> bool:
    """Whether a file descriptor is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def respect_rights() -> None:
    """Let root be refused like anybody else: give up the capabilities that overrule the rights of files.

    Another user id would do it too, but may not be allowed to read the Python that runs this.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    overrule = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    all_but = 0xFFFFFFFF & ~overrule
    data = (ctypes.c_uint32 * 6)(all_but, all_but, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    held = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(CAPSET[platform.machine()] - 1, header, held)  # capget
    for at in (0, 1, 3, 4):
        data[at] &= held[at]
    if libc.syscall(CAPSET[platform.machine()], header, data):
        raise OSError(ctypes.get_errno(), "capset")


def interrupt_at_the_command() -> None:
    """Press Ctrl-C at the moment when a command has its arguments and begins."""
    import click

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    real = click.Context.invoke

    def invoke(self: click.Context, callback: object, *args: object, **more: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, callback, *args, **more)

    click.Context.invoke = invoke  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
