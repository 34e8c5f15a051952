"""One self-contained file from the modules that a recipe uses.

    entry.py and what it imports -> the definitions that it reaches -> one namespace
    -> train_gpt_readable.py; minified and compressed -> train_gpt.py

The file computes what the package computes, by the same code; tests/e2e/test_submit.py compares the numbers.
"""

from __future__ import annotations

import ast
import base64
import builtins
import functools
import importlib
import lzma
import re
import symtable
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import python_minifier

from pgolf.compress.code_size import FILTERS
from pgolf.recipe.recipe import Recipe
from pgolf.recipe.sections import Section
from pgolf.runtime.environment import FOLDER, VERSION
from pgolf.submit.namespace import one_namespace, text_of
from pgolf.submit.program import Key, Module, Program, Reached, defined_names

ENTRY, STANDINS, SECTIONS = (f"pgolf.submit.{name}" for name in ("entry", "standins", "sections"))
INSTEAD = {
    Key(Section.__module__, "Section"): Key(SECTIONS, "Section"),
    Key("pgolf.recipe.recipe", "recipe_from_tree"): Key(STANDINS, "recipe_from_tree"),
    Key("pgolf.compress.code_size", "code_bytes"): Key(STANDINS, "code_bytes"),
    Key("pgolf.kernels.cross_entropy", "softcap_cross_entropy"): Key(STANDINS, "softcap_cross_entropy"),
    Key("pgolf.train.checkpoint", "save_checkpoint"): Key(STANDINS, "nothing"),
    Key("pgolf.train.checkpoint", "load_checkpoint"): Key(STANDINS, "nothing"),
    Key("pgolf.train.trackers", "trackers"): Key(STANDINS, "nothing"),
    Key("pgolf.data.tokenizer_kinds", "other_kind"): Key(STANDINS, "nothing"),
}
# Where the memory's code is called, if the recipe has one.
_MEMORY = (
    Key("pgolf.evaluate.memory_scorer", "MemoryScorer"),
    Key("pgolf.memory.stored", "read_start"),
    Key("pgolf.runs.stored_text", "with_memory"),
)
# Modules of other packages that a file may import, and the distribution that has them.
_DISTRIBUTIONS = ("torch", "numpy", "sentencepiece", "zstandard", "safetensors", "numba")


@dataclass(frozen=True)
class Bundle:
    """A program in one file."""

    readable: str
    source: str
    """The same without what nobody runs."""
    requirements: tuple[str, ...]
    """Distributions that it imports."""
    modules: tuple[str, ...]
    """Modules of the package that it has parts of."""

    @functools.cached_property
    def packed(self) -> bytes:
        """The same program as it is counted."""
        return packed_form(self.source)


def bundle(recipe: Recipe) -> Bundle:
    """The program that trains, packs and scores a recipe; it has the memory's code where that is enabled."""
    without = {} if recipe.memory.enabled else dict.fromkeys(_MEMORY, Key(STANDINS, "nothing"))
    program = Program((SECTIONS, ENTRY), INSTEAD | without, {STANDINS: _constants(recipe)})
    about = f"{recipe.name}: a language model in one file, written by `pgolf submit` from pgolf {VERSION}."
    return one_file(program, Key(ENTRY, "main"), about, 'if __name__ == "__main__":\n    main()\n')


def one_file(program: Program, root: Key, about: str, end: str = "") -> Bundle:
    """What a definition of a program reaches, in one file that begins with a line ``about`` it."""
    for module in program.modules.values():
        _make_plain(module)
    reached = Reached(program, root)
    modules = [module for module in program.modules.values() if reached.keep_only(module)]
    head = "from __future__ import annotations\n\n" + one_namespace(program, modules)
    body = "\n\n\n".join([*map(text_of, modules), end]).rstrip() + "\n"
    readable = (
        f'"""{about}\n\n'
        "It holds the parts of pgolf that are needed, in an order in which each finds what it needs.\n"
        f'"""\n\n{head}\n{_named_types(head + body)}\n{body}'
    )
    _check_names(readable)
    requirements = tuple(n for n in _DISTRIBUTIONS if re.search(rf"^(import|from) {n}\b", head, re.M))
    names = tuple(module.name for module in modules)
    return Bundle(readable, f"{head}\n{body}", requirements, names)


def _sections(section: Section) -> Iterator[Section]:
    """A section and those inside of it."""
    yield section
    for name in type(section).model_fields:
        if isinstance(value := getattr(section, name), Section):
            yield from _sections(value)


def _constants(recipe: Recipe) -> dict[str, str]:
    """What takes the place of the constants of ``standins.py``."""
    kernels = Path(FOLDER, "kernels", "cross_entropy.py").read_text(encoding="utf-8")
    assert "'''" not in kernels and "\\" not in kernels, "the kernels' text must be writable as one"
    kinds = {type(section): section for section in _sections(recipe)}
    imports = "".join(f"from {kind.__module__} import {kind.__name__}\n" for kind in kinds)
    return {
        "from pgolf.recipe.recipe import Recipe\n": imports,
        "RECIPE = Recipe()": f"RECIPE = {_expression(recipe)}",
        'KERNELS = ""': f"KERNELS = '''{kernels}'''",
    }


def _expression(value: Any, indent: int = 0) -> str:
    """The expression that makes a value; of a section without defaults, a key a line."""
    if not isinstance(value, Section):
        return repr(value)
    lines: list[str] = []
    for name, info in type(value).model_fields.items():
        if (entry := getattr(value, name)) != info.default:
            lines.append(f"{' ' * (indent + 4)}{name}={_expression(entry, indent + 4)},\n")
    inside = f"\n{''.join(lines)}{' ' * indent}" if lines else ""
    return f"{type(value).__name__}({inside})"


def _make_plain(module: Module) -> None:
    """Make the recipe's sections that a module defines frozen data classes, whose values nobody checks."""
    for statement in module.tree.body:
        if not isinstance(statement, ast.ClassDef):
            continue
        made = getattr(importlib.import_module(module.name), statement.name)
        if not issubclass(made, Section):
            continue
        statement.decorator_list = [ast.parse("dataclass(frozen=True)", mode="eval").body]
        module.external["dataclass"] = "from dataclasses import dataclass"
        body: list[ast.stmt] = []
        for entry in statement.body:
            field = made.model_fields.get(ast.unparse(getattr(entry, "target", entry)))
            if isinstance(entry, ast.AnnAssign) and field is not None and not field.is_required():
                default = _expression(field.get_default(call_default_factory=True))
                entry.value = ast.parse(default, mode="eval").body
            names = [name.id for part in getattr(entry, "decorator_list", []) for name in _names_in(part)]
            is_check = any("pydantic" in module.external.get(name, "") for name in names)
            if not is_check and "model_config" not in defined_names(entry):
                body.append(entry)
        statement.body = body or [ast.Pass()]


def _names_in(node: ast.AST) -> Iterator[ast.Name]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))


def _named_types(text: str) -> str:
    """A line that says what names are that annotations mention and nothing else uses."""
    tree = ast.parse(text)
    parts = [getattr(n, name, None) for n in ast.walk(tree) for name in ("annotation", "returns")]
    named = {name.id for part in parts if part is not None for name in _names_in(part)}
    defined = {name for statement in tree.body for name in defined_names(statement)} | set(dir(builtins))
    lines = textwrap.wrap(" ".join(sorted(named - defined)), 80)
    types = "".join(f"{' = '.join(line.split())} = object\n" for line in lines)
    return f"\n# Types that annotations name, and nothing else.\n{types}" if types else ""


def _check_names(text: str) -> None:
    """See that every global name is defined."""
    top = symtable.symtable(text, "train_gpt_readable.py", "exec")
    tables, used = [top], set()
    for table in tables:
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    defined = {name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()}
    missing = used - defined - set(dir(builtins)) - {"__name__", "__file__"}
    assert not missing, f"the single file does not define {', '.join(sorted(missing))}"


def packed_form(source: str, keep: Sequence[str] = ()) -> bytes:
    """The shortest file that runs a program: minified and compressed, or as it is; names in ``keep`` stay."""
    bare = python_minifier.minify(
        ast.unparse(_Bare().visit(ast.parse(source))),
        remove_literal_statements=True,
        # The fields of data classes and named tuples are made of annotations.
        remove_annotations=python_minifier.RemoveAnnotationsOptions(remove_class_attribute_annotations=False),
        hoist_literals=False,  # Compression finds them.
        rename_globals=True,
        preserve_globals=list(keep),
    )
    content = base64.b85encode(lzma.compress(bare.encode(), lzma.FORMAT_RAW, filters=FILTERS)).decode()
    stub = (
        "import lzma as l,base64 as b\n"
        f'exec(compile(l.decompress(b.b85decode("{content}"),3,None,{FILTERS}),'
        '"train_gpt_packed.py","exec"))\n'
    )
    return min(stub.encode(), bare.encode(), key=len)


class _Bare(ast.NodeTransformer):
    """What the minifier leaves: words of fields' types, the kernels' text, and ``vars``, which stops it."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Of a field's annotation nothing is read but that it is there, unless it says otherwise."""
        for entry in node.body:
            if isinstance(entry, ast.AnnAssign) and not re.search("ClassVar|InitVar", ast.unparse(entry)):
                entry.annotation = ast.Constant(0)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """``vars(x)`` is ``x.__dict__``."""
        self.generic_visit(node)
        if ast.unparse(node.func) == "vars" and len(node.args) == 1:
            return ast.Attribute(node.args[0], "__dict__", ast.Load())
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """The kernels' compiler reads names and annotations."""
        if ast.unparse(node.targets[0]) == "KERNELS":
            text = ast.literal_eval(node.value)
            bare = python_minifier.minify(
                text,
                remove_literal_statements=True,
                remove_annotations=False,
                rename_locals=False,
                hoist_literals=False,
            )
            node.value = ast.Constant(bare)
        return self.generic_visit(node)
