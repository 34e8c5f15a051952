"""Many modules in one namespace, and their text: as it was written, where nothing in it was changed."""

from __future__ import annotations

import ast
import builtins
import textwrap
from typing import Any

from pgolf.compress.code_size import is_text
from pgolf.submit.program import Key, Module, Program, defined_names, parameters


def one_namespace(program: Program, modules: list[Module]) -> str:
    """Rename what has the same name in several modules, or that of something imported or built in; returns
    the import statements of all modules.
    """
    nodes = {module.name: ast.walk(module.tree) for module in modules}
    words = {name: {n.id for n in found if isinstance(n, ast.Name)} for name, found in nodes.items()}
    taken, imports = set(dir(builtins)), dict[str, str]()

    def free(name: str, otherwise: str) -> str:
        chosen = name
        while chosen in taken or (chosen != name and any(chosen in found for found in words.values())):
            chosen = otherwise if chosen == name else f"{chosen}_"
        taken.add(chosen)
        return chosen

    for module in modules:
        for name in sorted(words[module.name] & module.external.keys()):
            statement = module.external[name]
            if statement.startswith("import ") and " as " not in statement:
                imports[statement] = name  # Of ``import a.b`` and ``import a.c`` each binds the same.
                taken.add(name)
            elif statement not in imports:
                imports[statement] = free(name, f"{name}_")
    names: dict[Key, str] = {}
    for module in modules:
        stem = module.name.rpartition(".")[2]
        for name in (name for statement in module.tree.body for name in defined_names(statement)):
            # A leading underscore says that a name is of its module alone, which the stem says then.
            otherwise = f"{stem.upper() if name.isupper() else stem}_{name.strip('_')}"
            names[Key(module.name, name)] = free(name, otherwise)
    for module in modules:
        chosen = {name: imports[s] for name, s in module.external.items() if s in imports}
        renamer = _Renamer(program, module, names, chosen)
        module.tree.body = [renamer.visit(statement) for statement in module.tree.body]
    bound = {statement: statement.rpartition(" ")[2].partition(".")[0] for statement in imports}
    return "\n".join(
        statement if bound[statement] == name else f"{statement.partition(' as ')[0]} as {name}"
        for statement, name in sorted(imports.items())
    )


class _Renamer(ast.NodeTransformer):
    """Gives the global names of a module's statements the names that they have in the file.

    Names that a function assigns are renamed with them: what meant one thing still does. Names of parameters
    and attributes stay.
    """

    def __init__(
        self, program: Program, module: Module, names: dict[Key, str], imports: dict[str, str]
    ) -> None:
        self.program, self.module, self.every = program, module, names
        keys = {name: program.resolve(module, name) for name in [*module.imported, *module.definitions]}
        self.names = imports | {name: names[key] for name, key in keys.items() if key in names}
        self.hidden: set[str] = set()

    def _name(self, name: str) -> str:
        return name if name in self.hidden else self.names.get(name, name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name, wherever it stands."""
        node.before, node.id = node.id, self._name(node.id)  # type: ignore[attr-defined]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A name of an imported module."""
        key = self.program.meaning(self.module, node)
        if key not in self.every or ast.unparse(node).partition(".")[0] in self.hidden:
            return self.generic_visit(node)
        return ast.Name(self.every[key], node.ctx)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Names that are no nodes."""
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            node.before, node.name = node.name, node.name and self._name(node.name)  # type: ignore[union-attr]
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self._name(name) for name in node.names]
        elif isinstance(node, ast.alias) and (bound := node.asname or node.name) != self._name(bound):
            node.asname = self._name(bound)
        return super().generic_visit(node)

    def visit_FunctionDef(self, node: Any) -> Any:
        """Parameters hide what is around a function."""
        body, node.body = node.body, []
        self.generic_visit(node)
        outer, self.hidden = self.hidden, self.hidden | {argument.arg for argument in parameters(node)}
        node.body = [self.visit(entry) for entry in body] if isinstance(body, list) else self.visit(body)
        self.hidden = outer
        return node

    visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """What the body of a class binds are attributes, which its methods do not see as names."""
        own = {name for entry in node.body for name in defined_names(entry)}
        outer, body, node.body = self.hidden, node.body, []
        self.generic_visit(node)
        for entry in body:
            name = getattr(entry, "name", None)
            self.hidden = outer if isinstance(entry, ast.FunctionDef) else outer | own
            self.visit(entry)
            if name is not None:
                entry.name = name  # type: ignore[attr-defined]
        node.body, self.hidden = body, outer
        return node


def text_of(module: Module) -> str:
    """A module's text, under its name and with what it says of itself."""
    title = module.name.replace(".", "/") + ".py"
    about = (ast.get_docstring(ast.parse("\n".join(module.lines))) or "").splitlines()
    lines = [f"# ==== {title} {'=' * (104 - len(title))}", *(f"# {line}".rstrip() for line in about)]
    for statement in module.tree.body:
        is_definition = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        lines += ["", ""] if is_definition else [] if is_text(statement) else [""]
        parts: list[ast.stmt] = [statement]
        if isinstance(statement, ast.ClassDef):
            parts, statement.body = statement.body, [ast.Pass()]
            for line in ast.unparse(statement).splitlines()[:-1]:
                lines += textwrap.wrap(line, 110, subsequent_indent=" " * 8)
        for part in parts:
            lines += [""] * (part is not statement and isinstance(part, ast.FunctionDef))
            lines += _lines(module, part, "    " * (part is not statement))
    return "\n".join(lines)


def _lines(module: Module, node: ast.stmt, indent: str) -> list[str]:
    """A statement as it was written, with the comments above and new names, or anew if more was changed."""
    first = min([node.lineno, *(entry.lineno for entry in getattr(node, "decorator_list", []))]) - 1
    while first and module.lines[first - 1].lstrip().startswith("#"):
        first -= 1
    lines = [line.encode() for line in module.lines[first : node.end_lineno]]
    # From the last to the first, so that places stay.
    inside: list[Any] = [inner for inner in ast.walk(node) if getattr(inner, "before", None)]
    for name in sorted(inside, key=lambda inner: (inner.lineno, inner.col_offset), reverse=True):
        old, new, at = name.before, getattr(name, "id", None) or name.name, name.lineno - 1 - first
        if old != new and 0 <= at < len(lines):
            start = lines[at].find(old.encode(), name.col_offset)
            lines[at] = lines[at][:start] + new.encode() + lines[at][start + len(old.encode()) :]
    text = b"\n".join(lines).decode()
    try:
        # In a block, so that texts inside keep their indentation.
        found = ast.parse(f"if 1:\n{text}" if indent else text).body[0]
    except SyntaxError:
        found = ast.Pass()
    if ast.dump(found) == ast.dump(ast.If(ast.Constant(1), [node], []) if indent else node):
        return text.split("\n")
    return textwrap.indent(ast.unparse(ast.fix_missing_locations(node)), indent).splitlines()
