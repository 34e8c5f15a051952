"""The library's study, report and compressor: what the commands of these names do, as functions."""

from __future__ import annotations

from pathlib import Path

import pytest

import pgolf as library
from tests.e2e.conftest import pgolf


def test_a_study_and_its_page(workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text((workshop / "tiny.toml").read_text())
    base = "[base]\ntrain.steps = 4\ntrain.warmdown_steps = 2\ncompress.calibration = 'none'\n"
    head = 'title = "Rates"\nrecipe = "tiny.toml"\nseeds = [1]\nscores = ["packed"]\n'
    (tmp_path / "rates.toml").write_text(f"{head}{base}[grid]\noptim.matrix_lr = [0.02, 0.03]\n")
    job = tmp_path / "rates.toml", tmp_path / "out"
    found = library.study(*job, data=workshop / "data", device="cpu")
    assert [(cell.status, cell.seed) for cell in found.cells] == [("finished", 1)] * 2
    assert all(0 < cell.scores["packed"] < 8 for cell in found.cells) and found.statements
    assert repr(found) == f"<pgolf.StudyResult {tmp_path / 'out'}, 2 of 2 runs finished>"
    assert not list((tmp_path / "out").rglob("audit.json")), "a study's runs are not audited one by one"
    assert library.study(*job, data=workshop / "data", device="cpu").statements == found.statements
    assert library.report(found) == tmp_path / "out" / "report.html"
    assert library.report(found.cells[0].folder, tmp_path / "cell.md", targets=64) == tmp_path / "cell.md"
    assert "What the model writes" in (tmp_path / "cell.md").read_text()
    assert capfd.readouterr() == ("", "")


def test_training_on_text(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = {"text": workshop / "train.txt", "val_text": [workshop / "val.txt"]}
    run = library.train(
        workshop / "tiny.toml", **text, overrides={"train": {"steps": 2, "warmdown_steps": 1}}
    )
    assert Path(run) == Path("runs/tiny") and [
        entry["step"] for entry in run.history if "train_loss" in entry
    ] == [1, 2]
    assert repr(run).startswith("<pgolf.TrainedRun runs/tiny, 2 steps, ")
    assert library.evaluate(run, mode="standard").val_bpb == run.val_bpb


def test_a_file_there_and_back(workshop: Path, tmp_path: Path) -> None:
    model, tokenizer = workshop / "model.pgolf", workshop / "data" / "tokenizer.model"
    (tmp_path / "text").write_text("The cat sees the green house.")
    there = library.compress(tmp_path / "text", tmp_path / "x.pgz", model, tokenizer=tokenizer)
    assert there.bytes == 29 and Path(there).stat().st_size == there.compressed_bytes
    assert there.bits_per_byte == 8 * there.compressed_bytes / 29
    back = library.decompress(there, tmp_path / "back", model, tokenizer=tokenizer)
    assert Path(back).read_bytes() == (tmp_path / "text").read_bytes()


def test_an_audit_says_what_the_command_says(workshop: Path, tmp_path: Path) -> None:
    found = library.audit(
        workshop / "model.pgolf", workshop / "data", mode="standard", targets=96, device="cpu"
    )
    assert found.ok and found.violated == [] and found.targets == 96 and len(repr(found)) < 250
    said = pgolf(
        "audit", "model.pgolf", "--data", "data", "--mode", "standard", "--targets", "96", cwd=workshop
    )
    assert f"{found.val_bpb:.4f} bits per byte" in said.stdout


def test_mistakes_speak_python(workshop: Path, tmp_path: Path) -> None:
    where = workshop / "model.pgolf", workshop / "data"
    for call, words in (
        (lambda: library.audit(*where, targets=1), "targets 1: must be"),
        (lambda: library.audit(*where, mode="slow"), "mode slow: unknown"),
        (lambda: library.audit(workshop / "model.pgolf", scorer="x.py:y"), "pass data=DIR"),
        (lambda: library.report(tmp_path / "gone"), "no such run folder"),
        (lambda: library.compress(*where[:1], tmp_path / "x", where[0]), "pass tokenizer=MODEL"),
        (lambda: library.pack(workshop / "run" / "model.safetensors"), "name one by out"),
        (lambda: library.evaluate(where[0]), "pass data=DIR"),
        (lambda: library.train(workshop / "tiny.toml", workshop / "run", workshop / "data"), "with init "),
        (lambda: library.train("tiny", tmp_path, val_text="x"), "val_text: belongs to text"),
    ):
        with pytest.raises(library.PgolfError) as caught:
            call()
        assert words in str(caught.value) and "--" not in str(caught.value).replace("`pgolf data --help`", "")
