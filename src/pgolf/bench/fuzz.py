"""Fuzzing of the artifact reader: damaged and hostile files, none of which may crash or deceive it.

Each case starts from a small valid artifact and changes it in one way. Where the change leaves the checksums
as they were, the reader must refuse the file or return the very tensors of the original. Where the checksums
are made right again, as a hostile writer would, it must refuse the file or return tensors that are as
declared and finite. Anything else fails: another exception, a refusal that does not name the file, a read
that takes more than 2 seconds or 256 MiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
import zstandard
from torch import Tensor

from pgolf.bench.harness import cpu_model, peak_memory
from pgolf.bench.mutations import KINDS, MUST_REFUSE, SAME_OR_REFUSED, WHERE, Sample, make_samples, split
from pgolf.compress.coders import CODERS
from pgolf.compress.container import Artifact, decode_artifact
from pgolf.compress.stored import Quantized, Stored, code_range, dequantize_state
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.environment import environment

SLOW_SECONDS = 2.0
LARGE_BYTES = 1 << 28
_CPU = torch.device("cpu")
OUTCOMES = (REFUSED, SAME, SOUND) = ("refused", "same tensors", "sound tensors")
_SHOWN_FAILURES = 5


class Found(NamedTuple):
    """What became of one case."""

    kind: str
    coder: str
    outcome: str
    """One of ``OUTCOMES``, or what the reader did that it must never do."""
    seconds: float
    """Processor time of the read."""


def run_fuzz(cases: int, seed: int, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Read ``cases`` changed artifacts; case i is made from the seed ``seed`` + i alone. PgolfError where a
    case failed: the message has its seed, kind, coder and what happened.

    Returns JSON values: counts by kind of change and outcome, the slowest read in milliseconds of processor
    time, peak memory of the process in bytes, and the environment.
    """
    samples = make_samples(load_recipe("tiny"))
    counts = {kind: dict.fromkeys(OUTCOMES, 0) for kind in KINDS}
    failures: list[tuple[int, Found]] = []
    slowest, started = 0.0, time.perf_counter()
    for index in range(cases):
        found = run_case(samples, seed + index)
        if found.outcome not in OUTCOMES:
            failures.append((seed + index, found))
        else:
            counts[found.kind][found.outcome] += 1
        slowest = max(slowest, found.seconds)
        if progress is not None:
            progress(index + 1, cases)
    if failures:
        some = failures[:_SHOWN_FAILURES]
        shown = "; ".join(f"seed {at} ({case.kind}, {case.coder}): {case.outcome}" for at, case in some)
        failed = f"{len(failures):,} of {cases:,} cases failed"
        raise PgolfError(f"bench fuzz: {failed}; repeat one with --seed SEED --cases 1: {shown}")
    sizes = [len(sample.content) for sample in samples]
    return {
        "bench": "fuzz",
        "scope": f"changed artifacts of {min(sizes):,} to {max(sizes):,} bytes, coders {', '.join(CODERS)}",
        "cases": cases,
        "seed": seed,
        "failed": 0,
        "outcomes": counts,
        "seconds": time.perf_counter() - started,
        "slowest_milliseconds": 1000 * slowest,
        "peak_memory": peak_memory(_CPU),
        "environment": environment(_CPU) | {"cpu": cpu_model()},
    }


def run_case(samples: list[Sample], seed: int) -> Found:
    """Make one changed artifact and read it."""
    choice = Random(seed)
    sample, kind = choice.choice(samples), choice.choice(list(KINDS))
    content = KINDS[kind](choice, sample)
    # Processor time: another program that wants the core is not the reader's fault.
    before, started = peak_memory(_CPU), time.process_time()
    read = _read(content)
    seconds, grown = time.process_time() - started, peak_memory(_CPU) - before
    outcome = read if isinstance(read, str) else _judged(content, read, sample, kind)
    if outcome in OUTCOMES and (seconds > SLOW_SECONDS or grown > LARGE_BYTES):
        outcome = f"took {seconds:.1f} s" if seconds > SLOW_SECONDS else f"took {grown >> 20:,} MiB"
    return Found(kind, sample.coder, outcome, seconds)


def _read(content: bytes) -> Artifact | str:
    """The artifact, or an outcome."""
    try:
        artifact = decode_artifact(content, WHERE)
        len(artifact.state)  # Tensors are made when they are first asked for.
        return artifact
    except PgolfError as error:
        return REFUSED if WHERE in str(error) else f"a refusal that does not name the file: {error}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a compiled coder is no Exception
        return f"{type(error).__name__}: {error}"


def _judged(content: bytes, artifact: Artifact, sample: Sample, kind: str) -> str:
    """The outcome of a file that was read."""
    if kind in MUST_REFUSE:
        return "a file that must be refused was read"
    if _flat(artifact.stored) == _flat(sample.artifact.stored):
        equal = all(torch.equal(artifact.state[name], value) for name, value in sample.artifact.state.items())
        return SAME if equal else "the same codes and steps, but other tensors"
    if kind in SAME_OR_REFUSED:
        return "other tensors than were stored"
    return _unsound(content, artifact) or SOUND


def _flat(stored: dict[str, Stored]) -> list[Any]:
    """Everything of stored tensors, to the last bit, in a form that compares."""

    def parts(value: Any) -> Any:
        if isinstance(value, Tensor):
            return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
        return [parts(part) for part in value] if isinstance(value, tuple) else value

    return [(name, parts(value)) for name, value in stored.items()]


def _unsound(content: bytes, artifact: Artifact) -> str:
    """What is wrong with tensors from a file whose header and values were chosen freely; "" if nothing."""
    try:
        declared = {str(name): (shape, kind) for name, shape, kind in split(content)[0]["tensors"]}
    except (TypeError, ValueError, LookupError, zstandard.ZstdError) as error:
        return f"tensors that are not as declared: the header is unreadable ({error})"
    if list(declared) != list(artifact.stored) or list(declared) != list(artifact.state):
        return "tensors that are not as declared"
    again = dequantize_state(artifact.stored)
    for name, (shape, kind) in declared.items():
        value, dense = artifact.stored[name], artifact.state[name]
        if list(dense.shape) != shape or dense.dtype != torch.float32 or not torch.equal(dense, again[name]):
            return f"tensor {name!r} is not of its shape"
        if not bool(dense.isfinite().all()):
            return f"tensor {name!r} is not finite"
        if isinstance(value, Tensor):
            if value.dtype != {"f2": torch.float16, "f4": torch.float32}[kind]:
                return f"tensor {name!r} is not of its format"
        elif not _in_range(value) or value.bits != (kind if isinstance(kind, int) else kind[0]):
            return f"tensor {name!r} holds codes or steps out of range"
    return ""


def _in_range(value: Quantized) -> bool:
    low, high = code_range(value.bits)
    steps = [value.scale] if value.columns is None else [value.scale, value.columns]
    sound = bool(((value.codes >= low) & (value.codes <= high)).all())
    sound &= all(bool(((part >= 0) & part.isfinite()).all()) for part in steps)
    return sound and all(_in_range(part) for part in value.correction or ())
