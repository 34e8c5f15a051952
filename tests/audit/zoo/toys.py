"""What the zoo's animals are made of: a toy text, a toy model, the plainest valid scorer and evaluator."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgolf.audit.adapter import ForwardLogitsScorer
from pgolf.audit.audit import audit
from pgolf.audit.report import Report
from pgolf.audit.runs import Settings
from pgolf.audit.subject import Claim, Context, make_subject
from pgolf.data.dataset import Text
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from tests.shards import write_shard

VOCABULARY, BOS, TARGETS = 16, 1, 88
LENGTH, STRIDE, CHUNK = 16, 8, 32
KNOWN = 7  # seed of the toy model that knows the toy language a little
# Fewer experiments than `pgolf audit` makes: the tests have some forty animals and twenty seeds.
FEW = Settings(edges=1, probes=3, swaps=3, places=3)
# Token 0 and BOS stand for nothing; some tokens begin like others.
PIECES = [b"", b"", *(b"a b e n t s th the an and in is to of".split())]


class Bytes(ByteTable):
    """Bytes of the toy tokens."""

    def __init__(self) -> None:
        self.base = np.array([len(piece) for piece in PIECES])
        self.spelled_space = ()

    def count(self, previous: NDArray[np.integer], targets: NDArray[np.integer]) -> NDArray[np.int64]:
        return self.base[targets]


BYTES = Bytes()


class ToyModel(nn.Module):
    """Predicts from the last two tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.last = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.before = nn.Parameter(0.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward_logits(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        logits = self.last[ids]
        return torch.cat((logits[:, :1], logits[:, 1:] + self.before[ids[:, :-1]]), 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> ToyModel:
        other = ToyModel.__new__(ToyModel)
        nn.Module.__init__(other)
        other.last = nn.Parameter(self.last.detach().clone())
        other.before = nn.Parameter(self.before.detach().clone())
        return other


@functools.cache
def toy_text(seed: int) -> Tokens:
    """Documents of a language that the toy model half knows, with something to learn (TARGETS + 1,)."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        known = ToyModel(KNOWN).last.numpy()
    chances = np.exp(1.5 * known + generator.standard_normal(known.shape))
    chances[:, [0, BOS]] = 0
    chances /= chances.sum(1, keepdims=True)
    tokens = [BOS]
    left = 20
    while len(tokens) <= TARGETS:
        left -= 1
        tokens.append(BOS if left == 0 else int(generator.choice(VOCABULARY, p=chances[tokens[-1]])))
        left = int(generator.integers(12, 30)) if left == 0 else left
    return np.array(tokens, dtype=np.uint16)


@dataclass(frozen=True)
class Animal:
    """One subject of the zoo."""

    name: str
    make: Callable[[Context], Any]
    """The factory of a plug-in."""
    condition: str = ""
    """The condition that an audit has to name; none for a valid one."""
    also: Sequence[str] = ()
    """Other conditions that it violates as well."""
    settings: dict[str, Any] | None = None
    """What differs in how it is audited."""
    whole: int = 0
    """Targets of the whole text, if it is longer than what is audited."""
    slow: bool = False
    """Whether an audit takes most of a second."""

    def __str__(self) -> str:
        return self.name

    def is_named_right(self, violated: Sequence[str]) -> bool:
        """Whether an audit names its condition, and none that it fulfils."""
        named = {self.condition} - {""}
        return named <= set(violated) <= named | set(self.also)


def audited(animal: Animal, seed: int, folder: Path, settings: Settings = FEW) -> Report:
    """An audit of an animal on the text of a seed; its artifact and the data lie in ``folder``."""
    text = toy_text(seed)
    folder = folder / f"seed{seed}"
    artifact, data = folder / "artifact", folder / "data"
    if not folder.exists():
        data.mkdir(parents=True)
        artifact.write_bytes(b"weights")
        (folder / "table").write_bytes(bytes(range(100)))
        write_shard(data / "text_val_000000.bin", text)
    context = Context(artifact, torch.device("cpu"), VOCABULARY, BOS, BYTES, lambda _, token: PIECES[token])
    settings = replace(settings, seed=seed, **(animal.settings or {}))
    return audit(
        lambda: make_subject(animal.make, context, animal.name),
        Text(text, BYTES.count_stream(text)),
        context,
        settings,
        name=animal.name,
        data=data,
        whole=np.resize(text, animal.whole + 1) if animal.whole else None,
    )


# The plainest valid scorer and evaluator, which most animals are made from.


class ToyScorer(ForwardLogitsScorer):
    """Sliding windows by a toy model."""

    def __init__(self, seed: int = KNOWN) -> None:
        super().__init__(ToyModel(seed), LENGTH, STRIDE, batch=3, vocab_size=VOCABULARY)


def toy_logits(model: ToyModel, tokens: Tokens) -> Tensor:
    """Logits of all targets (N, V) of a stream (N + 1,)."""
    return model.forward_logits(torch.from_numpy(tokens[:-1].astype(np.int64))[None])[0]


def toy_costs(model: ToyModel, tokens: Tokens) -> Tensor:
    """What all targets cost (N,), with gradients."""
    targets = torch.from_numpy(tokens[1:].astype(np.int64))
    return nn.functional.cross_entropy(toy_logits(model, tokens), targets, reduction="none")


def claim_of(nats: Any, tokens: Tokens, **changes: Any) -> Claim:
    """A claim with the right totals, unless ``changes`` say otherwise."""
    plain = nats.detach().numpy() if isinstance(nats, Tensor) else np.asarray(nats)
    plain = plain.astype(np.float64)
    positions = changes.get("positions")
    scored = np.arange(len(plain)) if positions is None else positions
    count = int(BYTES.count(tokens[scored], tokens[scored + 1]).sum())
    bpb = float(plain.sum()) / np.log(2) / count if count else None
    return Claim(**({"nats": plain, "bytes": count, "val_bpb": bpb} | changes))


def train(model: ToyModel, optimizer: torch.optim.Optimizer, tokens: Tokens) -> None:
    """One step on a stretch of text."""
    optimizer.zero_grad(set_to_none=True)
    toy_costs(model, tokens).mean().backward()
    optimizer.step()


def student(model: ToyModel, rate: float = 2.0) -> tuple[ToyModel, torch.optim.Optimizer]:
    """A copy that can learn, with its optimizer."""
    pupil = copy.deepcopy(model)
    return pupil, torch.optim.SGD(pupil.parameters(), lr=rate)


def chunks(tokens: Tokens, size: int = CHUNK) -> list[Tokens]:
    """Chunks of ``size`` targets, each with the token before it."""
    return [tokens[start : start + size + 1] for start in range(0, len(tokens) - 1, size)]
