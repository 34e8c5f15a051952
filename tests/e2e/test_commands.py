"""Every command, from text to report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf import __version__ as pgolf_version
from tests.e2e.conftest import pgolf, pgolf_json, sentences
from tests.golden.toy import trajectory_settings

COMMANDS = [
    *(
        "data prepare",
        "data fetch",
        "data inspect",
        "train",
        "pack",
        "inspect",
        "eval",
        "verify-ledger",
        "audit",
    ),
    *("compress", "decompress", "import", "run", "recipes", "bench", "bench compressors", "bench compare"),
    *("launch", "launch slurm", "launch local", "doctor", "generate", "significance"),
    *("study", "report", "runs", "diff", "submit"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    text = pgolf(*command.split(), "--help").stdout
    assert f"pgolf {command}" in text
    assert "Examples:" in text


def test_the_command_is_installed() -> None:
    for command in ([sys.executable, "-m", "pgolf"], [str(Path(sys.executable).parent / "pgolf")]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"pgolf {pgolf_version}\n"
        assert subprocess.run([*command, "nonsense"], capture_output=True).returncode == 2


@pytest.mark.slow
def test_the_doctor_compiles() -> None:
    checks = {check["name"]: check for check in pgolf_json("doctor")["checks"]}
    assert checks["torch.compile"]["found"].startswith("works on "), checks["torch.compile"]


def test_recipes_are_listed() -> None:
    assert {"quickstart", "seed_456", "seed_644", "seed_1232", "seed_1232_flow"} <= set(pgolf_json("recipes"))


def test_one_recipe_with_its_estimates() -> None:
    shown = pgolf_json("recipes", "seed_1232_flow")
    assert shown["estimate"]["parameters"] == 27_235_848
    assert 12_000_000 < shown["estimate"]["artifact_bytes"] < 20_000_000
    assert "[model.bigram]" in pgolf("recipes", "seed_456").stdout
    short = pgolf("recipes", "seed_456", "--set", "train.steps=300").stdout
    assert "note: train.warmdown_steps 3,000 is more than train.steps 300" in short


def test_training_writes_every_step_and_every_validation(workshop: Path) -> None:
    entries = [json.loads(line) for line in (workshop / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "train_loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert all({"step", "train_loss", "lr_scale", "tokens_per_second"} == set(entry) for entry in steps)
    assert [entry["lr_scale"] for entry in steps[:7]] == [1.0] * 7
    assert steps[-1]["lr_scale"] == pytest.approx(1 / 6)
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]
    validations = [entry for entry in entries if "val_bpb" in entry]
    assert [entry["step"] for entry in validations] == [0, 5, 10, 12]
    assert validations[-1]["val_bpb"] < validations[0]["val_bpb"]


def test_evaluation_modes_agree_on_what_they_count(workshop: Path) -> None:
    results = {
        mode: pgolf_json("eval", "model.pgolf", "--data", "data", "--mode", mode, cwd=workshop)
        for mode in ("standard", "sliding", "ttt")
    }
    for mode, result in results.items():
        assert result["mode"] == mode
        assert {"val_loss", "val_bpb", "targets", "bytes", "seconds"} <= set(result)
    assert len({(result["targets"], result["bytes"]) for result in results.values()}) == 1
    assert len({result["val_bpb"] for result in results.values()}) == 3
    assert len(results["ttt"]["chunks"]) > 1
    assert results["ttt"]["chunks"][-1] == pytest.approx(results["ttt"]["val_bpb"], abs=1e-9)


def test_evaluation_settings(workshop: Path) -> None:
    short = pgolf_json(
        "eval", "run", "--data", "data", "--mode", "sliding", "--limit-targets", "100", cwd=workshop
    )
    assert short["targets"] == 100
    frozen = pgolf_json("eval", "run", "--data", "data", "--mode", "ttt", "--set", "ttt.lr=0.0", cwd=workshop)
    sliding = pgolf_json("eval", "run", "--data", "data", "--mode", "sliding", cwd=workshop)
    assert frozen["val_bpb"] == pytest.approx(sliding["val_bpb"], abs=1e-6)
    wide = pgolf_json("eval", "run", "--data", "data", "--mode", "sliding", "--stride", "32", cwd=workshop)
    standard = pgolf_json("eval", "run", "--data", "data", "--mode", "standard", cwd=workshop)
    assert wide["val_bpb"] == pytest.approx(standard["val_bpb"], abs=1e-6)


def test_results_have_names_and_sensible_digits(workshop: Path, tmp_path: Path) -> None:
    data, ledger = ("--data", "data"), tmp_path / "ledger.jsonl"
    model = ("--model", "model.pgolf", "--tokenizer", "data/tokenizer.model")
    (tmp_path / "text").write_text("A cat and a dog.")
    for words, said in (
        (("data", "inspect", "data"), "bytes per token"),
        (("eval", "model.pgolf", *data, "--mode", "standard", "--ledger", ledger), "bits per byte"),
        (("verify-ledger", ledger, *data), "bits per byte"),
        (("audit", "model.pgolf", *data, "--by-decoding", "--targets", "20"), "bits one by one"),
        (("compress", tmp_path / "text", *model, "--out", tmp_path / "z"), "bits per byte"),
        (("decompress", tmp_path / "z", *model, "--out", tmp_path / "again"), "bits per byte"),
        (("report", "run", "--no-score", "-o", tmp_path / "page.html"), "bytes"),
        (("diff", "run", "run"), "raw float BPB"),
        (("runs", "."), "scores in bits per byte"),
        (("inspect", "model.pgolf"), "bits per code"),
    ):
        text = pgolf(*words, cwd=workshop).stdout
        assert said in text, words
        assert not re.search(r"\d\.\d{6,}|\bNone\b|\bnan\b", text), text
        # The first cells of rows: names in words, but those of runs and tensors.
        names = re.findall(r"^│ ([^│]*?) +│", text, re.MULTILINE)
        assert names and not [name for name in names if re.search(r"[a-z]_[a-z]", name) and "." not in name]


def test_pack_reports_its_bytes(workshop: Path) -> None:
    report = pgolf_json("pack", "run", "--out", "again.pgolf", cwd=workshop)
    assert report["model_bytes"] == (workshop / "again.pgolf").stat().st_size
    assert report["total_bytes"] == report["model_bytes"] + report["code_bytes"] <= report["cap"] == 300_000
    assert (workshop / "again.pgolf").read_bytes() == (workshop / "model.pgolf").read_bytes()


def test_inspect_ends_with_status_1_after_saying_what_is_damaged(workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop / "data", tmp_path / "data")
    shard = tmp_path / "data" / "text_train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    done = pgolf("data", "inspect", "data", cwd=tmp_path, check=1)
    assert (
        "text_train_000000.bin" in done.stdout and "not usable as it is" in done.stdout and done.stderr == ""
    )
    found = json.loads(pgolf("data", "inspect", "data", "--json", cwd=tmp_path, check=1).stdout)
    assert list(found["errors"]) == ["text_train_000000.bin"] and found["val"]["documents"] == 40


def test_prepare_says_what_it_found_and_what_it_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"record": {"body": text}}) for text in sentences(40)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{}", '{"record": null}']))
    words = (
        "data",
        "prepare",
        "--text",
        "a.jsonl",
        "--text-column",
        "record.body",
        "--vocab-size",
        "320",
        "--out",
        "data",
    )
    assert "--bad-documents skip" in pgolf(*words, cwd=tmp_path, check=2).stderr
    shown = " ".join(pgolf(*words, "--bad-documents", "skip", cwd=tmp_path).stdout.split())
    middle = sorted(map(len, sentences(40)))[19]
    assert f"40 documents, median {middle} characters" in shown
    assert "2 documents: 1 no such column, 1 null" in shown


def test_inspect_counts_the_prepared_data(workshop: Path) -> None:
    found = pgolf_json("data", "inspect", "data", cwd=workshop)
    assert found["train"]["documents"] == 300
    assert found["val"]["documents"] == 40
    original = sum(len(part.encode()) for part in (workshop / "train.txt").read_text().split("\n\n"))
    assert found["train"]["bytes"] == original


def test_official_layout_needs_a_tokenizer(workshop: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in (workshop / "data").glob("*.bin"):
        shutil.copy(shard, bare)
    arguments = ("eval", workshop / "model.pgolf", "--data", bare, "--mode", "standard")
    assert "--tokenizer" in pgolf(*arguments, check=2).stderr
    result = pgolf_json(*arguments, "--tokenizer", workshop / "data" / "tokenizer.model")
    expected = pgolf_json("eval", "model.pgolf", "--data", "data", "--mode", "standard", cwd=workshop)
    assert result["val_bpb"] == expected["val_bpb"]


def test_init_starts_from_given_weights(workshop: Path, tmp_path: Path) -> None:
    pgolf(
        *("train", "--recipe", "tiny.toml", "--set", "train.steps=0", "--data", "data"),
        *("--init", "run", "--out", tmp_path / "run"),
        cwd=workshop,
    )
    assert (
        pgolf_json("eval", tmp_path / "run", "--data", "data", cwd=workshop)["val_bpb"]
        == (pgolf_json("eval", "run", "--data", "data", cwd=workshop)["val_bpb"])
    )


def test_run_does_everything_once(workshop: Path, tmp_path: Path) -> None:
    arguments = ("run", "tiny.toml", "--data", "data", "--out", tmp_path / "run")
    table = pgolf(*arguments, cwd=workshop).stdout
    for word in ("float BPB", "packed BPB", "sliding BPB", "TTT BPB", "artifact", "no violation   27 tests"):
        assert word in table
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "report.md",
        "curve.png",
        "artifact.pgolf",
        "result.json",
        "metrics.jsonl",
        "recipe.toml",
    } <= files
    assert "checkpoint.safetensors" not in files
    report = (tmp_path / "run" / "report.md").read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"{result['evaluations']['ttt']['val_bpb']:.4f}" in report
    assert "curve.png" in report
    page = (tmp_path / "run" / "report.html").read_text()
    assert f">{result['evaluations']['ttt']['val_bpb']:.4f}<" in page
    for words in ("4 of 4 valid", "No violation found", "What the model writes", "sums are those of"):
        assert words in page
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["audited"]["mode"] == "ttt"
    names = ("model.safetensors", "audit.json", "report.html")
    before = [(tmp_path / "run" / name).stat().st_mtime_ns for name in names]
    again = pgolf_json(*arguments, cwd=workshop)
    assert again["evaluations"] == result["evaluations"]
    assert [(tmp_path / "run" / name).stat().st_mtime_ns for name in names] == before


@pytest.mark.parametrize(("number", "bpb"), [("456", 3.52877585), ("644", 3.508283), ("1232", 3.479608)])
def test_a_references_artifact_is_imported_and_scored(
    shared: Path, tmp_path: Path, number: str, bpb: float
) -> None:
    settings = [word for setting in trajectory_settings(number) for word in ("--set", setting)]
    artifact, tokenizer = shared / "golden" / f"pr{number}" / "artifact.ptz", shared / "tokenizers"
    tokenizer = tokenizer / "fineweb_1024_bpe.model"
    imported = pgolf_json(
        *("import", artifact, "--recipe", f"seed_{number}", *settings, "--out", tmp_path / "w.safetensors"),
        *("--tokenizer", tokenizer),
    )
    assert imported["parameters"] == {"456": 230_609, "644": 269_139, "1232": 231_657}[number]
    data = ("--data", shared / "golden" / "shards", "--tokenizer", tokenizer)
    result = pgolf_json("eval", tmp_path / "w.safetensors", *data, "--mode", "standard")
    assert result["val_bpb"] == pytest.approx(bpb, abs=1e-3)
    pgolf("pack", tmp_path / "w.safetensors", "--out", tmp_path / "again.pgolf")
    wrong = (
        "import",
        artifact,
        "--recipe",
        "seed_456" if number == "644" else "seed_644",
        "--out",
        tmp_path / "no",
    )
    assert "tensor" in pgolf(*wrong, check=2).stderr
    assert not (tmp_path / "no").exists()
