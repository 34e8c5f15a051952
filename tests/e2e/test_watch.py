"""`pgolf watch`: a curve of plain characters that follows a run, and ends with it."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from pgolf.cli import report
from pgolf.report.watch import curve, frames
from pgolf.runtime.exclusive import is_worked_on
from pgolf.runtime.locks import LOCK, held
from tests.e2e.conftest import pgolf, pgolf_json

LOSSES = [{"step": 0, "val_loss": 5.0, "val_bpb": 3.0}]
LOSSES += [{"step": step, "train_loss": 4.0 - step / 100, "tokens_per_second": 1e3} for step in range(1, 201)]


@pytest.fixture
def run(workshop: Path, tmp_path: Path) -> Path:
    """A run that was stopped after four of twelve steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.toml", "provenance.json"):
        shutil.copy(workshop / "run" / name, folder / name)
    lines = (workshop / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 4 and "train_loss" in line]
    (folder / "metrics.jsonl").write_text("".join(kept))
    return folder


@pytest.mark.parametrize("columns", [20, 60, 133])
def test_the_curve_fills_the_width_with_plain_characters(columns: int) -> None:
    lines = curve(LOSSES, columns, 15)
    assert len(lines) == 15 and all(line.isascii() for line in lines)
    assert max(map(len, lines)) == columns
    assert lines[0].split() == ["5.0000", "|o"] and 2.0 <= float(lines[11].split()[0]) < 2.2
    # It falls from left to right: every column of steps stands once, no lower one left of a higher.
    places = [line.partition("|")[2].find(".") for line in lines[1:12]]
    assert places == sorted(places) and lines[11].endswith(".")
    assert lines[13].split() == ["step", "1", "200"]


def test_one_entry_is_a_curve_too() -> None:
    assert curve(LOSSES[:1], 40, 10)[0].endswith("|o")


def test_it_follows_a_run_and_ends_with_it(run: Path) -> None:
    shown = frames(run, lambda: (70, 20), pause=0)
    with held(run / LOCK, "run", print):
        assert "step 4 of 12, loss" in " ".join(next(shown))
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 5, "train_loss": 1.25, "tokens_per_second": 64.0}) + "\n")
        frame = next(shown)
        said = " ".join(frame)
        assert "step 5 of 12, loss 1.2500, 64 tokens per second, 28 s left" in said
        assert len(frame) < 20 and max(map(len, frame)) <= 70
    assert "stopped after step 5 of 12; the same command goes on" in " ".join(next(shown))
    assert list(shown) == []


def test_a_run_that_has_not_begun_is_waited_for(run: Path) -> None:
    (run / "recipe.toml").unlink()
    (run / "metrics.jsonl").unlink()
    with held(run / LOCK, "run", print):
        assert next(frames(run, lambda: (200, 20))) == [f"{run}: the run has not begun yet"]
    assert "holds no run" in pgolf("watch", run, check=2).stderr


def test_a_finished_run_is_shown_once(workshop: Path) -> None:
    lines = pgolf("watch", "run", cwd=workshop).stdout.splitlines()
    assert lines[0].startswith("run: trained after 12 steps, loss ") and "float" in lines[0] + lines[1]
    assert [line.split()[0] for line in lines if "|o" in line or "|." in line]
    found = pgolf_json("watch", "run", cwd=workshop)
    assert (found["state"], found["steps"], found["last"]["step"]) == ("trained", 12, 12)


def test_where_there_is_nothing_to_watch(run: Path, tmp_path: Path) -> None:
    assert "nowhere: no such run folder" in pgolf("watch", "nowhere", cwd=tmp_path, check=2).stderr
    (run / "metrics.jsonl").unlink()
    assert "run: no step is done yet" in pgolf("watch", "run", cwd=tmp_path, check=2).stderr


@pytest.mark.parametrize("interrupted", [True, False])
def test_on_a_terminal_it_draws_until_the_run_or_the_user_ends_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    screen, lock = io.StringIO(), held(run / LOCK, "run", print)

    def pause(seconds: float) -> None:
        if interrupted:
            raise KeyboardInterrupt
        lock.__exit__(None, None, None)

    monkeypatch.setattr(report, "stdout", Console(file=screen, force_terminal=True, width=60, height=16))
    monkeypatch.setattr(time, "sleep", pause)
    lock.__enter__()
    pgolf("watch", "run", cwd=run.parent)
    said = " ".join(screen.getvalue().split())
    assert "run: step 4 of 12" in said
    assert ("run: stopped after step 4" in said) != interrupted
    if interrupted:
        lock.__exit__(None, None, None)


def test_a_process_that_was_killed_works_no_more(run: Path) -> None:
    assert not is_worked_on(run)
    with held(run / LOCK, "run", print):
        assert is_worked_on(run)
        signed = (run / LOCK).read_text()
    gone = json.loads(signed) | {"born": "another boot/1"}
    (run / LOCK).write_text(json.dumps(gone))
    assert not is_worked_on(run)
