"""`pgolf study`: cells share what they can and end with the results of separate runs; failures; changes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.compress.weights import load_tensors, load_weights
from pgolf.data.dataset import open_dataset
from pgolf.errors import Interrupted
from pgolf.evaluate.evaluate import EvalResult
from pgolf.launch.slurm import is_queued
from pgolf.recipe.recipe import load_recipe
from pgolf.runs.folder import open_run
from pgolf.runs.records import read_run
from pgolf.study.cells import read_cells
from pgolf.train.loop import train
from tests.e2e.conftest import Done, pgolf, pgolf_json
from tests.e2e.test_interruption import start, steps_done
from tests.e2e.test_launch import until
from tests.e2e.test_mistakes import fails

pytestmark = pytest.mark.usefixtures("quick_python", "no_pictures")
HEAD = 'title = "A study"\nrecipe = "tiny.toml"\nseeds = [1337]\n'
# Where packing and scoring are not what is tested.
QUICK = 'scores = ["packed"]\n'
PLAIN = 'cap = 300000\nscheme = "rowwise"\nrounding = "nearest"\ncalibration = "none"'


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def study(workshop: Path, folder: Path, text: str, *options: str, check: int | None = 0) -> Done:
    """Run a study of the tiny recipe in ``folder/out``."""
    recipe = (workshop / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(recipe.replace("cap = 300000", PLAIN) if QUICK in text else recipe)
    return pgolf(
        *(
            "study",
            write(folder, text),
            "--data",
            workshop / "data",
            "--out",
            folder / "out",
            "--device",
            "cpu",
        ),
        *options,
        check=check,
    )


def separate(workshop: Path, out: Path, *settings: str) -> dict[str, Any]:
    """What ``pgolf run`` makes of a cell alone."""
    words = [word for setting in settings for word in ("--set", setting)]
    found: dict[str, Any] = pgolf_json(
        "run", "tiny.toml", *words, "--data", "data", "--out", out, "--no-audit", cwd=workshop
    )
    return found


def scores(result: Any) -> dict[str, float]:
    return {name: score["val_bpb"] for name, score in result["evaluations"].items()}


def assert_same_run(cell: Path, alone: Path) -> None:
    """Equal in everything but times and what is said of the making."""
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (cell, alone))
    assert scores(one) == scores(other)
    assert one["pack"] | {"seconds": 0} == other["pack"] | {"seconds": 0}
    assert one["train"]["steps"] == other["train"]["steps"]
    for name in ("model.safetensors", "raw.safetensors"):
        (a, about), (b, about_other) = load_tensors(cell / name), load_tensors(alone / name)
        assert about == about_other and a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert (cell / "artifact.pgolf").read_bytes() == (alone / "artifact.pgolf").read_bytes()
    assert (cell / "recipe.toml").read_text() == (alone / "recipe.toml").read_text()


def losses(run: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["train_loss"]) for entry in entries if "train_loss" in entry]


STEPS = """
[base]
average = { kind = "swa_of_ema", every = 1 }
qat.enabled = true
[[cells]]
train = { steps = 8, warmdown_steps = 4 }
[[cells]]
"""


def test_runs_that_share_a_trunk_equal_separate_ones(workshop: Path, tmp_path: Path) -> None:
    done = study(workshop, tmp_path, HEAD + STEPS)
    short, long = read_cells(tmp_path / "out")
    assert (short.status, long.status) == ("finished", "finished")
    base = ("average.kind=swa_of_ema", "average.every=1", "qat.enabled=true", "train.seed=1337")
    separate(workshop, tmp_path / "short", *base, "train.steps=8", "train.warmdown_steps=4")
    separate(workshop, tmp_path / "long", *base)
    assert_same_run(short.folder, tmp_path / "short")
    assert_same_run(long.folder, tmp_path / "long")
    assert losses(short.folder) == losses(tmp_path / "short")
    note = json.loads((short.folder / "cell.json").read_text())["shared"]
    assert note == [{"with": long.name, "training": "steps 1 to 4"}]
    assert "steps 1 to 4" in (short.folder / "report.md").read_text()
    assert not list((tmp_path / "out").rglob("step-*")), "nobody needs the kept checkpoints any more"
    assert f"{short.scores['ttt']:.4f}" in done.stdout
    assert not done.stderr.count("validation"), "quiet where nobody watches"


# Fixed widths: how close the search for a cap comes depends on the size of the recipe in the header
# (docs/studies.md).
SHARED = """
[base]
compress.scheme = "rowwise"
[[cells]]
[[cells]]
ttt.epochs = 3
[[cells]]
compress.rounding = "nearest"
"""


def test_evaluations_and_packings_of_one_training_equal_separate_runs(workshop: Path, tmp_path: Path) -> None:
    study(workshop, tmp_path, HEAD + SHARED)
    base, ttt, pack = read_cells(tmp_path / "out")
    separate(workshop, tmp_path / "ttt", "train.seed=1337", "compress.scheme=rowwise", "ttt.epochs=3")
    rounding = ("compress.scheme=rowwise", "compress.rounding=nearest")
    separate(workshop, tmp_path / "pack", "train.seed=1337", *rounding)
    assert_same_run(ttt.folder, tmp_path / "ttt")
    assert_same_run(pack.folder, tmp_path / "pack")
    assert ttt.scores["ttt"] != base.scores["ttt"] and ttt.scores["sliding"] == base.scores["sliding"]
    made = json.loads((ttt.folder / "provenance.json").read_text())
    assert made["shared"][0]["with"] == base.name and "packing" in made["shared"][0]
    assert base.result is not None and ttt.result is not None
    assert ttt.result["train"] == base.result["train"], "trained once"
    evaluated = ("eval", ttt.folder / "artifact.pgolf", "--data", "data", "--mode", "ttt")
    assert pgolf_json(*evaluated, cwd=workshop)["val_bpb"] == ttt.scores["ttt"]
    assert pgolf_json(
        "verify-ledger", ttt.folder / "ledger.ttt.jsonl", "--artifact", ttt.folder / "artifact.pgolf"
    )


class StopAfter:
    """A watcher that presses Ctrl-C."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        if step == self.last - 1:
            os.kill(os.getpid(), signal.SIGINT)

    def validation(self, step: int, result: EvalResult) -> None: ...

    def evaluation(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


def test_moments_of_a_run_are_what_it_was_then(workshop: Path, tmp_path: Path) -> None:
    study(workshop, tmp_path, HEAD + 'scores = ["float"]\nat_steps = [7, 10]\n')
    seven, ten, end = read_cells(tmp_path / "out")
    assert [cell.label for cell in (seven, ten, end)] == ["step=7", "step=10", "step=12"]
    recipe, dataset = load_recipe(str(workshop / "tiny.toml")), open_dataset(workshop / "data", None)
    run = open_run(recipe, dataset, tmp_path / "run", torch.device("cpu"))
    with pytest.raises(Interrupted):
        train(run, StopAfter(7))
    then = load_weights(tmp_path / "run" / "checkpoint.safetensors").state
    found = load_weights(seven.folder).state
    assert all(torch.equal(found[name], then[name]) for name in then)
    raw, _ = load_tensors(seven.folder / "raw.safetensors")
    assert all(torch.equal(raw[name], value) for name, value in run.network.state_dict().items())
    assert seven.result is not None and seven.result["train"]["steps"] == 7
    metrics = [json.loads(line) for line in (end.folder / "metrics.jsonl").read_text().splitlines()]
    [validated] = [entry["val_bpb"] for entry in metrics if "val_bpb" in entry and entry["step"] == 10]
    assert ten.scores["raw"] == validated and ten.scores["float"] != ten.scores["raw"]
    assert len(losses(ten.folder)) == 10
    assert same_tensors(end.folder, workshop / "run")
    assert (seven.folder / "ledger.raw.jsonl").is_file()
    assert "wrong" not in (seven.folder / "report.md").read_text(), (
        "the raw score's ledger is of the raw weights"
    )
    assert read_run(seven.folder).state == "finished", "with all the scores that the study asked for"


def same_tensors(one: Path, other: Path) -> bool:
    (a, _), (b, _) = load_tensors(one / "model.safetensors"), load_tensors(other / "model.safetensors")
    return all(torch.equal(a[name], b[name]) for name in b)


FAILING = "[[cells]]\noptim = { matrix_lr = 1e30, scalar_lr = 1e30 }\n[[cells]]\n"


def test_a_failed_cell_is_reported_and_tried_again_and_finished_ones_are_skipped(
    workshop: Path, tmp_path: Path
) -> None:
    done = study(workshop, tmp_path, HEAD + QUICK + FAILING, check=1)
    failed, good = read_cells(tmp_path / "out")
    assert (failed.status, good.status) == ("failed", "finished") and failed.result is None
    assert failed.error is not None and "the training loss became" in failed.error
    assert "the training loss became" in " ".join(done.stdout.split())
    assert "the training loss became" in (failed.folder / "launch" / "log.txt").read_text()
    before = (good.folder / "result.json").stat().st_mtime_ns
    grown = FAILING + "[[cells]]\ntrain.steps = 6\n"
    again = json.loads(study(workshop, tmp_path, HEAD + QUICK + grown, "--json", check=1).stdout)
    assert [cell["status"] for cell in again["cells"]] == ["failed", "finished", "finished"]
    assert again["cells"][2]["scores"].keys() == {"raw", "packed"} and again["cells"][2]["bytes"] > 0
    assert {row["cell"] for row in again["tables"]["Every term, every run"]} == {"base", "train.steps=6"}
    assert (good.folder / "result.json").stat().st_mtime_ns == before
    assert (failed.folder / "launch" / "log.txt").read_text().count("pgolf: error") == 2
    last = study(workshop, tmp_path, HEAD + QUICK + "[[cells]]\n")
    assert "1 finished" in last.stderr and "2 no longer in the study" in last.stderr
    assert [cell.name for cell in read_cells(tmp_path / "out")] == [good.name]
    assert (failed.folder / "recipe.toml").is_file(), "left out, not deleted"


def test_a_bug_in_one_run_does_not_stop_the_others(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgolf.study import runner

    work = runner.run_all

    def broken(recipe: Any, *arguments: Any, **options: Any) -> Any:
        if recipe.train.seed == 1:
            raise MemoryError("too large")
        return work(recipe, *arguments, **options)

    monkeypatch.setattr(runner, "run_all", broken)
    study(workshop, tmp_path, (HEAD + QUICK).replace("[1337]", "[1, 2]"), check=1)
    failed, good = read_cells(tmp_path / "out")
    assert failed.error == "MemoryError: too large" and good.status == "finished"
    assert "Traceback" in (failed.folder / "launch" / "log.txt").read_text()


def test_a_changed_study_does_not_mix_with_what_is_there(workshop: Path, tmp_path: Path) -> None:
    study(workshop, tmp_path, HEAD + QUICK)
    changed = study(workshop, tmp_path, HEAD + QUICK + "[base]\noptim.matrix_lr = 0.01\n", check=2)
    assert "1 of its cells ran with other settings than the study has now: base_seed-1337" in changed.stderr
    assert (
        "choose another --out, or delete their folders" in changed.stderr and changed.stderr.count("\n") == 1
    )
    options = ("--split", "blank-lines", "--vocab-size", "320")
    pgolf("data", "prepare", "--text", "val.txt", *options, "--out", tmp_path / "other", cwd=workshop)
    words = ("study", tmp_path / "study.toml", "--out", tmp_path / "out", "--data")
    write(tmp_path, HEAD + QUICK)
    assert "ran with other data" in fails(*words, tmp_path / "other", cwd=tmp_path)


def test_the_plan_is_shown_and_nothing_is_done(workshop: Path, tmp_path: Path) -> None:
    done = study(workshop, tmp_path, HEAD + STEPS, "--dry-run")
    assert "from step 4 of run 2" in done.stdout and "2 new" in done.stdout
    assert f"{256 * (12 + 4):,} tokens; without sharing on {256 * (12 + 8):,}" in done.stdout
    assert not (tmp_path / "out").exists()
    plan = json.loads(study(workshop, tmp_path, HEAD + STEPS, "--dry-run", "--json").stdout)
    assert [run["training_tokens"] for run in plan["runs"]] == [256 * 12, 256 * 4]


def test_a_plan_makes_not_even_the_data(tmp_path: Path) -> None:
    for _ in range(2):
        assert "5 new" in pgolf("study", "steps", "--small", "--dry-run", cwd=tmp_path).stdout
        assert not list(tmp_path.iterdir())


def test_interrupted_and_continued_in_several_processes(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text((workshop / "tiny.toml").read_text())
    base = "[base]\ntrain = { validate_every = 0, checkpoint_every = 0 }\n"
    text = f"{HEAD}{QUICK}{base}[[cells]]\ntrain.steps = 30\n[[cells]]\ntrain.steps = 60\n"
    command = ("study", write(tmp_path, text), "--data", workshop / "data", "--out", tmp_path / "out")
    options = ("--device", "cpu", "--jobs", "2")
    process = start(*command, *options, cwd=tmp_path)
    longest = tmp_path / "out" / "cells" / "train.steps-60_seed-1337"
    until(lambda: steps_done(longest) >= 3)
    second = pgolf(*command, *options, check=2)
    assert "another process works on this" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert 3 <= steps_done(longest) < 60
    assert [cell.status for cell in read_cells(tmp_path / "out")] == ["waiting", "waiting"]
    found = pgolf_json(*command, *options)
    assert [cell["status"] for cell in found["cells"]] == ["finished", "finished"]
    settings = ("train.validate_every=0", "train.checkpoint_every=0", "train.seed=1337", "train.steps=30")
    words = [word for setting in settings for word in ("--set", setting)]
    pgolf(
        "train", "--recipe", "tiny.toml", *words, "--data", "data", "--out", tmp_path / "alone", cwd=workshop
    )
    short = tmp_path / "out" / "cells" / "train.steps-30_seed-1337"
    assert same_tensors(short, tmp_path / "alone")
    assert json.loads((short / "cell.json").read_text())["shared"], "from the trunk"


def test_cluster_jobs_are_submitted_once_and_collected(workshop: Path, tmp_path: Path) -> None:
    options = ("--launcher", "slurm", "--slurm", "executor=local", "--slurm", "gpus-per-node=0")
    text = HEAD + QUICK + "[[cells]]\n[[cells]]\nttt.epochs = 2\n"
    done = study(workshop, tmp_path, text, *options)
    first, second = read_cells(tmp_path / "out")
    assert f"{first.name}: submitted as job " in done.stderr and second.name not in done.stderr
    assert "2 of 2 runs are queued, running or to come; the same command goes on" in done.stderr
    number = json.loads((first.folder / "launch" / "submitted.json").read_text())["id"]
    again = study(workshop, tmp_path, text, *options)
    assert f"{first.name}: job {number} is in the queue" in again.stderr and "submitted" not in again.stderr
    until((first.folder / "report.md").exists)
    until(lambda: not is_queued(number, "local"))
    study(workshop, tmp_path, text, *options)
    until((second.folder / "report.md").exists)
    done = study(workshop, tmp_path, text, *options)
    assert [cell.status for cell in read_cells(tmp_path / "out")] == ["finished", "finished"]
    assert "not done" not in done.stderr


def test_a_cluster_job_that_failed_is_named_when_it_is_submitted_again(
    workshop: Path, tmp_path: Path
) -> None:
    options = ("--launcher", "slurm", "--slurm", "executor=local", "--slurm", "gpus-per-node=0")
    text = HEAD + QUICK + "[[cells]]\noptim = { matrix_lr = 1e30, scalar_lr = 1e30 }\n"
    study(workshop, tmp_path, text, *options)
    [cell] = read_cells(tmp_path / "out")
    number = json.loads((cell.folder / "launch" / "submitted.json").read_text())["id"]
    until(lambda: not is_queued(number, "local"))
    done = study(workshop, tmp_path, text, *options)
    assert f"job {number} ended before it was done, see" in done.stderr
    assert "the training loss became" in (cell.folder / "launch" / "log.txt").read_text()
    again = json.loads((cell.folder / "launch" / "submitted.json").read_text())["id"]
    until(lambda: not is_queued(again, "local"))


def test_mistakes_are_one_line(workshop: Path, tmp_path: Path) -> None:
    path = write(tmp_path, HEAD)
    (tmp_path / "tiny.toml").write_text((workshop / "tiny.toml").read_text())
    words = ("study", path, "--data", workshop / "data", "--out", tmp_path / "out")
    assert "use local or slurm" in fails(*words, "--launcher", "pbs", cwd=tmp_path)
    assert "belongs to --launcher slurm" in fails(*words, "--slurm", "time=4", cwd=tmp_path)
    slurm = (*words, "--launcher", "slurm", "--slurm")
    assert "did you mean partition" in fails(*slurm, "partitoin=x", cwd=tmp_path)
    assert "cpus is a number" in fails(*slurm, "cpus=many", cwd=tmp_path)
    assert "missing" in fails(
        "study", path, "--data", tmp_path / "missing", "--out", tmp_path / "out", cwd=tmp_path
    )
    assert "holds no study" in fails(
        "study", path, "--data", workshop / "data", "--out", workshop, cwd=tmp_path
    )
    assert "--score none" in fails(
        "run", "tiny.toml", "--data", "data", "--out", "x", "--score", "none", cwd=workshop
    )
    assert not (tmp_path / "out").exists() and not (workshop / "x").exists()


def test_the_shipped_studies_are_listed(workshop: Path) -> None:
    assert pgolf_json("study").keys() == {"ablation", "flow", "frontier", "steps", "trajectory", "ttt"}
