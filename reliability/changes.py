"""Small changes of a program, one at a time: what a mutant is made of. An operator becomes its neighbour, a number one
more, a condition its opposite, a statement nothing. Docstrings and other texts, annotations, protocols and what is in a
`raise` stay as they are."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """One change of a syntax tree."""

    line: int
    text: str
    apply: Callable[[], None]  # to the tree that it was found in
    function: str = ""  # that it is in, the innermost; nothing: it is of a class or the file
    first_line: int = 0  # of that function, as its code object has it


def changes(tree: ast.AST) -> list[Change]:
    """Every change of a file that is made here, in the order of its text."""
    found = [
        dataclasses.replace(change, **_place((*parents, node)))
        for node, parents in _nodes(tree, ())
        for change in _changes_of(node, parents)
    ]
    return sorted(found, key=lambda change: change.line)


def _place(nodes: tuple[ast.AST, ...]) -> dict[str, Any]:
    """The innermost function that has a name among these; a lambda belongs to the one around it."""
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if not functions:
        return {}
    lines = [functions[-1].lineno, *(one.lineno for one in functions[-1].decorator_list)]
    return {"function": functions[-1].name, "first_line": min(lines)}


_LEFT_OUT = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)
_TYPES = ("annotation", "returns", "decorator_list", "type_comment")


def _nodes(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    if isinstance(node, _LEFT_OUT) or _is_protocol(node) or _is_for_types(node):
        return
    yield node, parents
    for name, value in ast.iter_fields(node):
        if name not in _TYPES:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST):
                    yield from _nodes(one, (*parents, node))


def _is_protocol(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)


def _is_for_types(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("TypeVar", "Callable["))


COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_PAIRS = "min max|minimum maximum|fmin fmax|amin amax|argmin argmax|any all|floor ceil|bisect_left bisect_right"
CALLED = {a: b for pair in _PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}


def _changes_of(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            for other in COMPARED[type(operator)]:
                yield _replaced(node, node.ops, at, other())
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        yield _set(node, "op", COMPUTED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield _instead(node, parents[-1], node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = node.value
        yield _set(node, "value", not value if isinstance(value, bool) else value + 1)
    elif isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in CALLED:
            yield _set(function, "attr" if isinstance(function, ast.Attribute) else "id", CALLED[name])
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield _set(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield _instead(node, parents[-1], ast.Break() if isinstance(node, ast.Continue) else ast.Continue())
    if _can_go(node):
        yield _instead(node, parents[-1], ast.Pass())


def _can_go(node: ast.AST) -> bool:
    """Whether it is a statement without which a file still makes sense; of others every test would see the loss."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    return isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _text(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


def _set(node: Any, name: str, value: Any) -> Change:
    before, kept = _text(node), getattr(node, name)
    setattr(node, name, value)
    after = _text(node)
    setattr(node, name, kept)
    return Change(node.lineno, f"{before}  ->  {after}", lambda: setattr(node, name, value))


def _replaced(node: Any, values: list[Any], at: int, value: Any) -> Change:
    before, kept = _text(node), values[at]
    values[at] = value
    after = _text(node)
    values[at] = kept
    return Change(node.lineno, f"{before}  ->  {after}", lambda: values.__setitem__(at, value))


def _instead(node: Any, parent: ast.AST, other: ast.AST) -> Change:
    """`other` where `node` is."""

    def apply() -> None:
        for name, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, name, other)
            elif isinstance(value, list) and any(one is node for one in value):
                value[next(i for i, one in enumerate(value) if one is node)] = other

    return Change(node.lineno, f"{_text(node)}  ->  {_text(other)}", apply)
