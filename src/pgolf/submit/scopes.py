"""What is known of a program before anything is left out: names in each scope, attributes, parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import cast

from pgolf.submit.calls import Calls
from pgolf.submit.program import Functions, Key, Module, children_of, walk
from pgolf.submit.reach import functions_of
from pgolf.submit.values import Const, Facts, Instance, Scope, Value, joined


def collect(facts: Facts, roots: Sequence[Key]) -> Facts:
    """What is known of attributes and parameters, given what was known of them before."""
    found = Facts(facts.program, facts.recipe, facts.live)
    stores: dict[tuple[Key, str], list[Value]] = {}
    foreign: set[str] = set()
    calls = Calls(facts.program, roots)
    for module, key, function, owner in functions_of(facts.program):
        for scope, node in each_scope(facts, module, key, function, owner):
            calls.see(scope, node, owner)
            _see_stores(scope, node, owner, stores, foreign)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                base = scope.value(node.value)
                of = base.of if isinstance(base, Instance) else None
                found.read.setdefault(node.attr, set()).add(of)
    for key, statement in facts.program.classes().items():
        module = facts.program.modules[key.module]
        for entry in statement.body:
            if (
                isinstance(entry, ast.AnnAssign)
                and isinstance(entry.target, ast.Name)
                and key.module != "pgolf.recipe.recipe"
            ):
                known = facts.of_annotation(module, entry.annotation)
                stores.setdefault((key, entry.target.id), []).append(known)
            elif isinstance(entry, ast.Assign):
                for target in entry.targets:
                    if isinstance(target, ast.Name):
                        stores.setdefault((key, target.id), []).append(
                            Scope(facts, module, {}).value(entry.value)
                        )
    families = {key: facts.program.ancestors(key) for key in facts.program.classes()}
    for key, name in stores:
        # A subclass, or what it descends from, may store something else.
        related = [
            v
            for (other, n), v in stores.items()
            if n == name and (key in families[other] or other in families[key])
        ]
        value = joined([entry for part in related for entry in part])
        found.attributes[key, name] = None if name in foreign else value
    found.parameters = calls.parameters()
    found.calls = calls
    return found


def each_scope(
    facts: Facts, module: Module, key: Key, function: ast.FunctionDef, owner: Key | None
) -> Iterator[tuple[Scope, ast.AST]]:
    """Every node of a function with the scope that it is in; calls come before what they call."""
    stack: list[tuple[Scope, ast.AST]] = [(scope_of(facts, module, key, function, owner, None), function)]
    while stack:
        scope, node = stack.pop()
        children = children_of(node)
        for child in children:
            yield scope, child
            inner = (
                scope_of(facts, module, key, child, None, scope) if isinstance(child, Functions) else scope
            )
            stack.append((inner, child))


def scope_of(
    facts: Facts, module: Module, key: Key, function: ast.AST, owner: Key | None, around: Scope | None
) -> Scope:
    """The names that a function binds: parameters, and names that are assigned once."""
    names: dict[str, Value | ast.expr] = {}
    arguments = cast(ast.FunctionDef, function).args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    stored: dict[str, int] = {}
    body = cast(ast.FunctionDef, function).body
    nodes = [entry for part in (body if isinstance(body, list) else [body]) for entry in _own_nodes(part)]
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            stored[node.id] = stored.get(node.id, 0) + 1
            names[node.id] = None
        elif isinstance(node, (ast.ExceptHandler, ast.FunctionDef, ast.ClassDef)):
            names[node.name or ""] = None
        elif isinstance(node, ast.Nonlocal):
            stored |= dict.fromkeys(node.names, 2)
    for node in nodes:
        for target, assigned in assigned_pairs(node):
            if isinstance(target, ast.Name) and stored.get(target.id) == 1:
                names[target.id] = assigned
    changed_inside = {
        name
        for node in nodes
        if isinstance(node, Functions)
        for entry in walk(node)
        if isinstance(entry, ast.Nonlocal)
        for name in entry.names
    }
    for place, argument in enumerate(every):
        value: Value = facts.of_annotation(module, argument.annotation)
        if around is None and (key, argument.arg) in facts.parameters:
            known = facts.parameters[key, argument.arg]
            value = known if isinstance(known, Const) else value
        if owner is not None and place == 0:
            value = Instance(owner)
        names[argument.arg] = None if argument.arg in stored else value
    for rest in (arguments.vararg, arguments.kwarg):
        if rest is not None:
            names[rest.arg] = None
    return Scope(facts, module, names | dict.fromkeys(changed_inside), around)


def _own_nodes(node: ast.AST) -> list[ast.AST]:
    """The nodes of a function's body; what is inside of other functions is left out."""
    found, at = [node], 0
    while at < len(found):
        if not isinstance(found[at], (*Functions, ast.ClassDef)):
            found += children_of(found[at])
        at += 1
    return found


def assigned_pairs(node: ast.AST) -> list[tuple[ast.AST, ast.expr]]:
    """What an assignment assigns to what, part by part."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return [(node.target, node.value)]
    if not isinstance(node, ast.Assign):
        return []
    found: list[tuple[ast.AST, ast.expr]] = []
    for target in node.targets:
        if (
            isinstance(target, ast.Tuple)
            and isinstance(node.value, ast.Tuple)
            and len(target.elts) == len(node.value.elts)
        ):
            found += zip(target.elts, node.value.elts, strict=True)
        else:
            found.append((target, node.value))
    return found


def _see_stores(
    scope: Scope,
    node: ast.AST,
    owner: Key | None,
    stores: dict[tuple[Key, str], list[Value]],
    foreign: set[str],
) -> None:
    if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.withitem)):
        return
    known = {id(target): value for target, value in assigned_pairs(node)}
    single = node.optional_vars if isinstance(node, ast.withitem) else getattr(node, "target", None)
    targets = node.targets if isinstance(node, ast.Assign) else [single]
    for target in (entry for part in targets if part is not None for entry in walk(part)):
        if not isinstance(target, ast.Attribute) or not isinstance(target.ctx, ast.Store):
            continue
        if owner is None or not isinstance(target.value, ast.Name) or target.value.id != "self":
            foreign.add(target.attr)
            continue
        value = scope.value(known[id(target)]) if id(target) in known else None
        if isinstance(node, ast.AnnAssign) and value is None:
            value = scope.facts.of_annotation(scope.module, node.annotation)
        stores.setdefault((owner, target.attr), []).append(value)
