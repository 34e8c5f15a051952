"""Parsing that the command line does itself."""

from __future__ import annotations

import pytest

from pgolf.cli import main
from pgolf.cli.main import repeat_list_options
from pgolf.recipe import files


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "recipe_names", interrupted)
    assert main._run(["recipes"]) == 130
    assert capsys.readouterr() == ("", "pgolf: interrupted\n")


def test_list_options_take_several_words() -> None:
    words = ["data", "prepare", "--text", "a", "b", "--out", "d", "--val-text", "c"]
    expected = ["data", "prepare", "--text", "a", "--text", "b", "--out", "d", "--val-text", "c"]
    assert repeat_list_options(words) == expected
    several = ["--text", "a", "--text", "b", "--text", "x"]
    assert repeat_list_options(["--text", "a", "--text", "b", "x"]) == several
    assert repeat_list_options(["run", "quickstart"]) == ["run", "quickstart"]
