"""A program as the syntax trees of its modules: what each defines, what names mean, what is reached.

A method counts as reached if its class is and reached code names an attribute like it, or asks for its name
(Bacon and Sweeney 1996, rapid type analysis, by name alone). What a base class from elsewhere has may be
called by that, and special methods by Python. Where a module is reached, so are its statements that define
nothing, and definitions with a decorator of the package, which may register them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pgolf.compress.code_size import is_text

PACKAGE = "pgolf"


class Key(NamedTuple):
    """A definition at the top level of a module; the empty name is the module itself."""

    module: str
    name: str


@dataclass
class Module:
    """A module without its imports."""

    name: str
    lines: list[str]
    tree: ast.Module
    imported: dict[str, Key] = field(default_factory=dict)
    """Names that mean something of the package."""
    external: dict[str, str] = field(default_factory=dict)
    """Names from elsewhere, with the statement at the top level that imports each."""
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    """The statements at its top level that bind names."""


class Program:
    """Modules of the package and what they import, directly or not, each after what it needs.

    Definitions of ``instead`` take the place of others wherever those are named; so do texts of ``changes``.
    """

    def __init__(
        self, entries: Sequence[str], instead: Mapping[Key, Key], changes: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.modules: dict[str, Module] = {}
        self.instead = instead
        seen: set[str] = set()

        def load(name: str) -> None:
            if name not in seen:
                seen.add(name)
                module = _parse(name, changes.get(name, {}))
                for key in module.imported.values():
                    load(key.module)
                self.modules[name] = module

        for entry in entries:
            load(entry)

    def resolve(self, module: Module, name: str) -> Key | None:
        """The definition that a global name of a module means; None for what is not the package's."""
        key = Key(module.name, name) if name in module.definitions else module.imported.get(name)
        while (
            key is not None and key.name and key.name not in (other := self.modules[key.module]).definitions
        ):
            key = other.imported.get(key.name)
        return None if key is None else self.instead.get(key, key)

    def meaning(self, module: Module, node: ast.AST) -> Key | None:
        """The definition that an expression means: a name, or an attribute of an imported module."""
        if isinstance(node, ast.Name):
            return self.resolve(module, node.id)
        if isinstance(node, ast.Attribute):
            base = self.meaning(module, node.value)
            if base is not None and not base.name:
                return self.resolve(self.modules[base.module], node.attr)
        return None


def _parse(name: str, changes: Mapping[str, str]) -> Module:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert source.count(old) == 1, f"{name}: {old!r} is not there once"
        source = source.replace(old, new)
    module = Module(name, source.splitlines(), ast.parse(source))
    body, module.tree.body = module.tree.body, []
    for statement in body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)) and not is_ours(
            getattr(statement, "module", "")
        ):
            source = ast.unparse(statement).partition("import ")[0]
            for alias in statement.names:
                module.external[bound_name(alias)] = f"{source}import {ast.unparse(alias)}"
        elif not isinstance(statement, ast.If) or "TYPE_CHECKING" not in ast.unparse(statement.test):
            module.tree.body.append(statement)
    _Imports(module).visit(module.tree)
    module.definitions = {name: entry for entry in module.tree.body for name in defined_names(entry)}
    return module


class _Imports(ast.NodeTransformer):
    """Notes what is imported from the package, wherever that is done, and leaves it out."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A block of imports alone becomes an empty one."""
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """``from x import y as z``."""
        if not is_ours(node.module or ""):
            return node
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            key = Key(inner, "") if _is_module(inner) else Key(str(node.module), alias.name)
            known = self.module.imported.setdefault(bound_name(alias), key)
            assert known == key, f"{self.module.name}: {alias.name} means {known} and {key}"
        return None


def is_ours(module: str) -> bool:
    """Whether a module is the package's."""
    return module.partition(".")[0] == PACKAGE


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # What holds it is no package.
        return False


def bound_name(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def defined_names(statement: ast.stmt) -> list[str]:
    """The names that a statement binds, at the top level of a module or in a class."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = getattr(statement, "targets", [getattr(statement, "target", statement)])
    nodes = [node for target in targets for node in evaluated(target)]
    names = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [*names, *(bound_name(node) for node in nodes if isinstance(node, ast.alias))]


def parameters(function: ast.FunctionDef | ast.Lambda) -> list[ast.arg]:
    """The parameters of a function, in any order."""
    return [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything inside but annotations, which nobody evaluates."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                entries = value if isinstance(value, list) else [value]
                stack += [entry for entry in entries if isinstance(entry, ast.AST)]


_ASKS_BY_NAME = ("getattr", "hasattr", "attrgetter", "methodcaller")


class Reached:
    """Everything that is used from a definition on."""

    def __init__(self, program: Program, root: Key) -> None:
        self.program = program
        self.keys: set[Key] = set()
        self.methods: set[tuple[Key, str]] = set()
        self._attributes: set[str] = set()
        self._modules: set[str] = set()
        self._use(root)
        while fresh := list(self._called_methods()):
            for key, method in fresh:
                self.methods.add((key, method.name))
                self._look(program.modules[key.module], method)

    def keep_only(self, module: Module) -> bool:
        """Take everything else out of a module; tells whether anything is left."""
        kept: list[ast.stmt] = []
        is_kept = False  # The text after a definition describes it; that of the module is written elsewhere.
        for statement in module.tree.body if module.name in self._modules else ():
            keys = [Key(module.name, name) for name in defined_names(statement)]
            is_kept = is_kept if is_text(statement) else not keys or any(key in self.keys for key in keys)
            if is_kept:
                kept.append(statement)
            if is_kept and isinstance(statement, ast.ClassDef):
                names = {name for key, name in self.methods if key == keys[0]}
                body = [e for e in statement.body if not isinstance(e, ast.FunctionDef) or e.name in names]
                statement.body = body or [ast.Pass()]
        module.tree.body = kept
        return bool(kept)

    def _use(self, key: Key) -> None:
        if key in self.keys or not key.name:
            return
        self.keys.add(key)
        module = self.program.modules[key.module]
        self._look(module, module.definitions[key.name])
        if module.name in self._modules:
            return
        self._modules.add(module.name)
        for statement in module.tree.body:
            decorators = [getattr(entry, "func", entry) for entry in getattr(statement, "decorator_list", [])]
            if any(self.program.meaning(module, entry) for entry in decorators):
                self._use(Key(module.name, defined_names(statement)[0]))
            elif not defined_names(statement) and not is_text(statement):
                self._look(module, statement)

    def _look(self, module: Module, node: ast.stmt) -> None:
        """See what a definition uses, of a class without its methods."""
        parts: list[ast.AST] = [node]
        if isinstance(node, ast.ClassDef):
            rest = [entry for entry in node.body if not isinstance(entry, ast.FunctionDef)]
            parts = [*node.decorator_list, *node.bases, *node.keywords, *rest]
        for inner in (found for part in parts for found in evaluated(part)):
            if isinstance(inner, ast.Attribute):
                self._attributes.add(inner.attr)
            elif isinstance(inner, ast.Call) and ast.unparse(inner.func).rpartition(".")[2] in _ASKS_BY_NAME:
                self._attributes |= {str(e.value) for e in inner.args if isinstance(e, ast.Constant)}
            if (key := self.program.meaning(module, inner)) is not None:
                self._use(key)

    def _called_methods(self) -> Iterator[tuple[Key, ast.FunctionDef]]:
        for key in self.keys:
            statement = self.program.modules[key.module].definitions[key.name]
            for entry in statement.body if isinstance(statement, ast.ClassDef) else ():
                if not isinstance(entry, ast.FunctionDef) or (key, entry.name) in self.methods:
                    continue
                special = entry.name.startswith("__") and entry.name.endswith("__")
                if special or entry.name in self._attributes or _is_frameworks(key, entry.name):
                    yield key, entry


def _is_frameworks(key: Key, name: str) -> bool:
    """Whether a class has a method of this name from a base that is not the package's."""
    made = getattr(importlib.import_module(key.module), key.name)
    outside = [base for base in getattr(made, "__mro__", ()) if not is_ours(base.__module__)]
    return any(hasattr(base, name) for base in outside)
