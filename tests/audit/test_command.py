"""`pgolf audit` as a user types it, on a trained run and on plug-ins."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audit.zoo import INVALID, VALID
from tests.e2e.conftest import pgolf, pgolf_json, quick_python, workshop  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_python")  # Plug-ins run in a process of their own.
ROOT = Path(__file__).resolve().parents[2]
PLUGIN = '''
import numpy as np
from pgolf.audit.subject import Claim

def fails(context):
    raise KeyError("weights")

def wrong(context):
    return 3

def nothing(context):
    return lambda tokens, byte_table: None

def uniform(context):
    """Every token costs the same; bytes are counted right, or ten more."""
    def evaluate(tokens, byte_table, extra=0):
        nats = np.full(len(tokens) - 1, np.log(context.vocab_size))
        count = int(byte_table.count(tokens[:-1], tokens[1:]).sum()) + extra
        return Claim(nats=nats, bytes=count, val_bpb=nats.sum() / np.log(2) / count)
    return evaluate

def more_bytes(context):
    honest = uniform(context)
    return lambda tokens, byte_table: honest(tokens, byte_table, extra=10)

def own(context):
    """pgolf's own model, a tenth cheaper than it is."""
    from pgolf.evaluate.build import build_scorer
    weights = context.weights()
    scorer = build_scorer(weights.model(), weights.recipe, "sliding")
    losses = scorer.losses
    scorer.losses = lambda block: 0.9 * losses(block)
    return scorer
'''


AUDIT = ("--data", "data/web", "--scorer")


@pytest.fixture
def desk(workshop: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with an artifact, data and a plug-in."""
    shutil.copytree(workshop / "data", tmp_path / "data" / "web")
    shutil.copy(workshop / "model.pgolf", tmp_path)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "weights.bin").write_bytes(b"any format")
    return tmp_path


@pytest.mark.parametrize("mode", ["standard", "ttt"])
def test_pgolfs_own_scorers(desk: Path, mode: str) -> None:
    arguments = (
        "audit",
        "model.pgolf",
        "--data",
        "data/web",
        "--mode",
        mode,
        "--targets",
        "320",
        "--seed",
        "3",
    )
    report = pgolf_json(*arguments, cwd=desk)
    assert report["ok"] and report["violated"] == [] and report["targets"] == 320 and report["seed"] == 3
    scored = pgolf_json("eval", *arguments[1:6], "--limit-targets", "320", cwd=desk)
    if mode == "standard":  # test-time training would end earlier, so its schedule is another one
        assert report["val_bpb"] == pytest.approx(scored["val_bpb"], rel=1e-6)
    kinds = {finding["condition"] for finding in report["findings"]}
    assert {"C1", "C2", "C3", "C4", "bytes", "documents", "isolation", "time"} == kinds
    chunks = [finding for finding in report["findings"] if finding["test"] == "future tokens"]
    assert ("chunk" in chunks[0]["evidence"]) == (mode == "ttt")


def test_the_memory_of_an_artifact(desk: Path) -> None:
    """The audit is of what an evaluation scores; its state is looked at, and it decodes."""
    of_memory = ("model.pgolf", "--data", "data/web", "--mode", "ttt", "--set", "memory.enabled=true")
    report = pgolf_json("audit", *of_memory, "--set", "memory.order=2", "--targets", "120", cwd=desk)
    assert report["ok"], report["findings"]
    state = next(each for each in report["findings"] if each["test"] == "state while scoring")
    assert "snapshot()" in state["evidence"]
    scored = pgolf_json("eval", *of_memory, "--set", "memory.order=2", "--limit-targets", "120", cwd=desk)
    without = pgolf_json("eval", *of_memory[:5], "--limit-targets", "120", cwd=desk)
    # The audit announces the whole text, and the schedule of rates goes by that.
    assert report["val_bpb"] == pytest.approx(scored["val_bpb"], rel=1e-3)
    assert report["val_bpb"] < without["val_bpb"] - 0.01
    proof = pgolf_json("audit", *of_memory, "--by-decoding", "--targets", "20", cwd=desk)
    assert proof["ok"] and proof["equal"]


def test_the_table(desk: Path) -> None:
    audit = ("audit", "weights.bin", *AUDIT[:2], "--targets", "96", "--scorer")
    done = pgolf(*audit, "plugin.py:uniform", cwd=desk)
    assert "no violation found" in done.stdout
    assert "probabilities of all 320 targets" in " ".join(done.stdout.split())
    arguments = (*audit, "plugin.py:more_bytes")
    done = pgolf(*arguments, cwd=desk, check=1)
    assert "violates bytes" in done.stdout and "VIOLATION" in done.stdout
    found = json.loads(pgolf(*arguments, "--json", cwd=desk, check=1).stdout)
    assert found["violated"] == ["bytes"] and not found["ok"]


def test_the_limit_of_time(desk: Path) -> None:
    arguments = ("audit", "model.pgolf", "--data", "data/web", "--mode", "standard", "--targets", "40")
    assert "limit 600 s" in pgolf(*arguments, "--limit-seconds", "600", cwd=desk).stdout
    assert "violates time" in pgolf(*arguments, "--limit-seconds", "0.0001", cwd=desk, check=1).stdout


def test_by_decoding(desk: Path) -> None:
    arguments = ("--data", "data/web", "--by-decoding", "--targets", "40")
    proof = pgolf_json("audit", "model.pgolf", "--mode", "ttt", *arguments, cwd=desk)
    assert proof["ok"] and proof["equal"] and proof["targets"] == 40
    done = pgolf("audit", "model.pgolf", "--scorer", "plugin.py:own", *arguments, cwd=desk, check=1)
    assert "NOT VALID" in done.stdout and "│ problem │ " in done.stdout


def test_a_plug_in_on_pgolfs_artifact(desk: Path) -> None:
    arguments = (
        "audit",
        "model.pgolf",
        "--data",
        "data/web",
        "--scorer",
        "plugin.py:own",
        "--targets",
        "100",
        "--json",
    )
    assert "C2" in json.loads(pgolf(*arguments, cwd=desk, check=1).stdout)["violated"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.pgolf",), ["missing.pgolf"]),
        (("weights.bin", "--data", "data/web"), ["weights.bin"]),
        (("missing.bin", *AUDIT, "plugin.py:uniform"), ["missing.bin"]),
        (("weights.bin", "--scorer", "plugin.py:uniform"), ["--data"]),
        (("weights.bin", "--data", "nowhere", "--scorer", "plugin.py:uniform"), ["nowhere"]),
        (("model.pgolf", "--data", "data/web", "--mode", "best"), ["best", "ttt"]),
        (("weights.bin", *AUDIT, "plugin.py:uniform", "--mode", "ttt"), ["--mode", "--scorer"]),
        (("weights.bin", *AUDIT, "plugin.py:uniform", "--by-decoding"), ["--by-decoding", "Scorer"]),
        (("weights.bin", *AUDIT, "plugin.py:unifrom"), ["unifrom", "uniform"]),
        (("weights.bin", *AUDIT, "plugin.py"), ["MODULE:FUNCTION"]),
        (("weights.bin", *AUDIT, "plugins:make"), ["no module plugins"]),
        (("weights.bin", *AUDIT, "plugin.py:fails"), ["KeyError", "plugin.py, line 6"]),
        (("weights.bin", *AUDIT, "plugin.py:wrong"), ["type int", "Scorer"]),
        (("weights.bin", *AUDIT, "plugin.py:nothing"), ["type NoneType", "Claim"]),
        (("weights.bin", *AUDIT, "plugin.py:own"), ["weights.bin"]),
        (("model.pgolf", "--data", "data/web", "--targets", "1"), ["targets"]),
        (("model.pgolf", "--data", "data/web", "--set", "model.width=3"), ["model.width"]),
    ],
)
def test_mistakes_are_one_line(desk: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    done = pgolf("audit", *arguments, cwd=desk, check=2)
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("pgolf: error: ") and all(word in lines[-1] for word in words), done.stderr
    assert done.stdout == ""


def test_every_command_of_the_page(desk: Path) -> None:
    """docs/audit.md from top to bottom, with what it says of the plain script."""
    shutil.copytree(ROOT / "examples", desk / "examples")
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    audited = 0
    for words in (shlex.split(line, comments=True) for line in lines):
        if words and words[0] == "pgolf":
            # The last one counts: as they stand they take a minute.
            few = ("--limit-targets",) if words[1] == "eval" else ("--targets",)
            pgolf(*words[1:], *few, "32" if "--by-decoding" in words else "96", cwd=desk)
            audited += 1
        elif words[:2] == ["python", "examples/plain_script.py"]:
            subprocess.run([sys.executable, *words[1:]], cwd=desk, check=True)
    assert audited >= 4


def test_the_plug_in_on_the_page_is_the_one_in_the_folder() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    plugin = (ROOT / "examples" / "plain_script_plugin.py").read_text(encoding="utf-8")
    assert plugin.strip() in text
    assert len(plugin.splitlines()) <= 30


def test_the_page_counts_the_zoo() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    assert f"{len(VALID)} valid subjects and {len(INVALID)} invalid ones" in text
    named = set(re.findall(r"`(\w+)`", text[text.index("| known violation") :]))
    assert {"two_pass_ttt", "slot_windows"} <= named & {animal.name for animal in INVALID}
