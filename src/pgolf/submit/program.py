"""A program as the syntax trees of its modules: what each of them defines, and what its names mean."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
    """Its text."""
    tree: ast.Module
    imported: dict[str, Key] = field(default_factory=dict)
    """Names that mean something of the package."""
    external: dict[str, str] = field(default_factory=dict)
    """Names from elsewhere, with the statement at the top level that imports each."""
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    """The statements at its top level that bind names."""


class Program:
    """Modules and what they import, directly or not, in an order in which each finds what it needs.

    Args:
        entries: modules of the package.
        instead: definitions that others take the place of, wherever they are named.
        changes: by module, texts that others take the place of.
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


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else."""
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything inside but annotations, which nobody evaluates."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                stack += [
                    e for e in (value if isinstance(value, list) else [value]) if isinstance(e, ast.AST)
                ]
