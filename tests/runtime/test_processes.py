"""Forks and exits: what an application sees that forks after it opened an engine, or ends while one computes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_engine

TESTS = Path(__file__).resolve().parents[1]
OPEN = """
    import os, sys, threading, time, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, {tests!r})
    import numpy as np
    import tiny_engine
    from dpm_edge import Engine
    from dpm_edge.errors import EngineError
    from dpm_edge.runtime.batcher import Batcher
    engine = Engine.load({folder!r}, threads=1)
    crops = tiny_engine.people(4)
    alone = engine.embed(crops[:1]).features
    engine.submit(crops).result()
"""
FORK = """
    batcher = Batcher(engine)
    batcher.submit(crops[0]).result()
    pid = os.fork()
    if not pid:
        signal = __import__("signal")
        signal.alarm(20)
        {child}
    else:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
CHILDREN = {
    "embeds": "np.testing.assert_array_equal(engine.embed(crops[:1]).features, alone); os._exit(7)",
    "submits": "np.testing.assert_array_equal(engine.submit(crops[:1]).result().features, alone); os._exit(7)",
    "batches": "np.testing.assert_array_equal(batcher.submit(crops[0]).result().features, alone); os._exit(7)",
    "closes": "batcher.close(); engine.close(); os._exit(7)",
    "exits": "sys.exit(7)",
}
END = {
    "a daemon thread embeds": """
        def camera():
            while True:
                engine.embed(crops * 8)
        threading.Thread(target=camera, daemon=True).start()
        time.sleep(0.1)
    """,
    "work is submitted": "tickets = [engine.submit(crops * 20) for _ in range(40)]",
    "a batcher is full": """
        batcher = Batcher(engine)
        for _ in range(50):
            batcher.submit(crops[0])
    """,
    "a daemon thread submits": """
        def camera():
            while True:
                engine.submit(crops * 8)
        threading.Thread(target=camera, daemon=True).start()
        time.sleep(0.1)
    """,
}


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(OPEN.format(tests=str(TESTS), folder=str(folder))) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("child", CHILDREN)
def test_a_forked_child_goes_on(child: str, pristine_engine: Path) -> None:
    result = run(pristine_engine, FORK.format(child=CHILDREN[child]))
    assert result.stdout.split() == ["7"], result.stdout + result.stderr


def test_a_ticket_of_the_parent_is_refused_in_a_forked_child(tmp_path: Path) -> None:
    folder = tiny_engine.write_engine(tmp_path / "engine")
    script = """
        work = engine.submit(crops * 200)
        pid = os.fork()
        if not pid:
            try:
                work.result(10)
            except EngineError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        assert len(work.result(60)) == 800
    """
    result = run(folder, script)
    assert result.returncode == 0 and "submit again here" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("case", END)
def test_the_applications_exit_code_survives_work_under_way(case: str, pristine_engine: Path) -> None:
    for _ in range(2):
        result = run(pristine_engine, textwrap.dedent(END[case]) + "\nraise SystemExit(3)\n")
        assert (result.returncode, result.stderr) == (3, "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell a thread's cores")
def test_a_thread_that_calls_an_openvino_engine_may_use_every_core(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip(reason="there is one core here")
    folder = tiny_engine.write_engine(tmp_path / "engine", "openvino")
    script = """
        seen, ended = [], threading.Event()
        def watch():
            while not ended.is_set():
                seen.append(len(os.sched_getaffinity(os.getpid())))
                time.sleep(0.0002)
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(200):
            engine.embed(crops * 16)
        ended.set()
        watcher.join()
        print(min(seen), len(seen) > 20, flush=True)
    """
    result = run(folder, script)
    assert result.stdout.split() == [str(len(os.sched_getaffinity(0))), "True"], result.stdout + result.stderr
