"""Fuzzing of the artifact reader: it finds nothing, and it would find what is planted."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from pgolf.bench import fuzz, mutations
from pgolf.bench.fuzz import OUTCOMES, run_case, run_fuzz
from pgolf.bench.mutations import KINDS, MUST_REFUSE, make_samples
from pgolf.compress import container, entropy
from pgolf.compress.coders import CODERS
from pgolf.compress.container import Artifact, decode_artifact
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe

SAMPLES = make_samples(load_recipe("tiny"))


def test_no_case_fails_and_all_are_counted() -> None:
    told: list[tuple[int, int]] = []
    found = run_fuzz(400, 5, lambda done, total: told.append((done, total)))
    assert told[0] == (1, 400)
    assert told[-1] == (400, 400)
    assert (found["cases"], found["seed"], found["failed"]) == (400, 5, 0)
    assert list(found["outcomes"]) == list(KINDS)
    assert sum(sum(counts.values()) for counts in found["outcomes"].values()) == 400
    assert all(tuple(counts) == OUTCOMES for counts in found["outcomes"].values())
    assert all(counts["refused"] for counts in found["outcomes"].values())
    # Forgeries that are read are what makes the decoders meet garbage.
    assert found["outcomes"]["section, all repaired"]["sound tensors"]
    assert found["outcomes"]["claims, repaired"]["sound tensors"]
    assert {sample.coder for sample in SAMPLES} == set(CODERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_depends_on_its_seed_alone(kind: str) -> None:
    for sample in SAMPLES:
        first, second = (KINDS[kind](Random(3), sample) for _ in range(2))
        assert first == second


def planted(
    monkeypatch: pytest.MonkeyPatch, reader: Callable[[bytes, str], Artifact], cases: int = 600
) -> str:
    """What fuzzing says against a reader."""
    monkeypatch.setattr(fuzz, "make_samples", lambda _: SAMPLES)
    monkeypatch.setattr(fuzz, "decode_artifact", reader)
    with pytest.raises(
        PgolfError, match=r"of \d+ cases failed; repeat one with --seed SEED --cases 1: seed \d+ \("
    ) as e:
        run_fuzz(cases, 0)
    return str(e.value)


def test_a_crash_is_found_and_repeats_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What a compiled coder raises."""

    def crashing(content: bytes, where: str) -> Artifact:
        if content.endswith(b"\0\0"):
            raise Panic("index out of bounds")
        return decode_artifact(content, where)

    message = planted(monkeypatch, crashing)
    assert "Panic: index out of bounds" in message
    seed = int(message.split(": seed ")[1].split(" ")[0])
    assert run_case(SAMPLES, seed).outcome == "Panic: index out of bounds"


def test_wrong_tensors_of_damaged_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decode_artifact(SAMPLES[0].content, "x")
    other = original.arrays | {"scalar": np.array(0.5, np.float32)}

    def believing(content: bytes, where: str) -> Artifact:
        made = replace(original)
        vars(made)["arrays"] = other
        return made

    assert "other tensors than were stored" in planted(monkeypatch, believing, 60)

    assert "not as declared" in planted(monkeypatch, believing, 60)

    def careless(content: bytes, where: str) -> Artifact:
        made = replace(original)
        vars(made)["state"] = original.state | {"scalar": torch.tensor(0.5)}
        return made

    assert "but other tensors" in planted(monkeypatch, careless, 60)


def test_unsound_tensors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "isfinite", lambda values: np.ones(np.shape(values), dtype=bool))
    with pytest.raises(PgolfError, match="a file that must be refused was read"):
        run_fuzz(400, 0)


def test_errors_of_a_coder_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: entropy.Stream) -> bool:
        if self.size() > len(self._coded):
            raise IndexError("read too far")
        return True

    monkeypatch.setattr(entropy.Stream, "exhausted", careless)
    monkeypatch.setattr(fuzz, "KINDS", {"section, repaired": KINDS["section, repaired"]})
    monkeypatch.setattr(
        fuzz, "make_samples", lambda _: [sample for sample in SAMPLES if sample.coder == "range"]
    )
    with pytest.raises(PgolfError, match="IndexError: read too far"):
        run_fuzz(400, 0)


def test_slow_and_greedy_reads_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LARGE_BYTES", -1)
    assert "took 0 MiB" in planted(monkeypatch, decode_artifact, 10)
    monkeypatch.setattr(fuzz, "SLOW_SECONDS", 1e-9)
    assert "took 0.0 s" in planted(monkeypatch, decode_artifact, 10)


def test_a_refusal_that_names_no_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(content: bytes, where: str) -> Artifact:
        raise PgolfError("damaged")

    assert "does not name the file: damaged" in planted(monkeypatch, mute, 10)


def test_bad_values_are_really_written() -> None:
    for sample in SAMPLES:
        for seed in range(15):
            content = KINDS["bad value, repaired"](Random(seed), sample)
            header, sections = mutations.split(content)
            decoded = CODERS[sample.coder].decode(sections[1], [kind for kind, _ in sample.arrays[1]])
            codes = CODERS[sample.coder].decode(sections[0], [kind for kind, _ in sample.arrays[0]])
            assert header["codec"] == sample.coder
            changed = [
                value
                for part, (_, was) in zip(
                    [*codes, *decoded], [*sample.arrays[0], *sample.arrays[1]], strict=True
                )
                for value in part[part != was].ravel().tolist()
            ]
            assert len(changed) == 1
            assert math.isnan(changed[0]) or abs(changed[0]) == math.inf or changed[0] == int(changed[0])
    assert set(KINDS) >= MUST_REFUSE


def test_the_prefix_is_what_the_reader_expects() -> None:
    assert mutations._PREFIX == container._PREFIX == len(container.MAGIC) + struct.calcsize("<I16s")
