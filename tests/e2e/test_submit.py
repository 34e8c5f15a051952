"""`pgolf submit`: the script alone gives the run's numbers, and what breaks a rule is refused."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pgolf.compress.code_size import code_bytes
from pgolf.data.dataset import open_dataset
from pgolf.data.inspect import inspect_dataset
from pgolf.submit import checklist
from pgolf.submit import folder as submit_folder
from pgolf.submit.checklist import Item, Split, official_item
from tests.e2e.conftest import pgolf, pgolf_json

pytestmark = pytest.mark.usefixtures("no_pictures")
PEOPLE = ("--author", "A. Author", "--github-id", "author")


@pytest.fixture(scope="module")
def desk(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a finished run."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(workshop / "data", desk / "data")
    shutil.copy(workshop / "tiny.toml", desk)
    pgolf("run", "tiny.toml", "--data", "data", "--out", "run", "--device", "cpu", "--no-audit", cwd=desk)
    return desk


@pytest.fixture(autouse=True, scope="module")
def _one_script() -> object:
    # The same recipe all the time; writing its script takes seconds.
    original = submit_folder.bundle
    submit_folder.bundle = functools.cache(original)  # type: ignore[assignment]
    yield
    submit_folder.bundle = original


def _split(data: Path) -> Split:
    found = inspect_dataset(data)["val"]
    return Split("tiny", found["tokens"], found["documents"], found["bytes"])


@pytest.fixture(autouse=True, scope="module")
def _official(desk: Path) -> object:
    """The little text stands for the challenge's own, which is too large for a test."""
    original = dict(checklist.OFFICIAL)
    checklist.OFFICIAL[320] = _split(desk / "data")
    yield
    checklist.OFFICIAL.clear()
    checklist.OFFICIAL.update(original)


@pytest.fixture(scope="module")
def submission(desk: Path, _one_script: object, _official: object) -> Path:
    pgolf("submit", "run", "-o", "ready", "--track", "unlimited", "--device", "cpu", *PEOPLE, cwd=desk)
    return desk / "ready"


@pytest.fixture
def _no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not the point, the script is not run."""
    monkeypatch.setattr(submit_folder, "run_script", lambda *_: Item("the script runs", True, "not run"))


def _run_script(script: Path, *arguments: str | Path) -> list[dict[str, object]]:
    """What a script finds, run where pgolf cannot be imported."""
    blocked = (
        "import runpy, sys; sys.modules['pgolf'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked, script, *arguments, "--device", "cpu"],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("result ")]


def test_the_folder_has_what_the_challenge_asks_for(desk: Path, submission: Path) -> None:
    names = {path.name for path in submission.iterdir()}
    expected = {"README.md", "submission.json", "train_gpt.py", "train_gpt_readable.py", "requirements.txt"}
    assert names == expected | {"train_seed1337.log", "recipe.toml", "evidence"}
    about = json.loads((submission / "submission.json").read_text())
    result = json.loads((desk / "run" / "result.json").read_text())
    assert about["val_bpb"] == result["evaluations"]["ttt"]["val_bpb"]
    assert (about["author"], about["github_id"], about["seeds"]) == ("A. Author", "author", [1337])
    assert about["bytes_code"] == (submission / "train_gpt.py").stat().st_size
    model = (submission / "evidence" / "artifact_seed1337.pgolf").stat().st_size
    assert about["bytes_total"] == about["bytes_code"] + model
    assert about["compliant"] is True
    assert all(about["compliance"].values())
    readme = (submission / "README.md").read_text()
    assert f"{about['val_bpb']:.5f} bits per byte" in readme
    assert "NON-COMPLIANT" not in readme
    log = (submission / "train_seed1337.log").read_text()
    assert "step:12/12 train_loss:" in log
    assert f"ttt val_loss:{about['val_loss']:.8f}" in log
    lines = (submission / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == [
        "torch",
        "numpy",
        "sentencepiece",
        "zstandard",
        "safetensors",
        "numba",
    ]


def test_the_script_alone_gives_the_numbers_of_the_run(desk: Path, submission: Path, tmp_path: Path) -> None:
    result = json.loads((desk / "run" / "result.json").read_text())
    room = str(result["pack"]["cap"] - code_bytes())
    data = ("--data", desk / "data", "--modes", "standard,sliding,ttt")
    found = _run_script(submission / "train_gpt.py", *data, "--out", tmp_path / "out", "--room", room)
    names = ("float standard", "artifact standard", "artifact sliding", "artifact ttt")
    for name, key, score in zip(names, ("float", "packed", "sliding", "ttt"), found, strict=True):
        assert score["name"] == name
        assert score["val_bpb"] == pytest.approx(result["evaluations"][key]["val_bpb"], abs=1e-6)
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (desk / "run", tmp_path / "out")
    )
    losses = [
        [entry.get("train_loss", entry.get("val_loss")) for entry in entries] for entries in (ours, theirs)
    ]
    assert losses[0] == losses[1]
    assert (tmp_path / "out" / "artifact.pgolf").read_bytes() == (
        desk / "run" / "artifact.pgolf"
    ).read_bytes()


@pytest.mark.usefixtures("_no_script")
def test_the_script_of_a_recipe_with_a_memory_packs_and_scores_it_as_the_run_did(
    desk: Path, tmp_path: Path
) -> None:
    sets = [f"--set=memory.{key}" for key in ("enabled=true", "stored=both", "stored_bytes=1500", "order=2")]
    # Too little for the artifact beside the script, but not beside what `pgolf pack` counts of the code.
    sets += ["--set=memory.max_bytes=64000000", "--set=compress.cap=92000"]
    given = ("--data", "data", "--out", "remembering", "--device", "cpu")
    pgolf("run", "tiny.toml", *sets, *given, "--no-audit", cwd=desk)
    result = json.loads((desk / "remembering" / "result.json").read_text())
    assert pgolf_json("inspect", "remembering/artifact.pgolf", cwd=desk)["stored_ngrams"] > 0
    submit = ("--track", "unlimited", "--no-audit", "--force", "--device", "cpu", *PEOPLE)
    found = pgolf_json("submit", "remembering", "-o", "remembered", *submit, cwd=desk)
    assert [item["rule"] for item in found["items"] if not item["ok"]] == ["bytes, seed 1337", "audit"]
    about = json.loads((desk / "remembered" / "submission.json").read_text())
    assert about["val_bpb"] == result["evaluations"]["memory"]["val_bpb"]
    ledgers = {path.name for path in (desk / "remembered" / "evidence").glob("*.jsonl")}
    assert ledgers == {"ledger_memory_seed1337.jsonl", "ledger_sliding_seed1337.jsonl"}
    readme = (desk / "remembered" / "README.md").read_text()
    assert "| test-time training | memory |" in readme and "tokens of the training text" in readme
    assert "numba==" in (desk / "remembered" / "requirements.txt").read_text()

    room = str(result["pack"]["cap"] - code_bytes(memory=True))
    how = ("--data", desk / "data", "--modes", "sliding,ttt", "--out", tmp_path, "--room", room)
    _, sliding, memory = _run_script(desk / "remembered" / "train_gpt.py", *how)
    artifact = (tmp_path / "artifact.pgolf").read_bytes()
    assert artifact == (desk / "remembering" / "artifact.pgolf").read_bytes()
    for name, score in (("sliding", sliding), ("memory", memory)):
        ours = result["evaluations"][name]
        assert [score[key] for key in ("val_loss", "bytes")] == [ours[key] for key in ("val_loss", "bytes")]

    found = pgolf_json("submit", "remembering", "-o", "recalled", "--repack", *submit, cwd=desk)
    assert [item["rule"] for item in found["items"] if not item["ok"]] == ["audit"]
    assert 91_000 < found["total_bytes"] <= 92_000
    log = (desk / "recalled" / "train_seed1337.log").read_text().splitlines()
    names = ["packed", "sliding", "ttt", "memory"]
    assert [line.partition(" ")[0] for line in log[-4:]] == names and log[-1].startswith("memory val_loss:0.")


@pytest.mark.usefixtures("_no_script")
def test_what_breaks_the_rules_is_refused_with_reasons(desk: Path) -> None:
    done = pgolf("submit", "run", "-o", "refused", "--no-audit", "--device", "cpu", cwd=desk, check=1)
    assert not (desk / "refused").exists()
    assert not list(desk.glob(".refused*"))
    assert "were not looked at" in done.stdout
    assert "4 rules are broken" in done.stdout
    for reason in ("at least 3", "8 x H100", "left out (--no-audit)", "--author NAME"):
        assert reason in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.usefixtures("_no_script")
def test_force_marks_what_it_writes(desk: Path) -> None:
    arguments = ("submit", "run", "-o", "forced", "--no-audit", "--force", "--device", "cpu")
    found = pgolf_json(*arguments, cwd=desk)
    assert found["written"] and not found["compliant"]
    about = json.loads((desk / "forced" / "submission.json").read_text())
    assert about["status"] == "NON-COMPLIANT"
    assert len(about["violations"]) == 4
    assert "**NON-COMPLIANT**" in (desk / "forced" / "README.md").read_text()


@pytest.mark.usefixtures("_no_script")
def test_a_score_on_a_text_of_ones_own_keeps_not_every_rule(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(checklist.OFFICIAL, 320)
    rule, arguments = (
        "validation text is the official one",
        ("--track", "unlimited", "--device", "cpu", *PEOPLE),
    )
    done = pgolf("submit", "run", "-o", "own", *arguments, cwd=desk, check=1)
    assert "own: 1 rule is broken" in done.stdout and "own not written" in done.stdout
    assert "every rule is kept" not in done.stdout and not (desk / "own").exists()
    found = pgolf_json("submit", "run", "-o", "own", "--force", "--no-audit", *arguments, cwd=desk)
    assert found["written"] and not found["compliant"]
    about = json.loads((desk / "own" / "submission.json").read_text())
    assert about["compliant"] is False and about["compliance"][rule] is False
    assert about["status"] == "NON-COMPLIANT" and any(rule in text for text in about["violations"])
    assert "**NON-COMPLIANT**" in (desk / "own" / "README.md").read_text()


def test_only_the_published_splits_are_official(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, right = open_dataset(desk / "data"), checklist.OFFICIAL[320]
    item = official_item([dataset, dataset])
    assert item.ok and item.evidence.count(f"{right.tokens:,} tokens") == 1
    for other in (
        {"tokens": right.tokens + 1},
        {"documents": right.documents - 1},
        {"bytes": right.bytes + 1},
    ):
        monkeypatch.setitem(checklist.OFFICIAL, 320, replace(right, **other))
        item = official_item([dataset])
        assert not item.ok and "62,021,846 tokens" in item.evidence and "40,540,803 tokens" in item.evidence
    monkeypatch.delitem(checklist.OFFICIAL, 320)
    assert not official_item([dataset]).ok
    # What the challenge scores in windows of 2,048.
    scored = {name.name: (name.tokens - 1) // 2048 * 2048 for name in checklist.OFFICIAL.values()}
    assert scored == {"sp1024": 62_021_632, "sp8192": 40_540_160}


def test_every_run_needs_the_official_text(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "data", tmp_path / "other")
    shard = next((tmp_path / "other").glob("*_val_*.bin"))
    content = bytearray(shard.read_bytes())
    content[-2:] = (open_dataset(desk / "data").tokenizer.bos_id).to_bytes(2, "little")
    shard.write_bytes(content)
    item = official_item([open_dataset(desk / "data"), open_dataset(tmp_path / "other")])
    assert not item.ok and item.evidence.startswith("other has tiny: ")


@pytest.mark.usefixtures("_no_script")
def test_a_changed_ledger_is_found(desk: Path) -> None:
    shutil.copytree(desk / "run", desk / "changed")
    ledger = desk / "changed" / "ledger.ttt.jsonl"
    lines = ledger.read_text().splitlines()
    entry = json.loads(lines[2])
    lines[2] = json.dumps(entry | {"nats": entry["nats"] / 2})
    ledger.write_text("\n".join(lines) + "\n")
    arguments = (
        "submit",
        "changed",
        "-o",
        "no",
        "--track",
        "unlimited",
        "--no-audit",
        "--device",
        "cpu",
        *PEOPLE,
        "--json",
    )
    found = json.loads(pgolf(*arguments, cwd=desk, check=1).stdout)
    broken = {item["rule"]: item["evidence"] for item in found["items"] if not item["ok"]}
    assert set(broken) == {"ledger, seed 1337", "audit"}
    assert "line 3" in broken["ledger, seed 1337"]


def _broken(desk: Path, run: str, *arguments: str) -> dict[str, str]:
    """The rules that a run breaks on the track without limits, with their evidence."""
    done = pgolf(
        "submit", run, "-o", "no", "--track", "unlimited", *PEOPLE, *arguments, "--json", cwd=desk, check=1
    )
    assert not (desk / "no").exists()
    return {item["rule"]: item["evidence"] for item in json.loads(done.stdout)["items"] if not item["ok"]}


@pytest.mark.usefixtures("_no_script")
def test_a_changed_sliding_ledger_is_found(desk: Path, submission: Path) -> None:
    shutil.copytree(desk / "run", desk / "sliding")
    ledger = desk / "sliding" / "ledger.sliding.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
    audit = ("--audit", str(submission / "evidence" / "audit.json"))
    broken = _broken(desk, "sliding", *audit)
    assert set(broken) == {"sliding ledger, seed 1337"} and "line 4" in broken["sliding ledger, seed 1337"]
    ledger.write_text("\n".join(lines)[:-40])
    done = pgolf("submit", "sliding", "-o", "no", *audit, cwd=desk, check=2)
    assert "sliding/ledger.sliding.jsonl: not a ledger" in done.stderr


@pytest.mark.usefixtures("_no_script")
def test_only_an_audit_of_this_artifact_counts(desk: Path, submission: Path) -> None:
    audit = json.loads((submission / "evidence" / "audit.json").read_text())
    file = desk / "audit.json"
    file.write_text(json.dumps(audit))
    arguments = ("--track", "unlimited", "--audit", "audit.json", *PEOPLE, "--device", "cpu")
    assert pgolf_json("submit", "run", "-o", "audited", *arguments, cwd=desk)["compliant"]
    about = audit["audited"]
    changes: list[tuple[dict[str, object], str]] = [
        ({"audited": about | {"artifact_sha256": "0" * 64}}, "another artifact"),
        ({"audited": about | {"mode": "sliding", "text_sha256": "0" * 64}}, "another mode and text"),
        ({"audited": about | {"recipe_sha256": "0" * 64}}, "another recipe"),
        ({"audited": {}}, "another mode and recipe and artifact and tokenizer and text"),
        ({"targets": 2}, "too few"),
        ({"findings": []}, "no findings on C1"),
        (
            {"findings": [finding | {"verdict": "violation"} for finding in audit["findings"][:1]]},
            "violates C1",
        ),
    ]
    for change, reason in changes:
        file.write_text(json.dumps(audit | change))
        assert reason in _broken(desk, "run", "--audit", "audit.json")["audit"]
    del audit["audited"]
    file.write_text(json.dumps(audit))
    assert "does not say what was audited" in _broken(desk, "run", "--audit", "audit.json")["audit"]


def test_what_takes_long_waits_for_the_quick_rules(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("audit_job", "run_script", "repacked"):
        monkeypatch.setattr(submit_folder, name, None)
    for more in ((), ("--repack",)):
        done = pgolf("submit", "run", "-o", "no", "--device", "cpu", *more, cwd=desk, check=1)
        assert "3 rules are broken" in done.stdout and "were not looked at" in done.stdout


def test_a_process_that_is_stopped_leaves_nothing(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_folder, "verify", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    pgolf("submit", "run", "-o", "stopped", "--force", cwd=desk, check=128 + signal.SIGTERM)
    assert not list(desk.glob("*stopped*")) and not list(desk.glob(".stopped*"))


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("provenance.json", None, "provenance.json: damaged (started is missing"),
        (
            "provenance.json",
            {"data": {"folder": "x"}},
            "provenance.json: damaged (data.tokenizer_sha256 is missing",
        ),
        ("result.json", {"train": {"steps": 3}}, "result.json: damaged (train.seconds is missing"),
        (
            "provenance.json",
            {"shared": [{"with": "c7", "scores": "raw, sliding"}]},
            "sliding score is that of c7",
        ),
    ],
)
def test_damaged_runs_are_told_in_one_line(
    desk: Path, tmp_path: Path, file: str, change: dict[str, object] | None, reason: str
) -> None:
    shutil.copytree(desk / "run", tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_text(json.dumps({} if change is None else json.loads(path.read_text()) | change))
    if change is not None and "shared" in change:
        (tmp_path / "run" / "ledger.sliding.jsonl").unlink()
    done = pgolf("submit", "run", "-o", "x", cwd=tmp_path, check=2)
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("_no_script")
def test_repacking_uses_what_the_script_leaves(desk: Path) -> None:
    arguments = (
        "submit",
        "run",
        "-o",
        "again",
        "--track",
        "unlimited",
        "--no-audit",
        "--force",
        "--repack",
        *PEOPLE,
    )
    # Too small for the run's artifact beside this script, but not for a coarser one.
    pgolf("pack", "run", "--out", "small.pgolf", "--set", "compress.cap=69000", "--cap", "69000", cwd=desk)
    shutil.copytree(desk / "run", desk / "tight")
    shutil.copy(desk / "small.pgolf", desk / "tight" / "artifact.pgolf")
    found = pgolf_json(
        *(word if word != "run" else "tight" for word in arguments), "--device", "cpu", cwd=desk
    )
    broken = {item["rule"] for item in found["items"] if not item["ok"]}
    assert broken == {"audit"}
    # Without that it is too much, and the remedy is this one.
    assert _broken(desk, "tight", "--no-audit")["bytes, seed 1337"].endswith("too many; use --repack")
    # Every number is of the new artifact.
    artifact = desk / "again" / "evidence" / "artifact_seed1337.pgolf"
    scored = pgolf_json("eval", artifact, "--data", "data", "--mode", "standard", "--device", "cpu", cwd=desk)
    log = (desk / "again" / "train_seed1337.log").read_text()
    assert f"packed val_loss:{scored['val_loss']:.8f} val_bpb:{scored['val_bpb']:.8f}" in log
    assert 68_000 < found["total_bytes"] <= 69_000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("run", "-o", "x", "--audit", "tiny.toml", "--repack"), "--audit with --repack"),
        (("nowhere", "-o", "x"), "holds no finished run"),
        (("run", "-o", "data"), "exists already"),
        (("run", "run", "-o", "x"), "named twice"),
        (("run", "-o", "x", "--track", "fast"), "--track fast: unknown"),
        (("run", "-o", "x", "--mode", "standard"), "--mode standard: unknown"),
        (("run", "-o", "x", "--audit", "tiny.toml", "--no-audit"), "exclude each other"),
        (("run", "-o", "x", "--audit", "data/manifest.json"), "not what `pgolf audit --json` prints"),
        (("run", "-o", "x", "--data", "nowhere"), "pass --data DIR"),
    ],
)
def test_mistakes_are_told_in_one_line(desk: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = pgolf("submit", *arguments, cwd=desk, check=2)
    assert reason in done.stderr
    assert not (desk / "x").exists()
