"""Plug-ins in a process of their own: what they are shown, what they find, how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.audit.audit import audit
from pgolf.audit.isolated import GradedScorer, IsolatedScorer, isolated
from pgolf.audit.subject import Context
from pgolf.data.dataset import Text
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import grade
from tests.audit.zoo.cheating_scorers import ReadsTheCollector, ReadsWholeEvaluations
from tests.audit.zoo.toys import BOS, BYTES, FEW, VOCABULARY, ToyScorer, toy_text
from tests.e2e.conftest import pgolf, pgolf_json, quick_python, workshop  # noqa: F401

# Toys are the zoo's; in their new process all lie in one scorer, which begins as the one it is told.
PLUGIN = '''
import json, os, sys, time
from pathlib import Path
from tests.audit.zoo.cheating_scorers import ALittleMoreThanOne, ReadsTheCollector, ReadsWholeEvaluations
from tests.audit.zoo.toys import ToyScorer

KINDS = [ToyScorer, ReadsWholeEvaluations, ReadsTheCollector]

class Several(ToyScorer):
    """Each stream is scored by the next kind. Notes what it finds around itself as its digest."""
    number = -1

    def begin(self, first, targets):
        self.number += 1
        self.by = KINDS[self.number % len(KINDS)]()
        self.by.begin(first, targets)
        self.shown = []

    def wanted(self):
        return self.by.wanted()

    def distributions(self, given):
        self.shown.append(["given", *given.tolist()])
        return self.by.distributions(given)

    def receive(self, recorded):
        self.shown.append(["received", *map(int, recorded.tokens)])
        self.by.receive(recorded)

    def state_digest(self):
        files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                 if os.path.exists(f"/proc/self/fd/{n}")] if os.path.isdir("/proc/self/fd") else []
        return json.dumps({"cwd": os.listdir("."), "environment": dict(os.environ), "argv": sys.orig_argv,
                           "files": [f for f in files if not f.startswith(("pipe:", "socket:"))],
                           "shown": self.shown})

class Bad(ToyScorer):
    def wanted(self):
        print("not an answer")
        print("the last words", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)

    def state_digest(self):
        while True:
            pass

class Orphan(ToyScorer):
    leaves = False

    def wanted(self):
        if os.fork() == 0:
            if self.leaves:
                os.setsid()
            time.sleep(60)
        os._exit(0)

class Leaver(Orphan):
    leaves = True

class Odd(ToyScorer):
    periods = "abc"

def odd(context): return Odd()
def orphan(context): return Orphan()
def leaver(context): return Leaver()
def several(context): return Several()
def bad(context): return Bad()
def more(context): return ALittleMoreThanOne()

def opens(context):
    list(Path(DATA).glob("*_val_*"))[0].read_bytes()
    return several(context)
'''


def context(folder: Path) -> Context:
    (folder / "artifact").write_bytes(b"weights")
    return Context(folder / "artifact", torch.device("cpu"), VOCABULARY, BOS, BYTES)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def several(plugin: Path) -> GradedScorer:
    """One process for these tests, started by the real interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_PLACE", str(plugin))
        patch.chdir(plugin)  # The current folder is not passed on; the tests' own is, by sys.path.
        made = isolated(f"{plugin / 'plugin.py'}:several", context(plugin))
    assert isinstance(made, IsolatedScorer)
    return GradedScorer(made, "plugin.py:several")


def graded(scorer: Any, strict: bool) -> Ledger:
    tokens, ledger = toy_text(0), Ledger()
    grade(Short(scorer), tokens, BYTES.count_stream(tokens), ledger, strict=strict)
    return ledger


class Short:
    """Announces more targets than are scored, as an evaluation of the whole text would."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def begin(self, first: int, targets: int) -> None:
        self.scorer.begin(first, 6000)


@pytest.mark.parametrize("strict", [True, False])
def test_who_searches_for_the_text_finds_nothing(several: GradedScorer, strict: bool) -> None:
    honest = graded(ToyScorer(), strict).score().loss
    for cheat in (ReadsWholeEvaluations(), ReadsTheCollector()):
        assert graded(cheat, strict).score().loss < honest - 0.1, "in this process they find it"
    for _ in range(3):
        assert graded(several, strict).score().loss == pytest.approx(honest, abs=1e-6)


def test_what_the_process_is_given(several: GradedScorer) -> None:
    entries = graded(several, strict=True).entries
    found, tokens = json.loads(entries[-1].state), toy_text(0)
    assert found["cwd"] == [] and "SECRET_PLACE" not in found["environment"]
    assert "PYTHONPATH" not in found["environment"] and found["files"] == []
    # In strict mode each target is asked for before it is shown.
    wanted = [each for token in tokens[1:88].tolist() for each in (["given"], ["received", token])]
    assert found["shown"] == wanted
    assert not any("_val_" in word for word in found["argv"])


@pytest.mark.usefixtures("quick_python")
def test_a_sum_a_little_above_one_is_no_score(plugin: Path) -> None:
    made = isolated(f"{plugin / 'plugin.py'}:more", context(plugin))
    assert isinstance(made, IsolatedScorer)
    scorer = GradedScorer(made, "plugin")
    graded(scorer, strict=False)
    with pytest.raises(PgolfError, match=r"do not add up to 1: .* 9e-05 on average; allowed 1e-05"):
        scorer.check()


def in_a_process(plugin: Path, name: str, seconds: float = 60.0) -> IsolatedScorer:
    """A scorer that may take so long for each answer, once it is made."""
    made = isolated(f"{plugin / 'plugin.py'}:{name}", context(plugin))
    assert isinstance(made, IsolatedScorer)
    made._child.seconds = seconds
    return made


@pytest.mark.usefixtures("quick_python")
def test_a_process_that_ends_or_takes_too_long(plugin: Path) -> None:
    made = in_a_process(plugin, "bad", seconds=0.2)
    with pytest.raises(PgolfError, match=r"plugin.py:bad: state_digest\(\) took longer than 0 s"):
        made.state_digest()
    made = in_a_process(plugin, "bad")
    with pytest.raises(PgolfError, match=r"bad: its process ended with status 3 in wanted.*the last words"):
        made.wanted()


@pytest.mark.usefixtures("quick_python")
def test_a_process_ends_with_a_killed_grader(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    code = f"from pgolf.audit.isolated import serve; serve({killed.pid}, {str(folder)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.wait(30) == -signal.SIGKILL, "it waits for requests"
    assert not folder.exists()


@pytest.mark.usefixtures("quick_python")
def test_attributes_that_fail_are_the_factorys_mistake(plugin: Path) -> None:
    with pytest.raises(PgolfError, match=r"plugin.py:odd: the factory failed with ValueError: .*'a'"):
        isolated(f"{plugin / 'plugin.py'}:odd", context(plugin))


# By the real interpreter: what stands in for it elsewhere begins no session of its own.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("who", ["orphan", "leaver"])
def test_what_a_process_leaves_behind_does_not_hold_the_grader_up(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.chdir(plugin)
    made, started = in_a_process(plugin, who, seconds=1.0), time.monotonic()
    with pytest.raises(PgolfError, match=rf"{who}: wanted\(\) took longer"):
        made.wanted()
    assert time.monotonic() - started < 30, "what is left behind goes on for 60"


@pytest.mark.usefixtures("quick_python")
def test_an_audit_sees_what_the_process_opens(plugin: Path) -> None:
    data, text = plugin / "data", toy_text(0)
    data.mkdir()
    (data / "text_val_0.bin").write_bytes(b"text")
    (plugin / "opens.py").write_text(PLUGIN.replace("DATA", repr(str(data))))
    about = context(plugin)
    report = audit(
        lambda: isolated(f"{plugin / 'opens.py'}:opens", about),
        Text(text, BYTES.count_stream(text)),
        about,
        FEW,
        name="opens",
        data=data,
    )
    bad = {finding.test for finding in report.findings if not finding.passed}
    assert "validation text" in bad and not {"processes", "sockets", "hidden target"} & bad


@pytest.fixture
def desk(workshop: Path, tmp_path: Path) -> Path:  # noqa: F811
    shutil.copytree(workshop / "data", tmp_path / "data")
    shutil.copy(workshop / "model.pgolf", tmp_path)
    (tmp_path / "plugin.py").write_text(
        "from pgolf.evaluate.build import build_scorer\n"
        "def own(context):\n"
        "    weights = context.weights()\n"
        "    return build_scorer(weights.model(), weights.recipe, 'sliding')\n"
        "def shell(context):\n"
        "    import os\n"
        "    os.system('true')\n"
        "    return own(context)\n"
        "def evaluator(context):\n"
        "    return lambda tokens, byte_table: None\n"
    )
    return tmp_path


@pytest.mark.usefixtures("quick_python")
def test_a_plug_in_is_scored_with_a_ledger(desk: Path) -> None:
    of = ("model.pgolf", "--data", "data", "--limit-targets", "40")
    plug_in = ("--scorer", "plugin.py:own", "--isolated")
    own = pgolf_json("eval", *of, "--mode", "sliding", cwd=desk)
    for strict in ([], ["--strict"]):
        scored = pgolf_json("eval", *of, *plug_in, *strict, "--ledger", "one.jsonl", cwd=desk)
        assert scored["val_bpb"] == pytest.approx(own["val_bpb"], rel=1e-5) and "isolated" in scored["mode"]
        header = json.loads((desk / "one.jsonl").read_text().splitlines()[0])
        assert header["isolated"] and header["scorer"] == "plugin.py:own" and header["strict"] == bool(strict)
        verify = ("verify-ledger", "one.jsonl", "--data", "data", "--artifact", "model.pgolf")
        assert pgolf_json(*verify, cwd=desk)["valid"]


@pytest.mark.usefixtures("quick_python")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--scorer", "plugin.py:own"), ["--isolated"]),
        (("--isolated",), ["--scorer"]),
        (("--scorer", "plugin.py:own", "--isolated", "--mode", "ttt"), ["--mode"]),
        (("--scorer", "plugin.py:own", "--isolated", "--stride", "8"), ["--stride"]),
        (("--scorer", "plugin.py:evaluator", "--isolated"), ["pgolf audit"]),
        (("--scorer", "plugin.py:shell", "--isolated", "--limit-targets", "40"), ["process", "no score"]),
    ],
)
def test_mistakes_are_one_line(desk: Path, more: tuple[str, ...], words: list[str]) -> None:
    done = pgolf("eval", "model.pgolf", "--data", "data", *more, cwd=desk, check=2)
    assert done.stderr.startswith("pgolf: error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words) and done.stdout == ""
