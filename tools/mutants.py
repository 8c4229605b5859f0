"""Every small mistake that could be made in a module's source: one mutant each. Pure: text in, texts out.

What is left as it is: docstrings, annotations of functions, `assert`, what `@dataclass` is told (mypy sees to it that
nothing frozen is changed), calls of a log, the words of exceptions and of f-strings: a text for people decides nothing.
Everything else that may change what a program does is changed: comparisons, `and` and `or`, arithmetic, constants,
texts, calls, returns, `raise`, arguments given by name, decorators, `case`s, elements of sets, and what an `except`
catches.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_Node = TypeVar("_Node", bound=ast.AST)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed module. `key` names the change for as long as nobody edits the place; `line` is where it is."""

    key: str
    line: int
    source: str = field(repr=False)


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its text.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source)
    found: list[Mutant] = []
    seen: dict[str, int] = {}
    for path, where in _places(tree):
        node = _at(tree, path)
        for new in _changes(node):
            mutated = copy.deepcopy(tree)
            _put(mutated, path, new)
            key = f"{where}: {_shown(node)} -> {_shown(new)}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key += f" ({seen[key]})"
            found.append(Mutant(key, _line_of(node), ast.unparse(ast.fix_missing_locations(mutated))))
    return found


def _line_of(node: ast.AST) -> int:
    """A part of a comprehension or of a `match` has no line of its own."""
    return next(one.lineno for one in ast.walk(node) if isinstance(one, ast.expr | ast.stmt | ast.pattern))


# ---- where something may be changed ----------------------------------------------------------------------------------

_Step = tuple[str, int | None]
_Path = tuple[_Step, ...]


def _places(tree: ast.Module) -> Iterator[tuple[_Path, str]]:
    """Every node that may be changed, as the way to it from the top, with the name of what it is in."""
    yield from _below(tree, (), "module")


def _below(node: ast.AST, path: _Path, where: str) -> Iterator[tuple[_Path, str]]:
    for name, value in ast.iter_fields(node):
        if _is_left(node, name):
            continue
        if isinstance(value, ast.AST):
            yield from _visit(value, (*path, (name, None)), where)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                if isinstance(one, ast.AST) and not _is_docstring(one):
                    yield from _visit(one, (*path, (name, index)), where)


def _visit(node: ast.AST, path: _Path, where: str) -> Iterator[tuple[_Path, str]]:
    if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom) or _is_called(node, "log.", "logging.", "dataclass"):
        return
    if isinstance(node, _Function | ast.ClassDef):
        where = node.name if where == "module" else f"{where}.{node.name}"
    yield path, where
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return  # words for people
    yield from _below(node, path, where)


def _is_left(node: ast.AST, name: str) -> bool:
    """Whether a field decides nothing when the program runs."""
    if name in {"returns", "ctx", "type_comment", "type_ignores"}:
        return True
    if isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and name == "target"):
        return True
    # A field's annotation counts where it holds limits; its types would only keep the module from being imported.
    if isinstance(node, ast.AnnAssign) and name == "annotation":
        return not any(isinstance(one, ast.Call) for one in ast.walk(node.annotation))
    return False


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_called(node: ast.AST, *names: str) -> bool:
    call = node.value if isinstance(node, ast.Expr) else node
    return isinstance(call, ast.Call) and ast.unparse(call.func).startswith(names)


def _at(tree: ast.AST, path: _Path) -> ast.AST:
    node = tree
    for name, index in path:
        value = getattr(node, name)
        node = value if index is None else value[index]
    return node


def _put(tree: ast.AST, path: _Path, new: ast.AST) -> None:
    parent = _at(tree, path[:-1])
    name, index = path[-1]
    if index is None:
        setattr(parent, name, copy.deepcopy(new))
    else:
        getattr(parent, name)[index] = copy.deepcopy(new)


def _shown(node: ast.AST) -> str:
    """One line: of what holds a block, only what stands before it."""
    match node:
        case ast.If(test) | ast.While(test):
            text = f"if {ast.unparse(test)}"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            text = " ".join(["decorators", *(f"@{ast.unparse(one)}" for one in node.decorator_list)])
        case ast.ExceptHandler(type=ast.expr() as caught):
            text = f"except {ast.unparse(caught)}"
        case ast.Match(cases=cases):
            text = " | ".join(["cases", *(ast.unparse(case.pattern) for case in cases)])
        case _:
            text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else f"{text[:60]}...{text[-35:]}"


# ---- what it may be changed to ---------------------------------------------------------------------------------------


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.stmt):
        yield from _statement(node)
    elif isinstance(node, ast.expr):
        yield from _expression(node)
    else:
        yield from _part(node)


def _expression(node: ast.expr) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            yield from _compared(node)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, op, right):
            yield ast.BinOp(left, _COUNTED[type(op)](), right)
        case ast.Constant():
            yield from _constant(node)
        case ast.Set(elements) if len(elements) > 1:
            yield from (ast.Set(kept) for kept in _without_one(elements))
        case ast.Call(keywords=keywords):
            yield from (_replaced(node, keywords=kept) for kept in _without_one(keywords))
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)


def _statement(node: ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.If(test) | ast.While(test) if not isinstance(test, ast.Compare | ast.UnaryOp | ast.Constant):
            yield _replaced(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Expr() | ast.Raise():
            yield ast.Pass()
        case ast.Return(value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Break() | ast.Continue():
            yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        case ast.Assign(value=value) if not isinstance(value, ast.Constant):
            yield _replaced(node, value=ast.Constant(None))
        case ast.AugAssign(target, op, value):
            yield ast.AugAssign(target, _COUNTED[type(op)](), value)
        case ast.FunctionDef(decorator_list=decorators) | ast.AsyncFunctionDef(decorator_list=decorators):
            yield from (_replaced(node, decorator_list=kept) for kept in _without_one(decorators))
        case ast.Match(cases=cases) if len(cases) > 1:
            yield from (_replaced(node, cases=kept) for kept in _without_one(cases))


def _part(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.comprehension(ifs=[_, *_]):
            yield _replaced(node, ifs=[])
        case ast.MatchOr(patterns):
            yield from (_replaced(node, patterns=kept) for kept in _without_one(patterns))
        case ast.ExceptHandler(type=ast.Tuple(elts=caught)):
            yield from (_replaced(node, type=ast.Tuple(kept, ast.Load())) for kept in _without_one(caught))


def _without_one(parts: list[_Node]) -> Iterator[list[_Node]]:
    return (parts[:number] + parts[number + 1 :] for number in range(len(parts)))


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    for number, op in enumerate(node.ops):
        for other in _COMPARED[type(op)]:
            yield ast.Compare(node.left, [*node.ops[:number], other(), *node.ops[number + 1 :]], node.comparators)


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    match node.value:
        case bool():
            yield ast.Constant(not node.value)
        case int() | float():
            yield ast.Constant(node.value + 1)
        case str():
            yield ast.Constant(f"XX{node.value}")
        case bytes():
            yield ast.Constant(b"XX" + node.value)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _replaced(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
