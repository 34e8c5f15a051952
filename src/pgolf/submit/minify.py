"""A program's text without what has no effect: comments, layout, texts that describe, annotations."""

from __future__ import annotations

import ast

from pgolf.submit.program import walk


def minified(source: str) -> str:
    """The bare program; it computes the same."""
    tree = _Bare().visit(ast.parse(source))
    while _drop_unused(tree):
        pass
    text = ast.unparse(ast.fix_missing_locations(tree))
    # One space is enough for a level.
    lines = []
    in_string = _lines_inside_strings(text)
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.lstrip(" ")
        lines.append(line if number in in_string else " " * ((len(line) - len(bare)) // 4) + bare)
    result = "\n".join(line for line in lines if line) + "\n"
    assert ast.dump(ast.parse(result)) == ast.dump(ast.parse(text))
    return result


def _drop_unused(tree: ast.Module) -> bool:
    """Leave out imports and names of types that only annotations used; tells whether there were any."""
    read = {
        node.id for node in walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store)
    }
    kept: list[ast.stmt] = []
    dropped = False
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            names = [
                a
                for a in statement.names
                if (a.asname or a.name.partition(".")[0]) in read or a.name == "annotations"
            ]
            dropped |= len(names) < len(statement.names)
            statement.names = names
            if not names:
                continue
        if isinstance(statement, ast.Assign) and all(
            isinstance(t, ast.Name) and t.id not in read for t in statement.targets
        ):
            dropped = True
            continue
        kept.append(statement)
    tree.body = kept
    return dropped


def _lines_inside_strings(text: str) -> set[int]:
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno is not None:
            inside |= set(range(node.lineno + 1, node.end_lineno + 1))
    return inside


class _Bare(ast.NodeTransformer):
    def __init__(self) -> None:
        self._keeps_fields = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Texts go; a block that is empty then says so."""
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [entry for entry in body if not _is_text(entry)]
            node.body = kept if kept or isinstance(node, ast.Module) else [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Annotations make the fields of data classes and named tuples."""
        outer = self._keeps_fields
        bases = [ast.unparse(base) for base in node.bases]
        self._keeps_fields = (
            any("dataclass" in ast.unparse(entry) for entry in node.decorator_list) or "NamedTuple" in bases
        )
        self.generic_visit(node)
        self._keeps_fields = outer
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Without annotations."""
        outer, self._keeps_fields = self._keeps_fields, False
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        self.generic_visit(node)
        self._keeps_fields = outer
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """The text of the kernels goes without texts as well; their annotations mean something."""
        if [ast.unparse(target) for target in node.targets] == ["KERNELS"] and isinstance(
            node.value, ast.Constant
        ):
            inner = ast.parse(str(node.value.value))
            for entry in ast.walk(inner):
                body = getattr(entry, "body", None)
                if isinstance(body, list):
                    entry.body = [s for s in body if not _is_text(s)] or [ast.Pass()]  # type: ignore[attr-defined]
            node.value = ast.Constant(ast.unparse(inner) + "\n")
            return node
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """A plain assignment, or nothing; a field keeps a word in the annotation's place."""
        if self._keeps_fields:
            node.annotation = ast.Name("int", ast.Load())
            return node
        if node.value is None:
            return None
        return ast.Assign([node.target], self.visit(node.value))


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
