"""Every TensorRT name that our source touches, found by reading the source, and looked up in real bindings.

    python tests/build/tensorrt_names.py            writes the table into docs/tensorrt.md
    python tests/build/tensorrt_names.py --here     prints, as JSON, the names and whether the bindings that can be
                                                    imported here have them (used in a process of its own per version)

How names are found: `trt` (a parameter of type ModuleType, or what `load_library` gives) is the library; what is called
on it has the class that it says; a method's class is read off the bindings' own signature; other values have the class
that they are annotated with, such as `tensorrt.IBuilderConfig`. `getattr(trt.X, "Y", default)` is an optional name.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tensorrt.md"
BEGIN, END = "<!-- names: begin -->", "<!-- names: end -->"
VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu13-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
"""TensorRT version → the distribution with NVIDIA's Python bindings of that version."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    *(f"create{what}_INTERNAL" for what in ("InferBuilder", "InferRefitter", "InferRuntime")),
    *(f"createNvOnnxParser{what}_INTERNAL" for what in ("", "Refitter")),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins", "getNvOnnxParserVersion"),
)
"""What the bindings want from the libraries when they are imported; the stand-ins return a null pointer."""

Kind = tuple[str, str]
"""What a value is: ("module", ""), ("class", name), ("object", name), ("method", class.name), ("list", name)."""
MODULE: Kind = ("module", "")


class Reader(ast.NodeVisitor):
    """The names that one file touches; `optional` are those that it can do without."""

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt
        self.names: set[str] = set()
        self.optional: set[str] = set()
        self.known: dict[str, Kind] = {}
        self.fields: dict[str, Kind] = {}

    # What a value is

    def kind(self, node: ast.AST | None) -> Kind | None:
        """The kind of an expression, noting the names on the way."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            held = self.kind(node.value)
            return ("object", held[1]) if held and held[0] == "list" else None
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        return None

    def _attribute(self, node: ast.Attribute) -> Kind | None:
        base = self.kind(node.value)
        if base is None:
            is_field = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            return self.fields.get(node.attr) if is_field else None
        what, owner = base
        if node.attr.startswith("__") or what == "list":
            return None
        name = f"{owner}.{node.attr}" if owner else node.attr
        if what == "object" and not self._has(name) and owner in self._ours:
            return None  # a member that a class of ours adds
        self.names.add(name)
        if what in ("module", "class"):
            return ("class", name)
        return ("method", name) if what == "object" else None

    def _call(self, node: ast.Call) -> Kind | None:
        if isinstance(node.func, ast.Name) and node.func.id == "load_library":
            return MODULE
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3:
            base = self.kind(node.args[0])
            if base and isinstance(node.args[1], ast.Constant):
                self.optional.add(f"{base[1]}.{node.args[1].value}".lstrip("."))
            return None
        function = self.kind(node.func)
        if function is None:
            return None
        what, name = function
        return ("object", name) if what == "class" else self._returned(name) if what == "method" else None

    def _returned(self, name: str) -> Kind | None:
        """The class that a method's signature in the bindings says it returns."""
        signature = inspect.getdoc(self._find(name)) or ""
        for said in re.findall(r"->\s*(?:\w+\.)*(\w+)", signature):
            if inspect.isclass(getattr(self.trt, said, None)):
                return ("object", said)
        return None

    def _annotated(self, node: ast.AST | None) -> Kind | None:
        text = ast.unparse(node) if node is not None else ""
        if text == "ModuleType":
            return MODULE
        found = re.search(r"\b(?:tensorrt|trt)\.([\w.]+)", text)
        if not found:
            return None
        self.names.add(found[1])
        return ("list" if text.startswith(("list", "Sequence", "tuple", "dict")) else "object", found[1])

    def _find(self, name: str) -> Any:
        value: Any = self.trt
        for part in name.split("."):
            value = getattr(value, part, None)
        return value

    def _has(self, name: str) -> bool:
        return self._find(name) is not None

    # Where values get their names

    _ours: frozenset[str] = frozenset()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.kind(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.kind(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                kinds = [self.kind(value) for value in node.value.elts]
                for one, kind in zip(target.elts, kinds):
                    self._bind(one, kind)
            else:
                self._bind(target, self.kind(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, self._annotated(node.annotation) or self.kind(node.value))

    def _bind(self, target: ast.AST, kind: Kind | None) -> None:
        if isinstance(target, ast.Name):
            self.known.pop(target.id, None)
            if kind is not None:
                self.known[target.id] = kind
        elif kind is not None and isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
            self.fields.setdefault(target.attr, kind)

    def _visit_comprehension(self, node: Any) -> None:
        before = dict(self.known)
        for one in node.generators:
            self.visit(one.iter)
            kind = self.kind(one.iter)
            if kind and kind[0] == "list":
                self._bind(one.target, ("object", kind[1]))
        self.generic_visit(node)
        self.known = before

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_comprehension

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.known)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.known.pop(argument.arg, None)
            kind = self._annotated(argument.annotation)
            if kind is not None:
                self.known[argument.arg] = kind
        self._annotated(node.returns)
        self.generic_visit(node)
        self.known = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        fields, ours = self.fields, self._ours
        self.fields = {}
        for base in node.bases:
            kind = self.kind(base)
            if kind and kind[0] == "class":
                for one in node.body:
                    if isinstance(one, ast.FunctionDef) and self._has(f"{kind[1]}.{one.name}"):
                        self.names.add(f"{kind[1]}.{one.name}")
        for _ in range(2):  # a field may be read above where it is set
            self.generic_visit(node)
        self.fields, self._ours = fields, ours


def touched(trt: ModuleType) -> tuple[set[str], set[str]]:
    """The names that the package touches and those that it can do without."""
    names: set[str] = set()
    optional: set[str] = set()
    for path in sorted((ROOT / "dpm_edge").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "tensorrt" not in source and "trt" not in source:
            continue
        reader = Reader(trt)
        reader.visit(ast.parse(source))
        names |= reader.names
        optional |= reader.optional
    return {n for n in names if not n.endswith(("__version__", "__init__"))}, optional


def members_of_the_fake(trt: ModuleType) -> list[str]:
    """Members of the fake's classes that the real ones do not have."""
    import fake_tensorrt

    fake = fake_tensorrt.module()
    wrong = []
    for name, value in vars(fake).items():
        if not inspect.isclass(value):
            continue
        real = getattr(trt, name, None)
        own = [member for member in vars(value) if not member.startswith(("_", "fake"))]
        wrong += [f"{name}.{member}" for member in own if not hasattr(real, member)]
    return wrong


def look_here() -> dict[str, Any]:
    """What the bindings that can be imported in this process have."""
    import tensorrt_bindings as trt

    def has(name: str) -> bool:
        value: Any = trt
        for part in name.split("."):
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True

    names, optional = touched(trt)
    return {
        "version": trt.__version__,
        "names": {name: has(name) for name in sorted(names)},
        "optional": {name: has(name) for name in sorted(optional)},
        "fake": members_of_the_fake(trt),
    }


def look(version: str, cache: Path) -> dict[str, Any]:
    """`look_here` in a process with NVIDIA's bindings of that version, behind stand-ins for their libraries.

    Raises:
        ConnectionError: the bindings are not in `cache` and the package index cannot be reached.
    """
    stubs = cache / "stubs"
    for major in sorted({v.split(".")[0] for v in VERSIONS}):
        for name in LIBRARIES:
            _compile_stub(stubs / f"lib{name}.so.{major}")
    folder = cache / version
    if not (folder / "tensorrt_bindings").is_dir():
        wanted = f"{VERSIONS[version]}=={version}"
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ConnectionError(f"{wanted} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    environment = os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": f"{folder}:{Path(__file__).parent}"}
    done = subprocess.run(
        [sys.executable, __file__, "--here"], capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout)


def _compile_stub(path: Path) -> None:
    """A library whose functions return null: enough to import the bindings, not to build anything."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    code = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS)
    part = path.with_suffix(f".{os.getpid()}")
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(part), f"-Wl,-soname,{path.name}"]
    subprocess.run(command, input=code, text=True, check=True)
    part.replace(path)


def cache_folder() -> Path:
    """Where bindings and stand-ins are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dpm-edge-tests" / "tensorrt-bindings"


def table(found: dict[str, dict[str, Any]]) -> str:
    """The names by class, and what each version lacks of them, as Markdown."""
    names = {name for one in found.values() for name in (*one["names"], *one["optional"])}
    optional = {name for one in found.values() for name in one["optional"]}
    owners: dict[str, set[str]] = {}
    for name in names:
        owner, _, member = name.partition(".")
        owners.setdefault(owner, set())
        if member:
            owners[owner].add(member)
    rows = [f"| class | members | {' | '.join(found)} |", "| --- | --- |" + " --- |" * len(found)]
    for owner in sorted(owners):
        shown = ", ".join(f"`{m}`{'*' if f'{owner}.{m}' in optional else ''}" for m in sorted(owners[owner])) or "–"
        cells = [_cell(found[version], owner) for version in found]
        rows.append(f"| `{owner}` | {shown} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(found: dict[str, Any], owner: str) -> str:
    """ "yes", or what a version lacks of a class."""
    everything = found["names"] | found["optional"]
    lacks = [n.partition(".")[2] or n for n, has in everything.items() if not has and n.partition(".")[0] == owner]
    return "yes" if not lacks else f"no {', '.join(lacks)}"


def page_with(text: str, new: str) -> str:
    """The page with the table between its marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def everything(cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each version and what it has."""
    for version in VERSIONS:
        yield version, look(version, cache)


if __name__ == "__main__":
    if "--here" in sys.argv:
        print(json.dumps(look_here()))
    else:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), table(dict(everything(cache_folder())))), "utf-8")
