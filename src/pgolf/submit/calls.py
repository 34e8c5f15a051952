"""Who calls what with which arguments: what a parameter is in every call, and whether it is needed."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from pgolf.submit.program import Key, Module, Program, in_annotation
from pgolf.submit.reach import functions_of, is_frameworks
from pgolf.submit.values import Const, Scope, Value, joined


class Calls:
    """All calls of functions whose calls can all be found, and what they pass."""

    def __init__(self, program: Program, roots: Sequence[Key]) -> None:
        self.program = program
        self.functions: dict[Key, tuple[ast.FunctionDef, bool]] = {}
        by_name: dict[str, list[Key]] = {}
        for _, key, function, owner in functions_of(program):
            self.functions[key] = function, owner is not None
            if owner is not None:
                by_name.setdefault(function.name, []).append(key)
        fields = {
            e.target.id
            for c in program.classes().values()
            for e in c.body
            if isinstance(e, ast.AnnAssign) and isinstance(e.target, ast.Name)
        }
        self.methods = {
            name: keys[0]
            for name, keys in by_name.items()
            if len(keys) == 1
            and not name.startswith("__")
            and name not in fields
            and not self._is_frameworks(keys[0], name)
            and not self.functions[keys[0]][0].decorator_list
        }
        self.escaped: set[Key] = set(roots)
        self.passed: dict[Key, list[dict[str, Value]]] = {}
        self.sites: dict[Key, list[ast.Call]] = {}
        self._called: set[int] = set()
        for module in program.modules.values():
            for statement in module.tree.body:
                self._escape_outside(module, statement)

    def _escape_outside(self, module: Module, node: ast.AST) -> None:
        """What is named outside of functions may be called with anything."""
        if isinstance(node, ast.FunctionDef) or in_annotation(node):
            return
        key = self.program.meaning(module, node)
        if key is not None:
            made = self._constructor(key) if isinstance(self.program.definition(key), ast.ClassDef) else key
            self.escaped |= {key} if made is None else {key, made}
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        for child in ast.iter_child_nodes(node):
            if child not in bases:
                self._escape_outside(module, child)

    def _is_frameworks(self, key: Key, name: str) -> bool:
        return is_frameworks(self.program, Key(key.module, key.name.partition(".")[0]), name)

    def see(self, scope: Scope, node: ast.AST, owner: Key | None) -> None:
        """Take a node into account; calls must come before what they call."""
        if in_annotation(node):
            return
        if isinstance(node, ast.Call):
            key = self._target(scope, node.func, owner)
            if key is not None:
                self._called.add(id(node.func))
                self._see_call(scope, node, key)
            return
        if id(node) in self._called:
            return
        key = self._target(scope, node, owner) if isinstance(node, (ast.Name, ast.Attribute)) else None
        if key is not None:
            self.escaped.add(key)

    def _target(self, scope: Scope, node: ast.AST, owner: Key | None) -> Key | None:
        """The function that an expression means, if it is one whose calls are followed."""
        meant = self.program.meaning(scope.module, node)
        if meant is not None:
            if isinstance(self.program.definition(meant), ast.ClassDef):
                return self._constructor(meant)
            return meant if meant in self.functions else None
        if isinstance(node, ast.Attribute):
            if node.attr == "__init__" and owner is not None:
                above = self.program.ancestors(owner)[1:]
                return next((c for key in above if (c := self._constructor(key))), None)
            return self.methods.get(node.attr)
        return None

    def _constructor(self, key: Key) -> Key | None:
        for above in self.program.ancestors(key):
            made = Key(above.module, f"{above.name}.__init__")
            if made in self.functions:
                return made
        return None

    def _see_call(self, scope: Scope, node: ast.Call, key: Key) -> None:
        function, is_method = self.functions[key]
        bound = bind(node, function, is_method)
        if bound is None:
            self.escaped.add(key)
            return
        values = {name: scope.value(value) for name, value in bound.items()}
        defaults = default_values(function)
        for name in parameter_names(function)[is_method:]:
            if name not in values:
                values[name] = scope.value(defaults[name]) if name in defaults else None
        self.passed.setdefault(key, []).append(values)
        self.sites.setdefault(key, []).append(node)

    def parameters(self) -> dict[tuple[Key, str], Value]:
        """What each parameter always is, as far as known."""
        known: dict[tuple[Key, str], Value] = {}
        for key, calls in self.passed.items():
            function = self.functions[key][0]
            if (
                key in self.escaped
                or function.args.vararg
                or function.args.kwarg
                or function.args.posonlyargs
            ):
                continue
            for name in calls[0]:
                value = joined([call[name] for call in calls])
                if isinstance(value, Const):
                    known[key, name] = value
        return known


def parameter_names(function: ast.FunctionDef) -> list[str]:
    """Names of the parameters, in order."""
    return [argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]]


def default_values(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """The parameters that have defaults, with them."""
    arguments = function.args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    found = dict(zip([argument.arg for argument in positional], arguments.defaults, strict=True))
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if value is not None:
            found[argument.arg] = value
    return found


def bind(node: ast.Call, function: ast.FunctionDef, is_method: bool) -> dict[str, ast.expr] | None:
    """The arguments of a call by parameter; None if they cannot be told or do not fit."""
    positional = [argument.arg for argument in function.args.args][is_method:]
    if any(isinstance(argument, ast.Starred) for argument in node.args) or len(node.args) > len(positional):
        return None
    bound = dict(zip(positional, node.args, strict=False))
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg not in parameter_names(function):
            return None
        bound[keyword.arg] = keyword.value
    return bound
