"""Who may import whom, and what `import` may bring along: each room in a process of its own, the others blocked."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "open_clip",
    "numba",
    "pyarrow",
    "matplotlib",
    "cuda",
    "pycuda",
)


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT.parent, timeout=120
    )


def without(blocked: tuple[str, ...], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script where importing any of `blocked` fails."""
    block = f"""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {blocked!r} or name in {blocked!r}:
                    raise ImportError(f"{{name}} is blocked")
        sys.meta_path.insert(0, Blocked())
    """
    return python(textwrap.dedent(block) + textwrap.dedent(script))


@pytest.mark.parametrize(
    "room",
    [
        "dpm_edge",
        "dpm_edge.runtime",
        "dpm_edge.gallery",
        "dpm_edge.cli",
        "dpm_edge.demo.samples",
        "dpm_edge.layouts",
        "dpm_edge.layouts",
        "dpm_edge.labels",
        "dpm_edge.interop.deepstream",
        "dpm_edge.interop.triton",
        "dpm_edge.interop.triton_model",
        "dpm_edge.bench.measure",
        "dpm_edge.bench.plot",
        "dpm_edge.bench.rivals",
        "dpm_edge.watch.watch_site",
        "dpm_edge.cli.watch",
        "dpm_edge.watch.detector",
        "dpm_edge.watch.tracker",
        "dpm_edge.watch.identities",
        "dpm_edge.watch.make_detector",
        "dpm_edge.web.access",
        "dpm_edge.web.listening",
        "dpm_edge.cli.serve",
        "dpm_edge.serve.app",
    ],
)
def test_light_rooms_import_with_every_heavy_library_blocked(room: str) -> None:
    others = tuple(f"dpm_edge.{name}" for name in ("model", "build", "train", "kernels"))
    result = without(HEAVY + others, f"import {room}")
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_there_with_every_heavy_library_blocked() -> None:
    result = without(HEAVY, "from dpm_edge import Embeddings, Engine, Gallery, Matches")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["--help", "embed --help", "doctor", "train --help"])
def test_commands_that_need_no_library_run_without(command: str) -> None:
    result = without(HEAVY, f"from dpm_edge.cli import main; main({command.split()!r})")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", ["from dpm_edge import Engine, Gallery, Embeddings", "import dpm_edge.cli.embed"])
def test_opencv_is_not_needed_before_a_picture_is_read(script: str) -> None:
    result = without(("cv2",), script)
    assert result.returncode == 0, result.stderr


def test_a_missing_opencv_names_the_command_that_installs_it() -> None:
    result = without(("cv2",), "from dpm_edge.images import decode_image; decode_image(b'x')")
    assert "MissingLibrary" in result.stderr and "pip install opencv-python-headless" in result.stderr


def test_what_is_left_of_an_overwritten_opencv_is_named(tmp_path: Path) -> None:
    """`pip uninstall opencv-python-headless` beside opencv-python leaves a folder cv2 without a library."""
    (tmp_path / "cv2").mkdir()
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules.pop('cv2', None); import dpm_edge.opencv"
    (tmp_path / "cv2" / "__init__.py").write_text("")
    result = python(script)
    assert "MissingLibrary" in result.stderr and "no working OpenCV" in result.stderr


def test_engine_without_its_library_names_the_extra(tmp_path: Path) -> None:
    import tiny_engine

    folder = tiny_engine.write_engine(tmp_path / "engine")
    result = without(("onnxruntime",), f"from dpm_edge import Engine; Engine.load({str(folder)!r})")
    assert "MissingLibrary" in result.stderr and "dpm-edge[engines]" in result.stderr


def test_an_embedding_process_holds_only_its_engines_library(tmp_path: Path) -> None:
    import tiny_engine

    folder = tiny_engine.write_engine(tmp_path / "engine")
    script = f"""
        import sys
        import numpy as np
        from dpm_edge import Engine, Gallery
        with Engine.load({str(folder)!r}) as engine:
            rows = engine.embed(np.zeros((2, 20, 10, 3), np.uint8))
            gallery = Gallery.for_engine(engine)
            gallery.add(rows, people=["a", "b"])
            gallery.search(rows)
    """
    allowed = ("onnxruntime", "numba")
    result = without(tuple(name for name in HEAVY if name not in allowed), script)
    assert result.returncode == 0, result.stderr


def test_a_serving_process_holds_only_its_engines_library(tmp_path: Path) -> None:
    import tiny_engine

    pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
    pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")
    folder = tiny_engine.write_engine(tmp_path / "engine")
    script = f"""
        import numpy as np, cv2
        from starlette.testclient import TestClient
        from dpm_edge import Engine, Gallery
        from dpm_edge.serve.app import ServeApp
        with Engine.load({str(folder)!r}) as engine:
            app = ServeApp(engine, Gallery.for_engine(engine))
            client = TestClient(app, base_url="http://localhost")
            picture = cv2.imencode(".png", np.zeros((20, 10, 3), np.uint8))[1].tobytes()
            for name in ("embed", "add", "search", "who"):
                answer = client.post("/api/v1/" + name, content=picture)
                assert answer.status_code == 200, answer.text
            app.close()
    """
    allowed = ("onnxruntime", "numba")
    result = without(tuple(name for name in HEAVY if name not in allowed), script)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_loads_neither_numpy_nor_opencv() -> None:
    result = python("import sys, dpm_edge; print([m for m in ('numpy', 'cv2', 'click') if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_help_loads_neither_numpy_nor_opencv() -> None:
    script = """
        import sys
        from dpm_edge.cli import main
        try:
            main(["--help"])
        finally:
            print([m for m in ("numpy", "cv2", "safetensors", "tqdm") if m in sys.modules])
    """
    result = python(script)
    assert result.stdout.strip().endswith("[]"), result.stdout + result.stderr


@pytest.mark.parametrize(("script", "seconds"), [("import dpm_edge", 1.0), ("from dpm_edge.cli import main", 1.5)])
def test_start_is_quick(script: str, seconds: float) -> None:
    """Generous, for a busy machine; `benchmarks/startup.py` measures the real figure."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        assert python(script).returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < seconds


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = path.relative_to(ROOT).with_suffix("").parts
            package = [*([] if parts[0] == "dpm_edge" else ["dpm_edge"]), *parts]
            above = package[: -node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_of(module: str, packages: tuple[str, ...]) -> bool:
    """Whether a module is one of the packages or inside one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def broken(folder: str, pattern: str, forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    """ "file imports module" for every import below `folder` that is forbidden and not in `but`."""
    files = sorted((ROOT / folder).rglob(pattern))
    assert files, f"no {pattern} below {folder}: is this test still about something?"
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imports(path)
        if is_of(module, forbidden) and not is_of(module, but)
    ]


def test_kernels_import_no_other_room() -> None:
    assert broken("kernels", "*.py", ("dpm_edge",), but=("dpm_edge.kernels",)) == []


def test_kernels_themselves_know_no_torch_and_contracts_know_nothing() -> None:
    assert broken("kernels", "kernel*.py", ("torch",)) == []
    assert broken("kernels", "contract.py", ("torch", "triton", "numpy")) == []


def test_the_package_does_not_import_training() -> None:
    found = broken("dpm_edge", "*.py", ("dpm_edge.train",))
    wraps = "dpm_edge/cli/train.py"
    assert [line for line in found if not line.startswith(wraps)] == []


def test_the_runtime_imports_no_torch_and_no_room_above_it() -> None:
    """One file may: the backend that runs a network in torch. Our launcher of compiled kernels needs neither."""
    rooms = ("model", "build", "train", "kernels", "gallery", "cli", "demo", "bench")
    forbidden = ("torch", "triton", "onnx", *(f"dpm_edge.{room}" for room in rooms))
    found = broken("dpm_edge/runtime", "*.py", forbidden, but=("dpm_edge.kernels.launch",))
    assert [line for line in found if not line.startswith("dpm_edge/runtime/backends/torch.py imports ")] == []
    above = tuple(f"dpm_edge.{room}" for room in ("build", "train", "gallery", "cli", "demo"))
    assert broken("dpm_edge/runtime/backends", "torch.py", above) == []


def test_the_other_gpu_backend_imports_with_every_heavy_library_blocked() -> None:
    others = tuple(f"dpm_edge.{name}" for name in ("model", "build", "train", "kernels"))
    result = without(HEAVY + others, "import dpm_edge.runtime.backends.tensorrt")
    assert result.returncode == 0, result.stderr


def test_the_gallery_imports_neither_torch_nor_a_room_above_it() -> None:
    rooms = ("model", "build", "train", "cli", "demo")
    assert broken("dpm_edge/gallery", "*.py", ("torch", "triton", "onnx", *(f"dpm_edge.{r}" for r in rooms))) == []


def test_only_its_commands_and_the_demo_import_the_camera_application() -> None:
    theirs = ("dpm_edge/watch/", "dpm_edge/cli/watch.py", "dpm_edge/cli/build_detector.py", "dpm_edge/demo/")
    for folder in ("dpm_edge", "kernels", "train"):
        found = broken(folder, "*.py", ("dpm_edge.watch",))
        assert [line for line in found if not line.startswith(theirs)] == []


def test_only_its_command_imports_the_server_which_imports_no_application() -> None:
    above = ("torch", "triton", "onnx", *(f"dpm_edge.{r}" for r in ("model", "build", "train", "cli", "demo", "watch")))
    assert broken("dpm_edge/serve", "*.py", above) == []
    found = broken("dpm_edge", "*.py", ("dpm_edge.serve",))
    assert [line for line in found if not line.startswith(("dpm_edge/serve/", "dpm_edge/cli/serve.py"))] == []


def test_what_web_servers_share_imports_no_room() -> None:
    assert broken("dpm_edge/web", "*.py", ("dpm_edge",), but=("dpm_edge.web", "dpm_edge.errors")) == []


def test_nothing_imports_tests_or_benchmarks() -> None:
    for folder in ("dpm_edge", "kernels", "train"):
        assert broken(folder, "*.py", ("tests", "benchmarks", "tiny_engine")) == []
