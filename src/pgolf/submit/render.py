"""Write a changed syntax tree with the layout and the comments of the source that it came from.

Before anything is changed, ``remember`` notes where every node stands. What is unchanged then is written as
it was; a changed expression is written piece by piece; only what was taken apart is written by
``ast.unparse``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_WIDTH = 120
_PLACED = (ast.expr, ast.arg, ast.keyword, ast.alias, ast.ExceptHandler)


@dataclass(frozen=True)
class _Place:
    """Where a node stood."""

    text: str
    """From its first to its last character."""
    start: int
    """In bytes."""
    kids: dict[tuple[Any, ...], tuple[ast.AST, int, int]]
    """By path: nodes inside that have places of their own."""
    bare: list[Any]
    """What it was besides the nodes inside."""
    above: tuple[str, ...] = ()
    """Comment lines above a statement."""
    beside: str = ""
    """A comment at the end of its last line."""
    gap: bool = False
    """Whether an empty line stood above."""
    head: tuple[str, ...] = ()
    """Lines of a compound statement before its block."""


def remember(tree: ast.Module, source: str) -> None:
    """Note the place of every node of a tree."""
    content = source.encode()
    lines = content.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    texts = [line.decode().rstrip("\n") for line in lines]
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, *_PLACED)) and hasattr(node, "lineno"):
            start, end = starts[node.lineno - 1] + node.col_offset, starts[_end(node)[0] - 1] + _end(node)[1]
            kids = {}
            if not isinstance(node, ast.JoinedStr):
                for path, kid in _slots(node):
                    if not hasattr(kid, "lineno"):
                        continue
                    first = starts[kid.lineno - 1] + kid.col_offset  # type: ignore[attr-defined]
                    kids[path] = (kid, first, starts[_end(kid)[0] - 1] + _end(kid)[1])
            layout = _layout(node, texts) if isinstance(node, ast.stmt) else {}
            place = _Place(content[start:end].decode(), start, kids, _bare(node), **layout)
            node.place = place  # type: ignore[union-attr]


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def _slots(node: ast.AST, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], ast.AST]]:
    """The nodes right inside of a node that have positions, with their paths."""
    for name, value in ast.iter_fields(node):
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.stmt):
                continue
            if isinstance(child, _PLACED):
                yield (*path, name, index), child
            elif isinstance(child, ast.AST):
                yield from _slots(child, (*path, name, index))


def _is_unchanged(node: ast.AST) -> bool:
    """Whether a node is as it was, its blocks apart."""
    place: _Place | None = getattr(node, "place", None)
    if place is None or _bare(node) != place.bare:
        return False
    if isinstance(node, ast.JoinedStr):
        return True
    now = dict(_slots(node))
    return now.keys() == place.kids.keys() and all(
        now[p] is kid and _is_unchanged(kid) for p, (kid, *_) in place.kids.items()
    )


def _layout(node: ast.stmt, texts: list[str]) -> dict[str, Any]:
    first = min([node.lineno, *(entry.lineno for entry in getattr(node, "decorator_list", []))]) - 1
    above: list[str] = []
    at = first - 1
    while at >= 0 and texts[at].strip().startswith("#"):
        above.insert(0, texts[at].strip())
        at -= 1
    gap = at >= 0 and not texts[at].strip()
    last_line = texts[_end(node)[0] - 1]
    rest = last_line.encode()[_end(node)[1] :].decode().strip()
    head: tuple[str, ...] = ()
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        stop = min([body[0].lineno, *(entry.lineno for entry in getattr(body[0], "decorator_list", []))]) - 1
        while stop > node.lineno and (not texts[stop - 1].strip() or texts[stop - 1].strip().startswith("#")):
            stop -= 1
        head = tuple(texts[max(node.lineno - 1, 0) : max(stop, node.lineno)])
    beside = rest if rest.startswith("#") else ""
    return {"above": tuple(above), "beside": beside, "gap": gap, "head": head}


def write_as(node: ast.AST, text: str) -> None:
    """Have a node written as a text."""
    node.written = text  # type: ignore[attr-defined]


def render(tree: ast.Module) -> str:
    """A module's text."""
    return "\n".join(_block(tree.body, 0)).strip("\n") + "\n"


def expression(node: ast.AST) -> str:
    """An expression's text, where possible as it was written."""
    place: _Place | None = getattr(node, "place", None)
    if isinstance(node, ast.Name):
        return node.id
    if hasattr(node, "written"):
        return str(node.written)
    if place is not None and _is_unchanged(node):
        return place.text
    if place is None or isinstance(node, ast.JoinedStr):
        return ast.unparse(node)
    now = dict(_slots(node))
    if now.keys() != place.kids.keys() or _bare(node) != place.bare:
        return ast.unparse(node)
    content, at = place.text.encode(), 0
    parts: list[bytes] = []
    for path, (kid, first, last) in sorted(place.kids.items(), key=lambda item: item[1][1]):
        text = expression(now[path])
        if now[path] is not kid and _is_loose(now[path]) and not _is_loose(kid):
            text = f"({text})"
        parts += [content[at : first - place.start], text.encode()]
        at = last - place.start
    return b"".join([*parts, content[at:]]).decode()


def _is_loose(node: ast.AST) -> bool:
    return isinstance(
        node, (ast.BoolOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.Compare, ast.UnaryOp, ast.BinOp)
    )


def _bare(node: ast.AST) -> list[Any]:
    """What a node is besides the nodes inside."""
    if isinstance(node, ast.JoinedStr):  # Its parts have no true places before Python 3.12.
        return [ast.dump(node)]
    return [
        type(node),
        *(value for _, value in ast.iter_fields(node) if not isinstance(value, (ast.AST, list))),
    ]


def _block(statements: list[ast.stmt], indent: int) -> list[str]:
    lines: list[str] = []
    for index, statement in enumerate(statements):
        place: _Place | None = getattr(statement, "place", None)
        definition = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        before = statements[index - 1] if index else None
        after_definition = isinstance(before, (ast.FunctionDef, ast.ClassDef))
        if index and indent == 0 and (definition or after_definition):
            lines += ["", ""]
        elif index and (definition or after_definition or (place is not None and place.gap)):
            lines.append("")
        pad = " " * indent
        if place is not None:
            lines += [pad + comment for comment in place.above]
        lines += _statement(statement, indent)
        if place is not None and place.beside and not hasattr(statement, "body"):
            lines[-1] += f"  {place.beside}"
    return lines


def _statement(node: ast.stmt, indent: int) -> list[str]:
    pad = " " * indent
    if isinstance(node, ast.If):
        lines = [f"{pad}if {expression(node.test)}:", *_block(node.body, indent + 4)]
        while len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            node = node.orelse[0]
            lines += [f"{pad}elif {expression(node.test)}:", *_block(node.body, indent + 4)]
        return lines + ([f"{pad}else:", *_block(node.orelse, indent + 4)] if node.orelse else [])
    if isinstance(node, ast.Try):
        lines = [f"{pad}try:", *_block(node.body, indent + 4)]
        for handler in node.handlers:
            kind = "" if handler.type is None else f" {expression(handler.type)}"
            name = f" as {handler.name}" if handler.name else ""
            lines += [f"{pad}except{kind}{name}:", *_block(handler.body, indent + 4)]
        for word, block in (("else", node.orelse), ("finally", node.finalbody)):
            lines += [f"{pad}{word}:", *_block(block, indent + 4)] if block else []
        return lines
    if hasattr(node, "body"):
        lines = [f"{pad}@{expression(entry)}" for entry in getattr(node, "decorator_list", [])]
        lines += _head(node, indent)
        lines += _block(node.body, indent + 4)
        rest = getattr(node, "orelse", [])
        return lines + ([f"{pad}else:", *_block(rest, indent + 4)] if rest else [])
    return _shifted(expression(node), indent, getattr(node, "col_offset", indent))


def _head(node: Any, indent: int) -> list[str]:
    place: _Place | None = getattr(node, "place", None)
    if place is not None and place.head and _is_unchanged(node):
        return _shifted("\n".join(place.head).lstrip(), indent, node.col_offset)
    empty = {"body": [ast.Pass()], "orelse": [], "decorator_list": []}
    shallow = type(node)(
        **dict(ast.iter_fields(node)) | {n: v for n, v in empty.items() if n in node._fields}
    )
    line = " " * indent + ast.unparse(ast.fix_missing_locations(shallow)).rpartition("\n")[0]
    if len(line) <= _WIDTH or not isinstance(node, ast.FunctionDef):
        return [line]
    pieces = ast.unparse(node.args)
    opening, closing = line.index("("), line.rindex(pieces) + len(pieces)
    rows = [f"{' ' * (indent + 4)}{piece}," for piece in _split(pieces)]
    return [line[: opening + 1], *rows, f"{' ' * indent}{line[closing:]}"]


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _shifted(text: str, indent: int, before: int) -> list[str]:
    """Lines of a text that stood at another indentation."""
    first, *rest = text.split("\n")
    lines = [" " * indent + first]
    for line in rest:
        bare = line.lstrip(" ")
        lines.append(" " * max(len(line) - len(bare) + indent - before, 0) + bare if bare else "")
    return lines
