"""Decide what a recipe decides: conditions that are known become their branch, and the rest of them is left
out.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import cast

from pgolf.submit.calls import Calls, bind, parameter_names
from pgolf.submit.program import Key, Module, is_global, walk
from pgolf.submit.reach import functions_of, is_frameworks
from pgolf.submit.scopes import assigned_pairs, scope_of
from pgolf.submit.values import Const, Facts, Instance, Scope, same

_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def fold(facts: Facts) -> bool:
    """Apply what is known; tells whether anything changed."""
    changed = False
    for module, key, function, owner in functions_of(facts.program):
        folder = Folder(facts, module, key, owner)
        folder.function(function, None)
        changed |= folder.changed
    changed |= drop_parameters(facts)
    return changed


class Folder(ast.NodeTransformer):
    """Rewrites one function."""

    def __init__(self, facts: Facts, module: Module, key: Key, owner: Key | None) -> None:
        self.facts, self.module, self.key, self.owner = facts, module, key, owner
        self.changed = False
        self.scope: Scope

    def function(self, node: ast.AST, around: Scope | None) -> None:
        """Rewrite a function's body in place."""
        outer = getattr(self, "scope", None)
        self.scope = scope_of(
            self.facts, self.module, self.key, node, self.owner if around is None else None, around
        )
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            inside = cast(ast.FunctionDef, node)
            inside.body = self.block(inside.body) or [ast.Pass()]
            self._drop_unread_names(inside)
        if outer is not None:
            self.scope = outer

    def block(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """Rewrite statements; what follows one that leaves the block is left out."""
        kept: list[ast.stmt] = []
        answered: set[str] = set()
        for statement in statements:
            found = self.visit(statement)
            for entry in found if isinstance(found, list) else [found] if found is not None else []:
                if isinstance(entry, ast.If) and not entry.orelse and isinstance(entry.body[-1], _ENDS):
                    # The same question as before, which was answered by leaving.
                    if ast.dump(entry.test) in answered:
                        self.changed = True
                        continue
                    answered.add(ast.dump(entry.test))
                elif not isinstance(entry, ast.If):
                    answered.clear()
                kept.append(entry)
                if isinstance(entry, _ENDS):
                    self.changed |= statement is not statements[-1]
                    return kept
        return kept

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Blocks are rewritten as such."""
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                block = self.block(value)
                setattr(node, name, block if block or name in ("orelse", "finalbody") else [ast.Pass()])
            elif isinstance(value, list):
                value[:] = [self.visit(entry) if isinstance(entry, ast.AST) else entry for entry in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function inside."""
        self.function(node, self.scope)
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """As a function inside."""
        self.function(node, self.scope)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        """A known condition leaves its branch."""
        truth = self.scope.truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        self.changed = True
        return self.block(node.body if truth else node.orelse)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """What is kept in an attribute that nobody reads is left out."""
        if all(map(self._is_unread, node.targets)) and self._is_plain(node.value):
            self.changed = True
            return None
        return self.generic_visit(node)

    def _is_unread(self, target: ast.expr) -> bool:
        if self.owner is None or not isinstance(target, ast.Attribute) or ast.unparse(target.value) != "self":
            return False
        related = self.facts.program.ancestors(self.owner)
        for reader in self.facts.read.get(target.attr, ()):
            if reader is None or reader in related or self.owner in self.facts.program.ancestors(reader):
                return False
        return True

    def _is_plain(self, node: ast.expr) -> bool:
        """Whether a value can be left out: a constant, or an object of ours that no framework looks for."""
        value = self.scope.value(node)
        if isinstance(node, ast.Constant):
            return True
        if (
            not isinstance(value, Instance)
            or value.of is None
            or (isinstance(node, ast.Call) and (node.args or node.keywords))
        ):
            return False
        return isinstance(node, (ast.Name, ast.Attribute, ast.Call)) and not is_frameworks(
            self.facts.program, value.of, "forward"
        )

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """A known condition leaves its value."""
        truth = self.scope.truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        self.changed = True
        return cast(ast.AST, self.visit(node.body if truth else node.orelse))

    def visit_Assert(self, node: ast.Assert) -> ast.AST | None:
        """What is known to be true needs no assertion."""
        if self.scope.truth(node.test):
            self.changed = True
            return None
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Known parts are left out, or decide."""
        whole = self.scope.value(node)
        if isinstance(whole, Const) and isinstance(whole.value, bool):
            return self._constant(whole.value)
        stops = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for entry in node.values:
            truth = self.scope.truth(entry)
            neutral = truth is not None and truth is not stops
            if entry is node.values[-1]:
                # Only True and False may go: of anything else the value itself may be wanted.
                value = self.scope.value(entry)
                neutral = (
                    neutral and bool(kept) and isinstance(value, Const) and isinstance(value.value, bool)
                )
            if not neutral:
                kept.append(entry)
            if truth is stops:
                break
        if len(kept) == len(node.values):
            return self.generic_visit(node)
        self.changed = True
        if len(kept) == 1:
            return cast(ast.AST, self.visit(kept[0]))
        node.values = kept
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """A known comparison is True or False."""
        value = self.scope.value(node)
        return self._constant(value.value) if isinstance(value, Const) else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A parameter that is always the same."""
        scope: Scope | None = self.scope
        while scope is not None and node.id not in scope.names:
            scope = scope.around
        if scope is None or scope.around is not None or not isinstance(node.ctx, ast.Load) or is_global(node):
            return node
        known = self.facts.parameters.get((self.key, node.id))
        if (
            isinstance(known, Const)
            and same(scope.local(node.id), known)
            and not isinstance(known.value, tuple)
        ):
            return self._constant(known.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """An entry of a table at the top level of a module."""
        key = self.facts.program.meaning(self.module, node.value)
        statement = None if key is None else self.facts.program.definition(key)
        index = self.scope.value(node.slice)
        table = getattr(statement, "value", None)
        if isinstance(table, ast.Dict) and isinstance(index, Const):
            for name, value in zip(table.keys, table.values, strict=True):
                if (
                    isinstance(name, ast.Constant)
                    and name.value == index.value
                    and isinstance(value, ast.Name)
                ):
                    meant = (
                        self.facts.program.meaning(self.facts.program.modules[key.module], value)
                        if key
                        else None
                    )
                    if meant is not None:
                        self.changed = True
                        return self._name_of(meant)
        return self.generic_visit(node)

    def _name_of(self, key: Key) -> ast.Name:
        known = self.module.imported.setdefault(key.name, key)
        assert known == key or key.module == self.module.name
        name = ast.Name(key.name, ast.Load())
        name.is_global = True  # type: ignore[attr-defined]
        return name

    def _constant(self, value: object) -> ast.Constant:
        self.changed = True
        return ast.Constant(value)  # type: ignore[arg-type]

    def _drop_unread_names(self, function: ast.FunctionDef) -> None:
        """Leave out assignments of constants to names that nobody reads."""
        nodes = list(walk(function))
        read = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
        read |= {name for n in nodes if isinstance(n, ast.Nonlocal) for name in n.names}

        def unread(entry: ast.stmt) -> bool:
            return isinstance(entry, ast.Assign) and all(
                isinstance(target, ast.Name)
                and target.id not in read
                and isinstance(value, (ast.Constant, ast.Name, ast.Attribute))
                for target, value in assigned_pairs(entry)
            )

        for node in nodes:
            body = getattr(node, "body", None)
            if isinstance(body, list) and any(map(unread, body)):
                self.changed = True
                node.body = [entry for entry in body if not unread(entry)] or [ast.Pass()]  # type: ignore[attr-defined]


def drop_parameters(facts: Facts) -> bool:
    """Take parameters that nobody reads, such as those that are always the same, out of signatures and calls."""
    calls = facts.calls
    assert isinstance(calls, Calls)
    changed = False
    for key, sites in calls.sites.items():
        function, is_method = calls.functions[key]
        if key in calls.escaped or function.args.vararg or function.args.kwarg:
            continue
        used = {node.id for part in function.body for node in walk(part) if isinstance(node, ast.Name)}
        for name in parameter_names(function)[is_method:]:
            bound = [(bind(site, function, is_method) or {}).get(name) for site in sites]
            # What is passed must do nothing but be passed.
            plain = all(
                value is None or isinstance(value, (ast.Constant, ast.Name, ast.Attribute)) for value in bound
            )
            if name in used or not plain:
                continue
            for site in sites:
                _drop_argument(site, function, is_method, name)
            _drop_parameter(function, name)
            changed = True
    return changed


def _drop_argument(site: ast.Call, function: ast.FunctionDef, is_method: bool, name: str) -> None:
    site.keywords = [keyword for keyword in site.keywords if keyword.arg != name]
    positional = [argument.arg for argument in function.args.args][is_method:]
    if name in positional and positional.index(name) < len(site.args):
        del site.args[positional.index(name)]


def _drop_parameter(function: ast.FunctionDef, name: str) -> None:
    arguments = function.args
    for place, argument in enumerate(arguments.args):
        if argument.arg == name:
            default = place - (len(arguments.args) - len(arguments.defaults))
            if default >= 0:
                del arguments.defaults[default]
            del arguments.args[place]
            return
    place = [argument.arg for argument in arguments.kwonlyargs].index(name)
    del arguments.kwonlyargs[place], arguments.kw_defaults[place]
