"""One self-contained file from the modules that a recipe uses.

    entry.py and what it imports -> names resolved -> the recipe's decisions taken, what is unused left out
    -> one namespace -> train_gpt_readable.py; without texts and layout, compressed -> train_gpt.py

The file computes what the package computes, by the same code; tests/e2e/test_submit.py compares the numbers.
"""

from __future__ import annotations

import ast
import base64
import builtins
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.package import FOLDER, VERSION
from pgolf.runtime.section import Section
from pgolf.submit.fold import fold
from pgolf.submit.minify import minified
from pgolf.submit.program import (
    PACKAGE,
    Key,
    Module,
    Program,
    in_annotation,
    index_definitions,
    is_global,
    load_program,
    mark_scopes,
    walk,
)
from pgolf.submit.reach import keep_only, reach
from pgolf.submit.render import remember, render, write_as
from pgolf.submit.scopes import collect
from pgolf.submit.values import Facts

ENTRY, STANDINS, SECTIONS, RECIPES = (
    f"pgolf.{name}" for name in ("submit.entry", "submit.standins", "submit.sections", "recipe.recipe")
)
KEYS = "pgolf.recipe.sections"
ROOTS = (Key(ENTRY, "main"),)
INSTEAD = {
    Key(RECIPES, "recipe_from_tree"): Key(STANDINS, "recipe_from_tree"),
    Key("pgolf.compress.code_size", "code_bytes"): Key(STANDINS, "code_bytes"),
    Key("pgolf.kernels.cross_entropy", "softcap_cross_entropy"): Key(STANDINS, "softcap_cross_entropy"),
}
_ROUNDS = 30
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
# Modules of other packages that a file may import, and the distribution that has them.
_DISTRIBUTIONS = ("torch", "numpy", "sentencepiece", "zstandard", "constriction", "safetensors")


@dataclass(frozen=True)
class Bundle:
    """A program in one file."""

    readable: str
    packed: bytes
    """The same program as it is counted."""
    requirements: tuple[str, ...]
    """Distributions that it imports."""
    modules: tuple[str, ...]
    """Modules of the package that it has parts of."""


def bundle(recipe: Recipe) -> Bundle:
    """The program that trains, packs and scores a recipe, and no other."""
    program = Program(load_program((SECTIONS, ENTRY), INSTEAD))
    for name in (KEYS, RECIPES):
        remember(program.modules[name].tree, program.modules[name].source)
    _freeze_recipe(program, recipe)
    for module in program.modules.values():
        mark_scopes(module.tree)
        index_definitions(module)
    keep_only(program, reach(program, ROOTS))
    for module in program.modules.values():
        if module.name not in (KEYS, RECIPES):
            remember(module.tree, module.source)
    _fill_in(program, recipe)
    _shrink(program, recipe)
    _drop_keys(program, recipe)
    modules = [module for module in program.modules.values() if module.definitions]
    _one_namespace(program, modules)
    readable = _readable(modules, recipe)
    requirements = tuple(
        name for name in _DISTRIBUTIONS if re.search(rf"^(import|from) {name}\b", readable, re.M)
    )
    return Bundle(readable, packed_form(readable), requirements, tuple(module.name for module in modules))


def packed_form(readable: str) -> bytes:
    """The shortest file that runs a program: its code without texts, compressed, or as it is."""
    bare = minified(readable)
    content = base64.b85encode(lzma.compress(bare.encode(), lzma.FORMAT_RAW, filters=FILTERS)).decode()
    stub = (
        "import lzma as l,base64 as b\n"
        f'exec(compile(l.decompress(b.b85decode("{content}"),3,None,[{{"id":33,"preset":{FILTERS[0]["preset"]}}}]),'
        '"train_gpt_packed.py","exec"))\n'
    )
    return min(stub.encode(), bare.encode(), key=len)


def _shrink(program: Program, recipe: Recipe) -> None:
    """Take the recipe's decisions and leave out what is unused, until nothing changes."""
    facts = Facts(program, recipe, _live_keys(recipe))
    for _ in range(_ROUNDS):
        changed = keep_only(program, reach(program, ROOTS))
        known = collect(facts, ROOTS)
        changed |= (known.attributes, known.parameters) != (facts.attributes, facts.parameters)
        facts = known
        changed |= fold(facts)
        if not changed:
            return
    raise AssertionError("shrinking a program comes to no end")


def _live_keys(recipe: Recipe) -> frozenset[str]:
    """Keys whose values differ at run time from the recipe's."""
    live = {"train.seed"}
    if recipe.qat.enabled and recipe.qat.grid == "export":
        live.add("compress.rounding")  # The grid is chosen for the nearest codes.
    if recipe.compress.low_rank:
        live |= {
            "compress.int8_percentile",
            "compress.int8_scale_floor",
        }  # Corrections are rounded by the defaults.
    return frozenset(live)


def _freeze_recipe(program: Program, recipe: Recipe) -> None:
    """Make the recipe's classes plain frozen ones, and this recipe a constant."""
    for name in (KEYS, RECIPES):
        _freeze_classes(program.modules[name])
    program.modules[RECIPES].imported["Sections"] = Key(KEYS, "Sections")
    standins = program.modules[STANDINS]
    standins.imported["Recipe"] = Key(RECIPES, "Recipe")
    for key in (type(section).__name__ for section in _sections(recipe)):
        standins.imported[key] = Key(KEYS, key)


def _freeze_classes(module: Module) -> None:
    kept: list[ast.stmt] = []
    for statement in module.tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name != "Section":
            if any(
                isinstance(base, ast.Name) and base.id in ("Section", "Sections") for base in statement.bases
            ):
                _freeze_class(statement)
            kept.append(statement)
        elif isinstance(statement, (ast.Expr, ast.Assign, ast.FunctionDef)):
            kept.append(statement)
    module.tree.body = kept
    module.external["dataclass"] = "from dataclasses import dataclass"
    module.imported["Section"] = Key(SECTIONS, "Section")


def _freeze_class(statement: ast.ClassDef) -> None:
    statement.decorator_list = [ast.parse("dataclass(frozen=True)", mode="eval").body]
    body: list[ast.stmt] = []
    for entry in statement.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.value, ast.Call):
            called = ast.unparse(entry.value.func)
            if called == "pydantic.Field":
                entry.value = entry.value.args[0]
        if isinstance(entry, ast.FunctionDef) and any(
            "pydantic" in ast.unparse(d) for d in entry.decorator_list
        ):
            continue
        if not isinstance(entry, ast.Assign):
            body.append(entry)
    statement.body = body


def _sections(section: Section) -> Iterator[Section]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield value
            yield from _sections(value)


def _text_of(section: Section, indent: int = 0) -> str:
    """The expression that makes a section, without defaults, a key a line."""
    lines: list[str] = []
    for name, info in type(section).model_fields.items():
        value: Any = getattr(section, name)
        if value != info.default:
            text = _text_of(value, indent + 4) if isinstance(value, Section) else repr(value)
            lines.append(f"{' ' * (indent + 4)}{name}={text},\n")
    inside = f"\n{''.join(lines)}{' ' * indent}" if lines else ""
    return f"{type(section).__name__}({inside})"


def _fill_in(program: Program, recipe: Recipe) -> None:
    """Put this recipe and this version in."""
    text = _text_of(recipe)
    standins = program.modules[STANDINS]
    statement = standins.definitions["RECIPE"]
    assert isinstance(statement, ast.Assign)
    statement.value = ast.parse(text, mode="eval").body
    write_as(statement.value, text)
    kernels = Path(FOLDER, "kernels", "cross_entropy.py").read_text(encoding="utf-8")
    assert "'''" not in kernels and "\\" not in kernels, "the kernels' text must be writable as one"
    statement = standins.definitions["KERNELS"]
    assert isinstance(statement, ast.Assign)
    statement.value = ast.Constant(kernels)
    write_as(statement.value, f"'''{kernels}'''")
    for module in program.modules.values():
        module.tree = _Version().visit(module.tree)
        mark_scopes(module.tree)


class _Version(ast.NodeTransformer):
    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """``pgolf.__version__`` is a constant."""
        if node.attr == "__version__" and ast.unparse(node.value) == PACKAGE:
            return ast.Constant(VERSION)
        return self.generic_visit(node)


def _drop_keys(program: Program, recipe: Recipe) -> None:
    """Leave out the recipe's keys that nobody reads and that are defaults, with their texts."""
    nodes = [node for other in program.modules.values() for node in walk(other.tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    computed = {  # getattr(compress.bits, group)
        node.args[0].attr
        for node in nodes
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "getattr"
        and isinstance(node.args[0], ast.Attribute)
    }
    for section in (recipe, *_sections(recipe)):
        module = program.modules[RECIPES if section is recipe else KEYS]
        statement = module.definitions.get(type(section).__name__)
        if not isinstance(statement, ast.ClassDef):
            continue
        all_of_it = any(isinstance(getattr(recipe.compress, name, None), type(section)) for name in computed)
        body: list[ast.stmt] = []
        dropped = False
        for entry in statement.body:
            text = isinstance(entry, ast.Expr)
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                name = entry.target.id
                default = getattr(section, name) == type(section).model_fields[name].default
                dropped = default and name not in read and not all_of_it
            elif not text:
                dropped = False
            if not dropped:
                body.append(entry)
        statement.body = body or [ast.Pass()]


def _one_namespace(program: Program, modules: list[Module]) -> None:
    """Rename what has the same name in several modules, or that of something imported or built in."""
    imports: dict[str, str] = {}
    everything = {node.id for module in modules for node in walk(module.tree) if isinstance(node, ast.Name)}
    for module in modules:
        for name in _used_externals(module):
            line = imports.setdefault(name, module.external[name])
            assert line == module.external[name], (
                f"{name} is imported as {line} and as {module.external[name]}"
            )
    taken: set[str] = set()
    names: dict[Key, str] = {}
    for module in modules:
        stem = module.name.rpartition(".")[2]
        for name in module.definitions:
            chosen = name
            if name in taken or name in imports or hasattr(builtins, name):
                # A leading underscore says that a name is of its module alone, which the stem says now.
                chosen = f"{stem.upper() if name.isupper() else stem}_{name.strip('_')}"
                while chosen in taken or chosen in everything:
                    chosen += "_"
            taken.add(chosen)
            names[Key(module.name, name)] = chosen
    for module in modules:
        module.tree = _Renamer(program, module, names).visit(module.tree)


class _Renamer(ast.NodeTransformer):
    def __init__(self, program: Program, module: Module, names: dict[Key, str]) -> None:
        self.program, self.module, self.names = program, module, names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A global name."""
        key = self.program.meaning(self.module, node)
        if key is not None and key in self.names:
            node.id = self.names[key]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A name of a module."""
        key = self.program.meaning(self.module, node)
        if key is not None and key in self.names:
            found = ast.Name(self.names[key], node.ctx)
            found.in_annotation = in_annotation(node)  # type: ignore[attr-defined]
            return found
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A definition at the top level, or what is inside of it."""
        return self._definition(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """As for a function."""
        return self._definition(node)

    def _definition(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if any(owner is node for owner in self.module.definitions.values()):
            node.name = self.names[Key(self.module.name, node.name)]
        return self.generic_visit(node)


def _used_externals(module: Module) -> list[str]:
    """Names from elsewhere that a module uses, sorted."""
    used = {n.id for n in walk(module.tree) if isinstance(n, ast.Name) and is_global(n)}
    return sorted(name for name in module.external if name in used)


def _readable(modules: list[Module], recipe: Recipe) -> str:
    """The text of the file."""
    known = {name for module in modules for name in _names_after(module)} | set(dir(builtins))
    for module in modules:
        _clean_annotations(module, known)
    imports = _import_lines({module.external[name] for module in modules for name in _used_externals(module)})
    parts = [
        f'"""{recipe.name}: a language model in one file, written by `pgolf submit` from pgolf {VERSION}.\n\n'
        "It holds the parts of pgolf that this recipe uses, in an order in which each finds what it needs.\n"
        '"""',
        "from __future__ import annotations",
        "\n".join(imports),
    ]
    for module in modules:
        text = _module_text(module)
        title = module.name.replace(".", "/") + ".py"
        about = [f"# {line}".rstrip() for line in text.splitlines()]
        parts.append("\n".join(["", f"# ==== {title} " + "=" * max(4, 110 - len(title)), *about]))
        body = [
            entry for entry in module.tree.body if not _is_text(entry) or entry is not module.tree.body[0]
        ]
        parts.append(render(ast.Module(body, [])).rstrip())
    parts.append('\nif __name__ == "__main__":\n    main()')
    content = "\n\n".join(parts) + "\n"
    try:
        ast.parse(content)
    except SyntaxError as error:
        raise PgolfError(f"internal: the single file does not parse ({error})") from error
    return content


def _import_lines(statements: set[str]) -> list[str]:
    """Import statements, those from one module together."""
    plain = sorted(line for line in statements if line.startswith("import"))
    names: dict[str, list[str]] = {}
    for line in sorted(statements.difference(plain)):
        source, _, name = line.removeprefix("from ").partition(" import ")
        names.setdefault(source, []).append(name)
    return [*plain, *(f"from {source} import {', '.join(found)}" for source, found in names.items())]


def _is_text(entry: ast.stmt) -> bool:
    return isinstance(entry, ast.Expr) and isinstance(entry.value, ast.Constant)


def _module_text(module: Module) -> str:
    return ast.get_docstring(ast.parse(module.source)) or ""


def _clean_annotations(module: Module, known: set[str]) -> None:
    """Take annotations away that mention what the file does not have."""
    for node in walk(module.tree):
        if not isinstance(node, (ast.arg, ast.AnnAssign, ast.FunctionDef)):
            continue
        for field in ("annotation", "returns"):
            value = getattr(node, field, None)
            if value is None:
                continue
            names = {n.id for n in walk(value) if isinstance(n, ast.Name)} - set(module.external)
            if names <= known:
                continue
            # A data class needs a word there.
            setattr(node, field, ast.Name("object", ast.Load()) if isinstance(node, ast.AnnAssign) else None)


def _names_after(module: Module) -> Iterator[str]:
    for statement in module.tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        for node in walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
