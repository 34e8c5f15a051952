"""What of a program can be reached from its entry: definitions, and methods of classes.

A method counts as reached if some reached code names an attribute like it and a class that inherits it is
used as a value (Bacon and Sweeney 1996, rapid type analysis, with attributes by name). What a framework's
base class has is called by the framework. The package sets and reads no attributes by computed names, which
all of this relies on.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from pgolf.submit.program import Key, Module, Program, children_of, in_annotation, is_global


@dataclass
class Reached:
    """Definitions and methods that are used."""

    keys: set[Key] = field(default_factory=set)
    methods: set[tuple[Key, str]] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    """Names of attributes that are read."""
    used_classes: set[Key] = field(default_factory=set)
    """Classes that are used as values, not only as bases."""


def reach(program: Program, roots: Iterable[Key]) -> Reached:
    """Everything that is used from the roots on."""
    walk = _Walk(program)
    for root in roots:
        walk.use(root)
    while walk.advance():
        pass
    return walk.found


def keep_only(program: Program, found: Reached) -> bool:
    """Take everything else out of the program; tells whether there was anything."""
    changed = False
    for module in program.modules.values():
        kept: list[ast.stmt] = []
        texts = False
        for statement in module.tree.body:
            names = [name for name, owner in module.definitions.items() if owner is statement]
            text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            # A text after a definition describes it.
            wanted = (
                (texts or statement is module.tree.body[0])
                if text
                else any(Key(module.name, name) in found.keys for name in names)
            )
            texts = wanted
            if wanted:
                kept.append(statement)
            if wanted and isinstance(statement, ast.ClassDef):
                key = Key(module.name, statement.name)
                body = [e for e in statement.body if not _is_method(e) or (key, e.name) in found.methods]  # type: ignore[attr-defined]
                changed = changed or len(body) < len(statement.body)
                statement.body = body or [ast.Pass()]
        changed = changed or len(kept) < len(module.tree.body)
        module.tree.body = kept
        module.definitions = {name: owner for name, owner in module.definitions.items() if owner in kept}
    return changed


def _is_method(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef)


class _Walk:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.found = Reached()
        self._pending: list[tuple[Module, ast.AST, Key | None]] = []
        self._framework: dict[tuple[Key, str], bool] = {}
        self._super: set[tuple[Key, str]] = set()

    def use(self, key: Key, as_base: bool = False) -> None:
        """A definition is used."""
        statement = self.program.definition(key)
        if statement is None:
            return
        if isinstance(statement, ast.ClassDef) and not as_base:
            self.found.used_classes.add(key)
        if key in self.found.keys:
            return
        self.found.keys.add(key)
        module = self.program.modules[key.module]
        if isinstance(statement, ast.ClassDef):
            for base in statement.bases:
                above = self.program.meaning(module, base)
                if above is not None:
                    self.use(above, as_base=True)
            rest = [entry for entry in statement.body if not _is_method(entry)]
            self._pending += [
                (module, node, key) for node in [*statement.decorator_list, *statement.keywords, *rest]
            ]
        else:
            self._pending.append((module, statement, None))

    def advance(self) -> bool:
        """Look at what was found since; tells whether there was anything."""
        if not self._pending:
            self._find_methods()
        pending, self._pending = self._pending, []
        for module, node, owner in pending:
            self._look(module, node, owner)
        return bool(pending)

    def _find_methods(self) -> None:
        for key in sorted(self.found.used_classes):
            seen: set[str] = set()
            for above in self.program.ancestors(key):
                statement = self.program.definition(above)
                if not isinstance(statement, ast.ClassDef):
                    continue
                for entry in statement.body:
                    if not isinstance(entry, ast.FunctionDef):
                        continue
                    called = entry.name in self.found.attributes or self._by_framework(key, entry.name)
                    if (called and entry.name not in seen) or (above, entry.name) in self._super:
                        self._use_method(above, entry)
                seen |= {entry.name for entry in statement.body if isinstance(entry, ast.FunctionDef)}

    def _use_method(self, owner: Key, method: ast.FunctionDef) -> None:
        if (owner, method.name) not in self.found.methods:
            self.found.methods.add((owner, method.name))
            self._pending.append((self.program.modules[owner.module], method, owner))

    def _by_framework(self, key: Key, name: str) -> bool:
        if name.startswith("__") and name.endswith("__"):
            return True
        if (key, name) not in self._framework:
            self._framework[key, name] = is_frameworks(self.program, key, name)
        return self._framework[key, name]

    def _look(self, module: Module, node: ast.AST, owner: Key | None) -> None:
        meant = self.program.meaning(module, node)
        if in_annotation(node):
            # Names of types are kept, classes that are only named are not.
            if meant is not None and isinstance(self.program.definition(meant), ast.Assign):
                self.use(meant)
            for child in children_of(node):
                self._look(module, child, owner)
            return
        if meant is not None and meant.name:
            self.use(meant)
            return
        if isinstance(node, ast.Attribute) and not _of_external(module, node.value):
            self.found.attributes.add(node.attr)
            if owner is not None and _is_super(node.value):
                self._super |= {(above, node.attr) for above in self.program.ancestors(owner)[1:]}
        for child in children_of(node):
            self._look(module, child, owner)


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _of_external(module: Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and is_global(node) and node.id in module.external


def is_frameworks(program: Program, key: Key, name: str) -> bool:
    """Whether a class has a method of this name from a base outside of the package."""
    outside = any(
        program.meaning(program.modules[above.module], base) is None
        for above in program.ancestors(key)
        if isinstance(statement := program.definition(above), ast.ClassDef)
        for base in statement.bases
    )
    if not outside:
        return False
    made = getattr(importlib.import_module(key.module), key.name)
    bases = [base for base in made.__mro__ if base is not object and not base.__module__.startswith("pgolf")]
    return any(hasattr(base, name) for base in bases)


def functions_of(program: Program) -> list[tuple[Module, Key, ast.FunctionDef, Key | None]]:
    """All functions and methods: module, key, tree, class."""
    found: list[tuple[Module, Key, ast.FunctionDef, Key | None]] = []
    for module in program.modules.values():
        for name, statement in module.definitions.items():
            key = Key(module.name, name)
            if isinstance(statement, ast.FunctionDef):
                found.append((module, key, statement, None))
            elif isinstance(statement, ast.ClassDef):
                found += [
                    (module, Key(module.name, f"{name}.{entry.name}"), entry, key)
                    for entry in statement.body
                    if isinstance(entry, ast.FunctionDef)
                ]
    return found
