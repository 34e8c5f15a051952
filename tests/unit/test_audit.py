"""The auditor's parts: what it notices, and what it says of plug-ins that are none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pgolf.audit import held
from pgolf.audit.adapter import ForwardLogitsScorer
from pgolf.audit.audit import audit
from pgolf.audit.report import ByteRows, Finding, Largest, Report, ordered, similar_tokens
from pgolf.audit.runs import Settings
from pgolf.audit.state import changes, digest_parts, integers, learned
from pgolf.audit.streams import Stream, largest_change
from pgolf.audit.subject import Claim, Context, Evaluator, factory_place, load_factory, make_subject
from pgolf.audit.watch import Learning, Watch
from pgolf.data.dataset import Text
from pgolf.errors import PgolfError
from pgolf.evaluate.ledger import Ledger
from pgolf.evaluate.protocol import grade
from pgolf.evaluate.scorer import WindowScorer
from tests.audit.zoo.toys import BYTES
from tests.unit.stand_ins import VOCABULARY, byte_counts, random_tokens, small_model, small_recipe


def context(tmp_path: Path) -> Context:
    return Context(tmp_path / "artifact", torch.device("cpu"), VOCABULARY, 1, BYTES)


# Plug-ins that are none


PLUGIN = """
from dataclasses import dataclass
number = 3
def make(context): return lambda tokens, byte_table: None
def fails(context): raise ValueError("no such tensor")
@dataclass
class Thing:
    x: int = 0
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plugin", ["MODULE:FUNCTION"]),
        (":make", ["MODULE:FUNCTION"]),
        ("nowhere.py:make", ["no such file nowhere.py"]),
        ("no_such_module:make", ["no module no_such_module"]),
        ("plugin.py:mak", ["no mak", "did you mean make?"]),
        ("plugin.py:number", ["is an object of type int"]),
        ("broken.py:make", ["the import failed with ZeroDivisionError", "broken.py, line 2"]),
        ("needs.py:make", ["the import failed with ModuleNotFoundError", "something_else"]),
    ],
)
def test_a_factory_that_cannot_be_loaded(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("plugin.py").write_text(PLUGIN)
    Path("broken.py").write_text("\n1 / 0\n")
    Path("needs.py").write_text("import something_else\n")
    with pytest.raises(PgolfError) as raised:
        factory_place(name)
        load_factory(name, tmp_path)
    assert all(word in str(raised.value) for word in [*words, "--scorer"]), raised.value
    assert "\n" not in str(raised.value)


def test_a_module_and_a_file_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("plugin_of_a_test.py").write_text(PLUGIN)
    assert load_factory("plugin_of_a_test:make", tmp_path).__name__ == "make"
    assert load_factory("plugin_of_a_test.py:make", tmp_path).__name__ == "make"
    with pytest.raises(
        PgolfError, match=r"the factory failed with ValueError: no such tensor \(plugin_of_a_test.py"
    ):
        make_subject(load_factory("plugin_of_a_test:fails", tmp_path), context(tmp_path), "plugin")


@pytest.mark.parametrize("made", [None, 3, "text", Evaluator, object()])
def test_a_factory_that_makes_something_else(made: Any, tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="must return"):
        make_subject(lambda _: made, context(tmp_path), "plugin")


def test_a_scorer_of_another_vocabulary(tmp_path: Path) -> None:
    scorer = ForwardLogitsScorer(Constant(7), 8)
    with pytest.raises(PgolfError, match=f"vocab_size is 7, the data's tokenizer has {VOCABULARY}"):
        make_subject(lambda _: scorer, context(tmp_path), "plugin")


class Constant(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(vocabulary).float())

    def forward_logits(self, input_ids: Tensor) -> Tensor:
        return self.logits.expand(*input_ids.shape, -1)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"nats": 1.0}, "an object of type dict, not a pgolf.audit.subject.Claim"),
        (Claim(np.ones((2, 5)), 10), "nats have shape"),
        (Claim(np.ones(3), 10, positions=np.arange(4)), "nats have shape"),
        (Claim(np.ones(3), 10, positions=np.ones(3)), "nats have shape"),
        (Claim(np.ones(3), 10, positions=np.array([0, 1, 10])), "target 10 of 10"),
        (Claim(np.ones(3), 10, positions=np.array([0, 1, -1])), "target -1 of 10"),
        (Claim(np.array([1, np.nan]), 10), "target 1 is not a number"),
        (Claim(np.ones(3), "many"), "reading its claim failed with ValueError"),  # type: ignore[arg-type]
    ],
)
def test_claims_that_are_none(claim: Any, words: str) -> None:
    evaluator = Evaluator(lambda tokens, byte_table: claim, "plugin")
    with pytest.raises(PgolfError, match=f"plugin: .*{words}"):
        evaluator(random_tokens(11), BYTES, 10, ())


def test_an_evaluator_is_given_what_it_takes() -> None:
    given: dict[str, Any] = {}

    def plain(tokens: Any, byte_table: Any) -> Claim:
        return Claim(np.ones(10), 10)

    def curious(tokens: Any, byte_table: Any, *, announced: int, wanted: Any = ()) -> Claim:
        given.update(announced=announced, wanted=wanted)
        tokens[:] = 0  # a copy
        return Claim(np.ones(10), 10)

    tokens = random_tokens(11) + 1
    for function in (plain, curious):
        claim = Evaluator(function, "plugin")(tokens, BYTES, 20, [3, 4])
        assert claim.positions is not None and claim.positions.tolist() == list(range(10))
    assert given == {"announced": 20, "wanted": (3, 4)} and tokens.all()


def test_an_evaluator_that_fails_says_where() -> None:
    with pytest.raises(
        PgolfError, match=r"plugin: evaluating failed with ZeroDivisionError.*test_audit.py, line"
    ):
        Evaluator(lambda tokens, byte_table: 1 / 0, "plugin")(random_tokens(11), BYTES, 10, ())


def test_too_little_text(tmp_path: Path) -> None:
    short = random_tokens(2)
    with pytest.raises(PgolfError, match="1 targets are too few"):
        audit(lambda: None, Text(short, byte_counts(short)), context(tmp_path), Settings(), name="nothing")  # type: ignore


# Text and its variations


def stream(count: int = 60, seed: int = 0) -> Stream:
    tokens = random_tokens(count, seed)
    tokens[0] = 1
    return Stream(tokens, 1, VOCABULARY)


@given(seed=st.integers(0, 1000), count=st.integers(3, 80), share=st.floats(0, 1))
def test_variations_leave_what_comes_before(seed: int, count: int, share: float) -> None:
    text, generator = stream(count, seed), np.random.default_rng(seed)
    edge = 1 + int(share * (text.targets - 1))
    starts = text.tokens == 1
    future, past = text.other_future(edge, generator), text.other_past(edge, generator)
    assert (future[: edge + 1] == text.tokens[: edge + 1]).all() and (past[edge:] == text.tokens[edge:]).all()
    assert ((future == 1) == starts).all() and ((past == 1) == starts).all()
    assert (future != text.tokens)[edge + 1 :][~starts[edge + 1 :]].all()
    assert (past != text.tokens)[:edge][~starts[:edge]].all()
    for _, tokens in text.other_boundaries(edge, generator):
        assert len(tokens) == len(text.tokens) and (tokens[: edge + 1] == text.tokens[: edge + 1]).all()
        assert ((tokens == 1) != starts).any()


def test_edges_of_every_kind() -> None:
    text = stream(100)
    edges = text.edges(
        [("chunk", [20, 40, 60]), ("window", [15, 30, 0, 99, 100])], 2, np.random.default_rng(0)
    )
    kinds = [edge.kind for edge in edges]
    assert (
        kinds.count("chunk") == kinds.count("window") == kinds.count("random") == 2
        and kinds.count("early") == 1
    )
    assert all(1 <= edge.at < 99 for edge in edges) and len({edge.at for edge in edges}) == len(edges)


def test_largest_change() -> None:
    inf, nan = np.inf, np.nan
    assert largest_change(np.array([1.0, 2, 3]), np.array([1.0, 2.5, 3.1])) == (0.5, 1)
    assert largest_change(np.array([inf, nan]), np.array([inf, nan])) == (0, 0)
    assert largest_change(np.array([1, nan]), np.array([1, 2.0])) == (inf, 1)
    assert largest_change(np.array([]), np.array([])) == (0, 0)


def test_the_largest_of_many() -> None:
    found = Largest()
    assert found.judged("C1", "test", 0.1, "nothing").verdict == "not tested"
    found.see(-0.05, "here")
    assert found.judged("C1", "test", 0.1, "some").verdict == "ok"
    found.see(float("nan"), "there")
    finding = found.judged("C1", "test", 0.1, "some")
    assert finding.verdict == "violation" and "there" in finding.evidence
    json.dumps(finding.details, allow_nan=False)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_rows_that_are_no_numbers_are_a_violation_and_no_warning() -> None:
    for values in ([np.nan, np.nan], [np.inf, -np.inf, np.nan], [0.0, np.inf]):
        found = Largest()
        found.take(np.array(values), 7)
        finding = found.judged_sums("sums", "rows")
        assert not finding.passed and "inf on average" in finding.evidence, finding.evidence


# State


def test_every_change_of_an_object_is_seen() -> None:
    class Thing:
        __slots__ = ("slot",)

        def __init__(self) -> None:
            self.slot = 1

    class Holder:
        pass

    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(module.parameters())
    holder = Holder()
    holder.__dict__.update(
        module=module, optimizer=optimizer, array=np.zeros(3), words={"a": [1, {"b": 2}]},
        group={1, 2}, thing=Thing(), generator=np.random.default_rng(0), text="x", itself=holder,
        function=len, called=lambda: 1,
    )  # fmt: skip
    parts = digest_parts(holder)
    assert digest_parts(holder) == parts

    def step() -> None:
        module(torch.ones(4, 2)).sum().backward()
        optimizer.step()

    weights = [
        lambda: module[0].bias.data.add_(1),
        lambda: module[1].running_mean.add_(1),
        lambda: optimizer.param_groups[0].update(lr=0.5),
        step,
    ]
    other = [
        lambda: holder.array.__setitem__(1, 5),
        lambda: holder.words["a"][1].update(b=3),
        lambda: holder.words["a"].append(1),
        lambda: holder.group.add(3),
        lambda: setattr(holder.thing, "slot", 2),
        lambda: holder.generator.random(),
        lambda: setattr(holder, "text", "y"),
    ]
    for change in [*weights, *other]:
        change()
        changed = changes(parts, digest_parts(holder))
        assert changed and bool(learned(changed)) == (change in weights), changed
        parts = digest_parts(holder)


# What is opened


def test_what_is_held_is_found_wherever_it_is() -> None:
    class Thing:
        __slots__ = ("inside",)

    numbers = np.arange(40)
    thing = Thing()
    thing.inside = {"array": numbers.reshape(4, 10), "list": numbers.tolist(), "floats": numbers / 2}  # type: ignore
    found = integers([thing, torch.from_numpy(numbers), numbers.astype("<u2").tobytes(), "text", 7])
    assert all(np.array_equal(array, numbers) for array in found.values())
    places = {"[0].inside['array']", "[0].inside['list']", "[1]", "[2]"}
    assert set(found) == places


@pytest.mark.parametrize("part", [7, 100, 1 << 22])
def test_what_two_texts_have_in_common(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "_PART", part)
    generator = np.random.default_rng(0)
    text, other = (generator.integers(0, 1000, 400).astype(np.uint16) for _ in range(2))
    assert held.overlap(other, text) == (0.0, 0.0, 0)
    other[50:81] = text[200:231]
    assert held.overlap(other, text).longest == 0, "31 tokens may be a coincidence"
    other[50:90] = text[200:240]
    assert held.overlap(other[:200], text) == (0.1, 0.2, 40)
    other[300:332] = text[368:]
    assert held.overlap(other, text) == (72 / 400, 72 / 400, 40)
    assert held.overlap(text[:10], text) == held.overlap(text, text[:10]) == (0.0, 0.0, 0)


def test_stored_text_that_is_the_text_is_a_violation() -> None:
    generator = np.random.default_rng(0)
    text, training = (generator.integers(0, 1000, 900).astype(np.uint16) for _ in range(2))

    def evaluate(tokens: object, table: object) -> None:
        assert len(stored)

    for stored, wrong in ((training, False), (np.append(training, text[500:560]), False), (text, True)):
        of_object = held.held_text(held.held_by(SimpleNamespace(start={"stored": stored})), text)
        of_function = held.held_text(held.held_by(Evaluator(evaluate, "a script")), text)
        for finding in (of_object, of_function):
            assert (finding.condition, finding.passed) == ("C1", not wrong)
    assert "start['stored']" in of_object.evidence
    # A tenth of a long text is much of a short one that is held.
    assert not held.held_text(held.held_by([text[500:560]]), text).passed


def test_the_watch_tells_what_is_opened(tmp_path: Path) -> None:
    data, artifact = tmp_path / "data", tmp_path / "model.bin"
    data.mkdir()
    names = ["text_val_000000.bin", "text_train_000000.bin", "tokenizer.model", "manifest.json"]
    for path in (artifact, tmp_path / "table", tmp_path / "code.py", *(data / name for name in names)):
        path.write_text("x")
    (tmp_path / "link").symlink_to(data / names[0])
    with Watch(artifact, data) as watch:
        for path in (
            artifact,
            tmp_path / "code.py",
            data / names[2],
            data / names[3],
            Path("/proc/self/stat"),
        ):
            path.read_bytes()
        assert watch.events == []
        for path in (data / names[0], tmp_path / "table", data / names[1], data / names[0]):
            path.read_bytes()
        watch.phase = "scoring"
        os.close(os.open(tmp_path / "link", os.O_RDONLY))
        (tmp_path / "written").write_text("x")
        artifact.write_text("y")
        socket.socket().close()
        subprocess.run(["true"], check=True)
        os.system("true")
    (tmp_path / "table").read_bytes()  # not watched any more
    found = [(event.phase, event.kind, Path(event.what.split(" ")[0]).name) for event in watch.events]
    assert found[:4] == [
        ("loading", "validation", names[0]),
        ("loading", "file", "table"),
        ("loading", "file", names[1]),
        ("scoring", "validation", names[0]),
    ]
    kinds = [kind for _, kind, _ in found[4:]]
    assert kinds.count("file") == 2 and kinds.count("process") == 2 and "socket" in kinds
    assert all("(written)" in event.what for event in watch.of_kind("file")[2:])


@pytest.mark.parametrize(("artifact", "data"), [("run", "run/data"), ("data/run", "data")])
def test_an_artifact_and_data_inside_each_other(artifact: str, data: str, tmp_path: Path) -> None:
    for folder in (artifact, data):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / artifact / "weights").write_text("x")
    (tmp_path / data / "text_val_0.bin").write_text("x")
    with Watch(tmp_path / artifact, tmp_path / data) as watch:
        (tmp_path / artifact / "weights").read_text()
        (tmp_path / data / "text_val_0.bin").read_text()
    assert [event.kind for event in watch.events] == ["validation"]


def test_compilers_are_no_processes(tmp_path: Path) -> None:
    with Watch() as watch:
        watch.take("subprocess.Popen", ("/usr/bin/gcc", ["gcc", "-x"], None, None))
        watch.take("open", ("/tmp/torchinductor_me/ab/code.cpp", "w", 0))
        watch.take("subprocess.Popen", (None, ["python", "train.py"], None, None))
    assert [event.kind for event in watch.events] == ["compiler", "compiler", "process"]


def test_learning_is_counted_where_it_is_watched() -> None:
    learning, weight = Learning(), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def learn() -> None:
        (weight * 2).sum().backward()
        optimizer.step()

    learn()
    assert not learning.seen
    with learning.watched():
        learn()
        torch.autograd.grad((weight * 2).sum(), weight)
    learn()
    assert (learning.gradients, learning.steps) == (2, 1)


# Bytes


def test_rows_of_bytes() -> None:
    def rows(*chances: tuple[int, float]) -> np.ndarray:
        found = np.full((len(chances), 256), np.nan)
        for row, (byte, chance) in zip(found, chances, strict=True):
            row[:] = np.log((1 - chance) / 255)
            row[byte] = np.log(chance)
        return found

    def verdicts(alternatives: Any) -> list[bool]:
        found = ByteRows()
        found.see(3, alternatives)
        return [finding.passed for finding in found.findings(1e-4, "C2")]

    a, ab = rows((97, 0.5)), rows((97, 0.5), (98, 0.25))
    assert verdicts({b"a": (a, np.log(2)), b"ab": (ab, np.log(8))}) == [True, True, True]
    assert verdicts({b"a": (a + 0.1, np.log(2) - 0.1)}) == [False, True, True]
    assert verdicts({b"a": (a, np.log(1.9))}) == [True, False, True]
    assert verdicts({b"a": (a, np.log(2)), b"b": (rows((98, 0.5)), np.log(2))}) == [True, True, False]
    assert verdicts({b"ab": (a, np.log(2))})[1] is False


def test_tokens_that_begin_alike(tmp_path: Path) -> None:
    pieces = [b"", b"th", b"tho", b"the", b"to", b"a", b"thy"]
    known = Context(tmp_path, torch.device("cpu"), len(pieces), 1, BYTES, lambda _, token: pieces[token])
    assert similar_tokens(known, 0, 2, 9) == [3, 6, 4]
    assert similar_tokens(known, 0, 2, 1) == [3]
    assert similar_tokens(known, 0, 5, 9) == [] == similar_tokens(known, 0, 0, 9)


# The adapter


@pytest.mark.parametrize(("stride", "batch"), [(16, 3), (4, 3), (5, 1), (1, 7)])
def test_the_adapter_scores_as_the_library_does(stride: int, batch: int) -> None:
    network, tokens = small_model(small_recipe()), random_tokens(71)
    network.__dict__["forward_logits"] = network.forward
    scores = []
    for scorer in (WindowScorer(network, 16, stride, batch), ForwardLogitsScorer(network, 16, stride, batch)):
        for strict in (False, True):
            ledger = Ledger()
            grade(scorer, tokens, byte_counts(tokens), ledger, strict=strict)
            scores.append(ledger.score().loss)
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)


def test_the_adapters_digest_follows_the_weights() -> None:
    scorer = ForwardLogitsScorer(Constant(8), 4)
    before = scorer.state_digest()
    with torch.no_grad():
        next(scorer.model.parameters()).add_(1)
    scorer.weights_changed()
    assert scorer.state_digest() != before and scorer.vocab_size == 8


def test_a_report_in_order_and_as_json() -> None:
    findings = [
        Finding("time", "b", "violation", "x"),
        Finding("C1", "a", "ok", "y"),
        Finding("C1", "c", "violation", "z"),
    ]
    report = Report("subject", "scorer", 0, 10, float("nan"), 0.1, 1.0, ordered(findings))
    assert [finding.test for finding in report.findings] == ["a", "c", "b"]
    assert report.violated == ["C1", "time"] and not report.ok
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (
        values["violated"] == ["C1", "time"]
        and values["findings"][0]["passed"] is True
        and values["val_bpb"] is None
    )
