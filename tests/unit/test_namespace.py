"""Modules put into one file: what is reached, and what has the same name in several of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pgolf.submit import program as submit_program
from pgolf.submit.bundle import packed_form
from pgolf.submit.namespace import one_namespace, text_of
from pgolf.submit.program import Key, Program, Reached

MODULES = {
    "__init__": "",
    "first": """
from os import path as place
LIMIT = 2
def _scale(value, scale=LIMIT):
    return value * scale * LIMIT
def open(name):
    return f"first {name} {_scale(1)}"
def unused():
    return LIMIT
""",
    "second": """
from collections import OrderedDict as place
from toy.first import open as other
import json
LIMIT = 5
TABLE = []
def row(made):
    TABLE.append(made)
    return made
class Base:
    LIMIT = 7
    def ask(self, name):
        return getattr(self, "answer")(name)
    def unused(self):
        return json
@row
class Small(Base):
    # Why it answers so.
    def answer(self, LIMIT):
        return LIMIT + self.LIMIT + _scale(LIMIT)
def placed():
    return place(a=1)["a"]
def _scale(value):
    LIMIT = value + 1  # A name of its own.
    return [LIMIT for LIMIT in range(LIMIT)][-1] * sum((lambda LIMIT: LIMIT)(x) for x in (1, 2))
""",
    "entry": '''
from os import path as place
from toy import second
def main():
    """Everything."""
    from toy.second import TABLE, other
    assert place.basename("a/b") == "b"
    return [made().ask(3) for made in TABLE], second.LIMIT, second.placed(), other("x")
''',
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    (tmp_path / "toy").mkdir()
    for name, text in MODULES.items():
        (tmp_path / "toy" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(submit_program, "PACKAGE", "toy")
    return Program(["toy.entry"], {}, {})


def test_one_file_computes_what_the_modules_do(toy: Program) -> None:
    expected = importlib.import_module("toy.entry").main()
    reached = Reached(toy, Key("toy.entry", "main"))
    modules = [module for module in toy.modules.values() if reached.keep_only(module)]
    imports = one_namespace(toy, modules)
    text = "\n\n".join(["from __future__ import annotations", imports, *map(text_of, modules)])
    names: dict[str, Any] = {"__name__": "one"}
    exec(compile(text, "one.py", "exec"), names)
    assert names["main"]() == expected == ([3 + 7 + 3 * 3], 5, 1, "first x 4")
    assert "def unused" not in text and "json" not in text
    assert "# Why it answers so." in text and "# A name of its own." in text
    packed: dict[str, Any] = {"__name__": "one"}
    exec(packed_form(text, ["main"]), packed)
    assert packed["main"]() == expected
