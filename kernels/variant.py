"""What ahead-of-time compilation must know about one kernel: types, tiles, launch grid. Standard library only.

Each op lists its variants in its `contract.py`:

    VARIANTS = (
        Variant(
            op="masked_distance",
            name="masked_similarity_fp16_small",
            kernel="dpm_edge.kernels.masked_distance.kernel:similarity",
            signature={"Q": "*fp16", "T": "*fp16", "B": "i32", "N": "i32", "D": "i32", "OUT": "*fp32",
                       "BLOCK_B": "constexpr", "BLOCK_N": "constexpr"},
            constexprs={"BLOCK_B": 16, "BLOCK_N": 128},
            num_warps=4,
            num_stages=3,
            divisible_by_16=("Q", "T", "OUT", "D"),
            grid="ceil(N / BLOCK_N), ceil(B / BLOCK_B)",
            tiles={87: {"BLOCK_N": 64, "num_stages": 2}},
            matrix=True,
        ),
    )
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

ARCHITECTURES = (80, 87, 89, 90, 100, 110)
"""Compute capabilities compiled for: A100, Orin, Ada, Hopper, Blackwell, Thor."""

Constant = int | float | bool | str | None
_LAUNCH_OPTIONS = ("num_warps", "num_stages")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%"}
"""What a grid rule may use → its sign in C; Python's differs for // alone."""


class VariantError(ValueError):
    """A variant contradicts itself, or a grid rule cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel with its types and tiles fixed: what becomes one cubin per architecture."""

    op: str
    """Name of the op's folder."""
    name: str
    """Unique among all variants, a valid C identifier; names the cubin."""
    kernel: str
    """Where the `@triton.jit` function is: "module:function"."""
    signature: Mapping[str, str]
    """Every kernel parameter in order → Triton type: "*fp16", "*bf16", "*fp32", "*u8", "i32", "fp32", "constexpr"."""
    constexprs: Mapping[str, Constant]
    """A value for each "constexpr" parameter; None removes an optional pointer."""
    num_warps: int
    num_stages: int
    grid: str
    """One to three expressions over parameters and other launch sizes: integers, + - * // %, ceil(a / b), min, max."""
    divisible_by_16: tuple[str, ...] = ()
    """Pointers (addresses) and integers that every caller promises to be multiples of 16; needed for 16-byte loads."""
    tiles: Mapping[int, Mapping[str, Constant]] = field(default_factory=dict)
    """sm → constexprs (and num_warps, num_stages) that replace the ones above on that architecture."""
    archs: tuple[int, ...] = ARCHITECTURES
    """Architectures that the variant exists for."""
    matrix: bool = False
    """The disassembly must hold tensor-core instructions."""
    load_bytes: int = 16
    """The widest global load in the disassembly must be at least this many bytes; 0 leaves it unchecked."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise VariantError(
                f"expected a C identifier as a variant's name, got {self.name!r}. Use letters, digits, _"
            )
        declared = {name for name, kind in self.signature.items() if kind == "constexpr"}
        if declared != set(self.constexprs):
            raise VariantError(
                f"{self.name}: expected a value for each constexpr of {sorted(declared)}, got {sorted(self.constexprs)}"
            )
        for name in self.divisible_by_16:
            if self.signature.get(name, "constexpr") == "constexpr":
                raise VariantError(f"{self.name}: expected run-time parameters in divisible_by_16, got {name!r}")
        for sm, changes in self.tiles.items():
            if unknown := set(changes) - declared - set(_LAUNCH_OPTIONS):
                raise VariantError(
                    f"{self.name}: expected tiles of sm_{sm} for {sorted(declared)}, got {sorted(unknown)}"
                )
        _axes(self.grid)

    def on(self, sm: int) -> "Variant":
        """The variant with the tiles of architecture `sm` and no table left. Raises VariantError if not made for it."""
        if sm not in self.archs:
            raise VariantError(f"expected an architecture of {self.name}, {self.archs}, got sm_{sm}")
        changes = dict(self.tiles.get(sm, {}))
        warps = changes.pop("num_warps", self.num_warps)
        stages = changes.pop("num_stages", self.num_stages)
        assert isinstance(warps, int) and isinstance(stages, int)
        return replace(self, constexprs={**self.constexprs, **changes}, num_warps=warps, num_stages=stages, tiles={})

    @property
    def parameters(self) -> dict[str, str]:
        """Run-time parameters in order → Triton type; the constexprs left out."""
        return {name: kind for name, kind in self.signature.items() if kind != "constexpr"}

    @property
    def grid_names(self) -> tuple[str, ...]:
        """Names that the grid rule needs at launch."""
        return grid_names(self.grid_rule)

    @property
    def grid_rule(self) -> str:
        """The grid rule with the constexprs' values in their places: only launch-time names are left."""
        return fold_grid(self.grid, self.constexprs)


def evaluate_grid(rule: str, values: Mapping[str, int]) -> tuple[int, int, int]:
    """Blocks along x, y, z for launch-time `values`; a rule is read once, then remembered.

    Raises VariantError for a missing name or an axis below 1.
    """
    try:
        x, y, z = blocks = _grid_function(rule)(values)
    except KeyError as error:
        raise VariantError(f"expected {error} for the grid {rule!r}, got {sorted(values)}. Pass it as well") from None
    if x < 1 or y < 1 or z < 1:
        raise VariantError(f"expected at least 1 block along each axis, got {blocks} by {rule!r} for {dict(values)}")
    return blocks


@cache
def _grid_function(rule: str) -> Callable[[Mapping[str, int]], tuple[int, int, int]]:
    """The rule as a function of its values, compiled; `_axes` has let nothing but integer arithmetic through."""
    axes = [*map(_python_expression, _axes(rule)), "1", "1"][:3]
    return eval(f"lambda values: ({', '.join(axes)})", {"__builtins__": {"min": min, "max": max}})


def grid_names(rule: str) -> tuple[str, ...]:
    """The names that `rule` needs values for."""
    names = (node.id for axis in _axes(rule) for node in ast.walk(axis) if isinstance(node, ast.Name))
    return tuple(dict.fromkeys(name for name in names if name not in ("ceil", "min", "max")))


def fold_grid(rule: str, constants: Mapping[str, Constant]) -> str:
    """`rule` with every name in `constants` replaced by its value."""

    class Fold(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(int(constants[node.id])) if node.id in constants else node  # type: ignore[arg-type]

    return ", ".join(ast.unparse(Fold().visit(axis)) for axis in _axes(rule))


def grid_in_c(rule: str, name_of: Callable[[str], str]) -> tuple[str, str, str]:
    """The three axes as C expressions over int64; `name_of` turns a launch-time name into C."""
    axes = [_c_expression(axis, name_of) for axis in _axes(rule)]
    x, y, z = (axes + ["1", "1"])[:3]
    return x, y, z


def _axes(rule: str) -> list[ast.expr]:
    try:
        body = ast.parse(rule.strip(), mode="eval").body
    except SyntaxError as error:
        raise VariantError(f"expected a grid rule of integer arithmetic, got {rule!r}: {error.msg}") from None
    axes = list(body.elts) if isinstance(body, ast.Tuple) else [body]
    if len(axes) > 3:
        raise VariantError(f"expected a grid rule of at most 3 axes, got {len(axes)} in {rule!r}")
    for axis in axes:
        _c_expression(axis, str)  # walks every node, so refuses what is not allowed
    return axes


def _python_expression(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return f"values[{node.id!r}]"
    if isinstance(node, ast.BinOp):
        sign = "//" if isinstance(node.op, ast.FloorDiv) else _OPERATORS[type(node.op)]
        return f"({_python_expression(node.left)} {sign} {_python_expression(node.right)})"
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)  # _axes let nothing else through
    if node.func.id == "ceil":
        quotient = node.args[0]
        assert isinstance(quotient, ast.BinOp)
        return f"-(-{_python_expression(quotient.left)} // {_python_expression(quotient.right)})"
    return f"{node.func.id}({', '.join(map(_python_expression, node.args))})"


def _c_expression(node: ast.expr, name_of: Callable[[str], str]) -> str:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return str(node.value)
    if isinstance(node, ast.Name):
        return name_of(node.id)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _c_expression(node.left, name_of), _c_expression(node.right, name_of)
        return f"({left} {_OPERATORS[type(node.op)]} {right})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        arguments = node.args
        if node.func.id == "ceil" and len(arguments) == 1:
            quotient = arguments[0]
            if isinstance(quotient, ast.BinOp) and isinstance(quotient.op, ast.Div):
                left, right = _c_expression(quotient.left, name_of), _c_expression(quotient.right, name_of)
                return f"(({left} + {right} - 1) / {right})"
        if node.func.id in ("min", "max") and len(arguments) == 2:
            left, right = (_c_expression(argument, name_of) for argument in arguments)
            return f"({left} {'<' if node.func.id == 'min' else '>'} {right} ? {left} : {right})"
    raise VariantError(
        f"expected integers, names, + - * // %, ceil(a / b), min(a, b) and max(a, b) in a grid rule, got "
        f"{ast.unparse(node)!r}"
    )
