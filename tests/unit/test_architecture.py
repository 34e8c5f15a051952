"""The packages stand in one order: what is lower knows nothing of what is higher."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pgolf

ROOT = Path(pgolf.__file__).parent
# From below to above. A package may import those before it, and itself.
ORDER = (
    *("errors", "kernels", "runtime", "model", "recipe", "data", "memory", "optim", "compress", "evaluate"),
    *("train", "runs", "codec", "generate", "audit", "report", "serve", "launch", "study", "bench", "submit"),
    "export",
    *("api", "pgolf", "cli", "__main__"),
)
AT_THE_ROOT = {"__init__", "__main__", "api", "errors"}


def modules() -> dict[str, Path]:
    """Dotted name, without the package's own, to file; the package itself is "pgolf"."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "pgolf"] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules that a file imports anywhere: at its top, in a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import by the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pgolf":
                short = name.removeprefix("pgolf").removeprefix(".") or "pgolf"
                yield short if short in known else short.rpartition(".")[0] or "pgolf"


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    return {name: set(imports(path, known)) - {name} for name, path in known.items()}


def arrows_up(edges: dict[str, set[str]]) -> list[str]:
    rank = {name: place for place, name in enumerate(ORDER)}
    return [
        f"{lower} imports {higher}"
        for lower, others in edges.items()
        for higher in others
        if rank[lower.split(".")[0]] < rank[higher.split(".")[0]]
    ]


def test_only_these_modules_are_at_the_root() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == AT_THE_ROOT


def test_every_package_has_its_place_in_the_order() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ORDER)


def test_no_arrow_runs_up() -> None:
    edges = graph(modules())
    assert "recipe.recipe" in edges["train.run"]
    assert arrows_up(edges) == []


def test_there_is_no_cycle() -> None:
    TopologicalSorter(graph(modules())).prepare()


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    low, high = tmp_path / "low.py", tmp_path / "high.py"
    low.write_text("def f():\n    from pgolf.cli.main import app\n")
    high.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pgolf.data.low\n")
    edges = graph({"data.low": low, "cli.main": high})
    assert arrows_up(edges) == ["data.low imports cli.main"]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        assert {"data.low", "cli.main"} == set(error.args[1])
    else:
        raise AssertionError("the cycle was not seen")


def test_the_page_names_what_is_there() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
    names = set(re.findall(r"`(pgolf(?:\.\w+)+)`", page.read_text(encoding="utf-8")))
    assert len(names) > 40
    assert [name for name in sorted(names) if not _is_there(name)] == []


def _is_there(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("pgolf"):
                return True  # What an extra brings.
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_page_draws_the_packages_in_their_order() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
    picture = page.read_text(encoding="utf-8").split("```")[1]
    drawn = set(re.findall(r"(\w+)/", picture)) - {"features"}
    assert drawn == set(ORDER) - {"errors", "api", "pgolf", "__main__"}
    layers = ["runs", "train", "evaluate", "compress", "optim", "memory", "data", "recipe", "model"]
    layers.append("runtime")
    assert [name for name in re.findall(r"^(\w+)/", picture, re.M) if name in layers] == layers
    assert [name for name in ORDER if name in layers] == layers[::-1]


def test_lines_of_prose_have_at_most_110_characters() -> None:
    top = Path(__file__).resolve().parents[2]
    long = []
    for page in [*top.glob("*.md"), *(top / "docs").rglob("*.md"), *(top / "benchmarks").glob("*.md")]:
        fenced = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if not fenced and len(line) > 110 and not line.startswith("|"):
                long.append(f"{page.name}:{number}")
    assert long == []
