"""A program as the syntax trees of its modules, with every global name resolved to the definition it means.

Names are found by scope: a ``Name`` node that no enclosing function binds is global, and means a definition
of its own module, one imported from another module of the package, something imported from elsewhere, or a
builtin.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PACKAGE = "pgolf"
Functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Key(NamedTuple):
    """A definition: a name at the top level of a module; the empty name is the module itself."""

    module: str
    name: str


@dataclass
class Module:
    """One module's tree and what its names mean."""

    name: str
    source: str
    tree: ast.Module
    imported: dict[str, Key] = field(default_factory=dict)
    """Names that mean something of the package."""
    external: dict[str, str] = field(default_factory=dict)
    """Names that mean something else, with the statement that imports it."""
    needs: list[str] = field(default_factory=list)
    """Modules of the package that must be there before this one runs."""

    def __post_init__(self) -> None:
        self.definitions: dict[str, ast.stmt] = {}


def load_program(entries: Sequence[str], instead: Mapping[Key, Key]) -> dict[str, Module]:
    """Modules and what they import, directly or not, in an order in which each finds what it needs.

    Args:
        entries: names of modules of the package.
        instead: definitions to be replaced by others, wherever they are imported.
    """
    modules: dict[str, Module] = {}
    order: dict[str, Module] = {}

    def load(name: str) -> None:
        if name in modules:
            return
        module = modules[name] = _parse(name, instead)
        for needed in module.needs:
            load(needed)
        order[name] = module
        for key in list(module.imported.values()):
            load(key.module)

    for entry in entries:
        load(entry)
    return order


def _parse(name: str, instead: Mapping[Key, Key]) -> Module:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    module = Module(name, source, ast.parse(source))
    _Imports(module, instead).visit(module.tree)
    index_definitions(module)
    return module


def index_definitions(module: Module) -> None:
    """Note what a module defines at its top level."""
    module.definitions = {
        name: statement for statement in module.tree.body for name in defined_names(statement)
    }


def defined_names(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top level of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return sorted(name for target in targets if target is not None for name in _stored(target))


def _stored(node: ast.AST) -> set[str]:
    return {
        entry.id for entry in walk(node) if isinstance(entry, ast.Name) and isinstance(entry.ctx, ast.Store)
    }


class _Imports(ast.NodeTransformer):
    """Takes import statements out of a tree and notes what they bind."""

    def __init__(self, module: Module, instead: Mapping[Key, Key]) -> None:
        self.module, self.instead = module, instead
        self.depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Imports inside functions are only run with them."""
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """What is imported for type checkers is not needed at run time."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self.depth += 1
            self.generic_visit(node)
            self.depth -= 1
            return None
        self.generic_visit(node)
        return node

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        """``import x.y as z``."""
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            if alias.name == PACKAGE:
                self.module.imported[bound] = Key(PACKAGE, "")
            else:
                self.module.external[bound] = ast.unparse(ast.Import([alias]))
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """``from x import y as z``."""
        source = node.module or ""
        if source == "__future__":
            return None
        for alias in node.names:
            bound = alias.asname or alias.name
            if source.partition(".")[0] != PACKAGE:
                self.module.external[bound] = ast.unparse(ast.ImportFrom(source, [alias], 0))
                continue
            key = Key(source, alias.name)
            key = self.instead.get(key, key)
            if importlib.util.find_spec(source) and _is_module(f"{source}.{alias.name}"):
                key = Key(f"{source}.{alias.name}", "")
            known = self.module.imported.setdefault(bound, key)
            assert known == key, f"{self.module.name}: {bound} means {known} and {key}"
            if not self.depth and key.module not in self.module.needs:
                self.module.needs.append(key.module)
        return None


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, AttributeError):
        return False


class Program:
    """Modules whose names can be asked for."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules

    def resolve(self, module: Module, name: str) -> Key | None:
        """The definition that a global name of a module means; None for what is not the package's."""
        if name in module.definitions:
            return Key(module.name, name)
        key = module.imported.get(name)
        if key is None or not key.name or key.module not in self.modules:
            return key
        other = self.modules[key.module]
        if key.name in other.definitions:
            return key
        return self.resolve(other, key.name)

    def meaning(self, module: Module, node: ast.AST) -> Key | None:
        """The definition that an expression means: a global name, or a name of an imported module."""
        if isinstance(node, ast.Name) and is_global(node):
            return self.resolve(module, node.id)
        if isinstance(node, ast.Attribute):
            base = self.meaning(module, node.value)
            if base is not None and not base.name and base.module in self.modules:
                return self.resolve(self.modules[base.module], node.attr)
        return None

    def definition(self, key: Key) -> ast.stmt | None:
        """The statement that a key stands for."""
        module = self.modules.get(key.module)
        return None if module is None else module.definitions.get(key.name)

    def classes(self) -> dict[Key, ast.ClassDef]:
        """All classes at the top level."""
        return {
            Key(module.name, name): statement
            for module in self.modules.values()
            for name, statement in module.definitions.items()
            if isinstance(statement, ast.ClassDef)
        }

    def ancestors(self, key: Key) -> list[Key]:
        """A class of the package and its ancestors in the package, nearest first."""
        found, statement = [key], self.definition(key)
        if isinstance(statement, ast.ClassDef):
            for base in statement.bases:
                above = self.meaning(self.modules[key.module], base)
                if above is not None:
                    found += self.ancestors(above)
        return found


def is_global(node: ast.Name) -> bool:
    """Whether no function around a name binds it; ``mark_scopes`` must have been there."""
    return bool(getattr(node, "is_global", False))


def in_annotation(node: ast.AST) -> bool:
    """Whether a node is part of an annotation, which nobody evaluates."""
    return bool(getattr(node, "in_annotation", False))


def children_of(node: ast.AST) -> list[ast.AST]:
    """The nodes right inside of a node; faster than ``ast.iter_child_nodes``."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            if not isinstance(value, (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)):
                found.append(value)
        elif isinstance(value, list):
            found += [entry for entry in value if isinstance(entry, ast.AST)]
    return found


def walk(node: ast.AST) -> list[ast.AST]:
    """A node and everything inside, as ``ast.walk`` gives it, but faster."""
    found, at = [node], 0
    while at < len(found):
        found += children_of(found[at])
        at += 1
    return found


def mark_scopes(tree: ast.Module) -> None:
    """Mark every ``Name`` of a module as global or not, and every node of an annotation as such."""
    for statement in tree.body:
        _mark(statement, (), False)


def _mark(node: ast.AST, bound: tuple[frozenset[str], ...], annotation: bool) -> None:
    node.in_annotation = annotation  # type: ignore[attr-defined]
    if isinstance(node, ast.Name):
        node.is_global = not any(node.id in names for names in bound)  # type: ignore[attr-defined]
        return
    if isinstance(node, Functions):
        inner = (*bound, frozenset(_bound_names(node)))
        for name, child in _fields(node):
            if name == "args":
                _mark_arguments(child, bound)  # type: ignore[arg-type]
            else:
                _mark(child, inner if name == "body" else bound, annotation or name == "returns")
        return
    if isinstance(node, ast.ClassDef):
        own = (*bound, frozenset(_bound_names(node)))
        for name, child in _fields(node):
            direct = name == "body" and not isinstance(child, Functions)
            _mark(child, own if direct else bound, annotation)
        return
    if isinstance(node, _Comprehensions):
        targets = {name for part in node.generators for name in _stored(part.target)}
        bound = (*bound, frozenset(targets))
    for name, child in _fields(node):
        _mark(child, bound, annotation or (isinstance(node, ast.AnnAssign) and name == "annotation"))


def _mark_arguments(arguments: ast.arguments, bound: tuple[frozenset[str], ...]) -> None:
    for child in ast.iter_child_nodes(arguments):
        if isinstance(child, ast.arg):
            child.in_annotation = False  # type: ignore[attr-defined]
            if child.annotation is not None:
                _mark(child.annotation, bound, True)
        else:
            _mark(child, bound, False)


def _fields(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield name, child


def _bound_names(node: ast.AST) -> set[str]:
    """What a function or class binds itself, nested functions and comprehensions left out."""
    names: set[str] = set()
    if isinstance(node, Functions):
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        names |= {argument.arg for argument in every if argument is not None}
    body = node.body  # type: ignore[attr-defined]
    stack = list(body) if isinstance(body, list) else [body]
    outside: set[str] = set()
    while stack:
        entry = stack.pop()
        if isinstance(entry, (ast.FunctionDef, ast.ClassDef)):
            names.add(entry.name)
            continue
        if isinstance(entry, (ast.Lambda, *_Comprehensions)):
            continue
        if isinstance(entry, ast.Global):
            outside.update(entry.names)
        if isinstance(entry, ast.ExceptHandler) and entry.name:
            names.add(entry.name)
        if isinstance(entry, ast.Name) and isinstance(entry.ctx, ast.Store):
            names.add(entry.id)
        stack += list(ast.iter_child_nodes(entry))
    return names - outside
