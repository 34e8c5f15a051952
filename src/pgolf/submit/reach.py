"""What of a program can be reached from its entry: definitions, and methods of classes.

A method counts as reached if its class is and reached code names an attribute like it, or asks for its name
(Bacon and Sweeney 1996, rapid type analysis, by name alone). What a base class from elsewhere has may be
called by that, and special methods by Python. Where a module is reached, so are its statements that define
nothing, and definitions with a decorator of the package, which may register them.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator

from pgolf.submit.program import Key, Module, Program, defined_names, evaluated, is_ours, is_text

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
