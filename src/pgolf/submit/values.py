"""What is known of expressions before a program runs, given its recipe: constants, sections of the recipe,
classes.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgolf.recipe.recipe import Recipe
from pgolf.runtime.section import Section
from pgolf.submit.program import Key, Module, Program, in_annotation


@dataclass(frozen=True)
class Const:
    """A number, a text, a tuple, True, False or None."""

    value: Any


@dataclass(frozen=True)
class Part:
    """The recipe or one of its sections."""

    section: Section


@dataclass(frozen=True)
class Instance:
    """An object of a class of the package, or of an unknown one; None as well if it is ``optional``."""

    of: Key | None
    optional: bool = False


Value = Const | Part | Instance | None
"""None: nothing is known."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.JoinedStr)


def same(first: Value, second: Value) -> bool:
    """Whether two values are equal, 1 and True not."""
    return type(first) is type(second) and repr(first) == repr(second)


def joined(values: Iterable[Value]) -> Value:
    """What is known of something that is one of these."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    if all(same(value, known[0]) for value in known):
        return known[0]
    objects = [value for value in known if isinstance(value, Instance)]
    if all(isinstance(value, Instance) or value == Const(None) for value in known) and objects:
        of = objects[0].of if len({value.of for value in objects}) == 1 else None
        optional = len(objects) < len(known) or any(value.optional for value in objects)
        return Instance(of, optional)
    return None


@dataclass
class Facts:
    """What is known of a whole program."""

    program: Program
    recipe: Recipe
    live: frozenset[str]
    """Keys of the recipe, dotted, that may differ at run time."""
    attributes: dict[tuple[Key, str], Value] = field(default_factory=dict)
    """By class and attribute."""
    parameters: dict[tuple[Key, str], Value] = field(default_factory=dict)
    """By function and parameter."""
    read: dict[str, set[Key | None]] = field(default_factory=dict)
    """By attribute: classes of whose objects something reads it; None is of any."""
    calls: object = None
    """The calls that the parameters' values come from."""

    def __post_init__(self) -> None:
        self.sections: dict[str, tuple[str, Section]] = {}
        self._add_sections("", self.recipe)

    def _add_sections(self, path: str, section: Section) -> None:
        self.sections[type(section).__name__] = path, section
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Section):
                self._add_sections(f"{path}{name}.", value)

    def entry(self, section: Section, name: str) -> Value:
        """The value of a key of a section."""
        if not hasattr(type(section), name) and name not in type(section).model_fields:
            return None
        if f"{self.sections[type(section).__name__][0]}{name}" in self.live:
            return None
        value = getattr(section, name)
        if isinstance(value, Section):
            return Part(value)
        return Const(value) if isinstance(value, (bool, int, float, str, tuple)) else None

    def attribute(self, of: Key, name: str) -> Value:
        """The value of an attribute of a class's objects."""
        for above in self.program.ancestors(of):
            if (above, name) in self.attributes:
                return self.attributes[above, name]
        return None

    def of_annotation(self, module: Module, node: ast.expr | None) -> Value:
        """What an annotation says of a value."""
        if isinstance(node, ast.BinOp):
            sides = [self.of_annotation(module, side) for side in (node.left, node.right)]
            return joined(sides)
        if isinstance(node, ast.Constant) and node.value is None:
            return Const(None)
        if node is None:
            return None
        key = self.program.meaning(module, node)
        if key is not None and isinstance(self.program.definition(key), ast.ClassDef):
            part = self.sections.get(key.name)
            return (
                Part(part[1])
                if part is not None and key.module.startswith("pgolf.recipe.")
                else Instance(key)
            )
        return None


class Scope:
    """The names of a function, and of those around it.

    Args:
        facts: of the program.
        module: where the function is.
        names: what its names mean: values, or expressions of names that are assigned once.
        around: the function around it.
    """

    def __init__(
        self, facts: Facts, module: Module, names: Mapping[str, Value | ast.expr], around: Scope | None = None
    ) -> None:
        self.facts, self.module, self.names, self.around = facts, module, dict(names), around
        self._busy: set[str] = set()

    def value(self, node: ast.AST) -> Value:
        """What is known of an expression."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if isinstance(node, _LITERALS):
            return Instance(None)
        return method(node) if method is not None else None

    def local(self, name: str) -> Value:
        """What is known of a name that a function binds."""
        if name not in self.names:
            return self.around.local(name) if self.around is not None else None
        known = self.names[name]
        if not isinstance(known, ast.expr):
            return known
        if name in self._busy:
            return None
        self._busy.add(name)
        found = self.value(known)
        self._busy.discard(name)
        return found

    def _constant(self, node: ast.Constant) -> Value:
        return Const(node.value)

    def _name(self, node: ast.Name) -> Value:
        if in_annotation(node):
            return None
        key = self.facts.program.meaning(self.module, node)
        if key is None:
            return self.local(node.id) if not getattr(node, "is_global", False) else None
        statement = self.facts.program.definition(key)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, (ast.Constant, ast.Tuple)):
            return Scope(self.facts, self.facts.program.modules[key.module], {}).value(statement.value)
        return None

    def _tuple(self, node: ast.Tuple) -> Value:
        parts = [self.value(entry) for entry in node.elts]
        constants = [part.value for part in parts if isinstance(part, Const)]
        return Const(tuple(constants)) if len(constants) == len(parts) else Instance(None)

    def _attribute(self, node: ast.Attribute) -> Value:
        base = self.value(node.value)
        if isinstance(base, Part):
            return self.facts.entry(base.section, node.attr)
        if isinstance(base, Instance) and base.of is not None:
            return self.facts.attribute(base.of, node.attr)
        return None

    def _ifexp(self, node: ast.IfExp) -> Value:
        test = self.truth(node.test)
        if test is None:
            return joined([self.value(node.body), self.value(node.orelse)])
        return self.value(node.body if test else node.orelse)

    def _boolop(self, node: ast.BoolOp) -> Value:
        stops = isinstance(node.op, ast.Or)
        for entry in node.values[:-1]:
            truth = self.truth(entry)
            if truth is None:
                return None
            if truth is stops:
                return self.value(entry)
        return self.value(node.values[-1])

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            truth = self.truth(node.operand)
            return None if truth is None else Const(not truth)
        value = self.value(node.operand)
        if (
            isinstance(node.op, ast.USub)
            and isinstance(value, Const)
            and isinstance(value.value, (int, float))
        ):
            return Const(-value.value)
        return None

    def _compare(self, node: ast.Compare) -> Value:
        if len(node.ops) > 1:
            return None
        left, right, kind = self.value(node.left), self.value(node.comparators[0]), type(node.ops[0])
        if isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            if right != Const(None) or left is None or (isinstance(left, Instance) and left.optional):
                return None
            return Const((left == Const(None)) is (kind is ast.Is))
        if not isinstance(left, Const) or not isinstance(right, Const):
            return None
        try:
            return Const(bool(_COMPARE[kind](left.value, right.value)))
        except TypeError:
            return None

    def _call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id == "bool" and len(node.args) == 1:
            truth = self.truth(node.args[0])
            return None if truth is None else Const(truth)
        program = self.facts.program
        key = program.meaning(self.module, node.func)
        statement = None if key is None else program.definition(key)
        if key is None or statement is None:
            return None
        if isinstance(statement, ast.ClassDef):
            # A section made on the spot is another than the recipe's.
            return Instance(None if key.module.startswith("pgolf.recipe.") else key)
        if isinstance(statement, ast.FunctionDef) and not statement.decorator_list:
            return self.facts.of_annotation(program.modules[key.module], statement.returns)
        return None

    def truth(self, node: ast.AST) -> bool | None:
        """Whether an expression is true, if that is known."""
        if isinstance(node, ast.BoolOp):
            # One part can decide, wherever it stands: conditions have no effects.
            truths, stops = [self.truth(entry) for entry in node.values], isinstance(node.op, ast.Or)
            return stops if stops in truths else None if None in truths else not stops
        value = self.value(node)
        if isinstance(value, Const):
            return bool(value.value)
        return True if isinstance(value, Part) else None
