"""A memory: what it is made of, how large it is, and the way back from what it has only tried."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import PgolfError
from pgolf.kernels.bits import new_coder
from pgolf.memory import mixing
from pgolf.memory.coding import code_tokens, row
from pgolf.memory.contexts import LONGEST, POSITION, Mixer
from pgolf.memory.counts import begin_journal, end_journal, new_counts, undo
from pgolf.memory.linear import code_linear, new_linear, row_linear
from pgolf.memory.ngrams import LONGEST as LONGEST_NGRAM
from pgolf.memory.ngrams import code_ngrams, load_ngrams, ngram_coder
from pgolf.memory.start import Ngrams, Start, Tokens
from pgolf.memory.tree import tree_of
from pgolf.recipe.sections import MemorySection

Probabilities = NDArray[np.float32]

# Contexts of each expert beside those of the orders; ``contexts`` hashes them in this order.
_CONTEXTS = {"word": 2, "skip": 2, "document": 3, "match": 0}
# What a context of a token takes on English text, with room to spare.
_CONTEXTS_PER_TOKEN, _SUCCESSORS_PER_TOKEN = 0.45, 0.4
_LEAST = 1 << 14
# For ``code_tokens``, where nothing is written or read.
_NO_CODE = np.zeros(0, np.uint64), np.zeros(0, np.uint8)


class Memory:
    """Predicts tokens from what followed their contexts, beside a model's probabilities where there are any.

    What it is asked to score it also learns, and takes back unless exactly that is received next: so targets
    of a block are predicted from all targets before them, and asking changes nothing.

    Args:
        section: sizes and experts.
        start: what is known before the stream.
        targets: tokens that will be received at most, the stream's first token included.
    """

    def __init__(self, section: MemorySection, start: Start, targets: int) -> None:
        self.start = start
        self.mixer = _ready_mixer(section, start, targets + len(start.stored))
        self.linear = new_linear(section.order) if section.mixing == "linear" else None
        known = start.leaves, start.levels, start.starts, start.ngrams, start.stored
        sizes = targets, *(len(array) for array in known)
        self._history = hashlib.sha256(repr((section, start.trust, start.bos, sizes)).encode())
        for array in known:
            self._history.update(array.tobytes())
        self._pending: Tokens | None = None
        self._saved: list[NDArray[Any]] = []
        self._code(start.stored, None)
        self.rely_on(start.trust)

    def losses(self, block: Tokens, model: Probabilities | None = None) -> NDArray[np.float32]:
        """What tokens (n,) would cost in nats (n,), with a model's probabilities (n, V)."""
        self._take_back()
        self._save(len(block))
        nats = self._code(block, model)
        self._pending = block.copy()
        return nats

    def distributions(self, given: Tokens, model: Probabilities | None = None) -> NDArray[np.float32]:
        """Log probabilities (n, V) of n tokens of which the first n - 1 are given; ``model`` as above."""
        self._take_back()
        self._save(len(given))
        empty = np.zeros(0, np.float32)
        rows = np.zeros((len(given) + 1, self.start.vocab_size))
        nodes, chances = np.zeros((34, 2), np.int64), np.zeros((34, 3))
        spread = np.zeros(self.start.vocab_size)
        for index in range(len(rows)):
            probabilities = empty if model is None else model[index]
            if self.linear is None:
                row(self.mixer, probabilities, rows[index], nodes, chances)
            else:
                row_linear(self.mixer, self.linear, probabilities, rows[index], spread)
            if index < len(given):
                self._code(given[index : index + 1], None if model is None else model[index : index + 1])
        self._pending = given.copy()
        self._take_back()
        return rows.astype(np.float32)

    def receive(self, tokens: Tokens, model: Probabilities | None = None) -> None:
        """Learn tokens (n,); ``model`` (n, V) as they were predicted."""
        if self._pending is not None and np.array_equal(self._pending, tokens):
            self._pending = None
            end_journal(self.mixer.counts)
        else:
            self._take_back()
            self._code(tokens, model)
        self._history.update(tokens.tobytes())

    def rely_on(self, trust: tuple[float, float]) -> None:
        """Begin anew to learn the weights of the memory and of the model, from these; see ``Start.trust``."""
        self._take_back()
        self.mixer.joints[...] = trust

    def digest(self) -> str:
        """A fingerprint of settings and of all tokens that were read.

        Everything follows of these, and of what a model has predicted.
        """
        return self._history.hexdigest()

    def copy(self) -> Memory:
        """One that has read the same, and goes on by itself."""
        self._take_back()
        twin = copy.copy(self)
        twin.mixer, twin.linear = copy.deepcopy((self.mixer, self.linear))
        twin._history = self._history.copy()
        return twin

    def snapshot(self) -> Any:
        """Everything for ``restore``."""
        self._take_back()
        return [array.copy() for array in self._arrays()], self._history.copy()

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self._take_back()
        arrays, history = snapshot
        for array, old in zip(self._arrays(), arrays, strict=True):
            array[...] = old
        self._history = history.copy()

    def _arrays(self) -> list[NDArray[Any]]:
        mixer = self.mixer
        return [*mixer.counts[:4], mixer.text, *self._small()]

    def _small(self) -> list[NDArray[Any]]:
        mixer = self.mixer
        both = mixer.numbers, mixer.words, mixer.better
        if self.linear is not None:
            return [*both, self.linear.weights, self.linear.discounts]
        learned = mixer.weights, mixer.final, mixer.joints, mixer.opinions, mixer.trust, mixer.matches
        return [*both, *learned]

    def _code(self, tokens: Tokens, model: Probabilities | None) -> NDArray[np.float32]:
        if model is None:
            model = np.zeros((0, self.start.vocab_size), np.float32)
        # Numba checks no bounds.
        room = len(self.mixer.text) - self.mixer.numbers[POSITION]
        assert len(tokens) <= room, f"{len(tokens)} tokens, but only {room} more were announced"
        assert not len(tokens) or tokens.max() < self.start.vocab_size, "tokens of another vocabulary"
        # A copy, for each kind of array is compiled for by itself, such as those that may not be changed.
        tokens, nats, done = tokens.copy(), np.zeros(len(tokens)), 0
        while True:
            rest = tokens[done:], model[done:], nats[done:]
            if self.linear is None:
                done += code_tokens(self.mixer, *rest, *_NO_CODE, False)
            else:
                done += code_linear(self.mixer, self.linear, *rest)
            if done == len(tokens):
                return nats.astype(np.float32)
            journal = self.mixer.counts.journal
            self._replace_journal(np.pad(journal, ((0, 0), (0, journal.shape[1] + _LEAST))))

    def _save(self, tokens: int) -> None:
        """Be ready to take back what so many tokens change."""
        if not tokens:
            return
        self._saved = [array.copy() for array in self._small()]
        begin_journal(self.mixer.counts)

    def _replace_journal(self, journal: NDArray[np.int64]) -> None:
        self.mixer = self.mixer._replace(counts=self.mixer.counts._replace(journal=journal))

    def _take_back(self) -> None:
        if self._pending is None:
            return
        if len(self._pending):
            undo(self.mixer.counts)
            end = self.mixer.numbers[POSITION]
            self.mixer.text[end - len(self._pending) : end] = 0
            for array, old in zip(self._small(), self._saved, strict=True):
                array[...] = old
        self._pending = None


def encode_tokens(section: MemorySection, start: Start, tokens: Tokens) -> bytes:
    """Tokens coded by a memory that knows the order of the leaves, their levels, and the n-grams."""
    coded = np.zeros(64 + 5 * len(tokens), np.uint8)
    used = _run_tokens(section, start, tokens.copy(), coded, False)
    assert used <= len(coded), "tokens that cost more than 5 bytes each"
    return coded[:used].tobytes()


def decode_tokens(section: MemorySection, start: Start, coded: bytes, count: int) -> Tokens:
    """The ``count`` tokens that ``encode_tokens`` has coded."""
    tokens = np.zeros(count, np.uint16)
    _run_tokens(section, start, tokens, np.frombuffer(coded, np.uint8).copy(), True)
    return tokens


def _run_tokens(
    section: MemorySection, start: Start, tokens: Tokens, coded: NDArray[np.uint8], read: bool
) -> int:
    # Text is coded by logistic mixing, whatever mixes with the model.
    section = section.model_copy(update={"mixing": "logistic"})
    mixer, coder = _ready_mixer(section, start, len(tokens)), new_coder()
    model, nats = np.zeros((0, start.vocab_size), np.float32), np.zeros(len(tokens))
    code_tokens(mixer, tokens, model, nats, coder, coded, read)
    return int(coder[3])


def encode_ngrams(start: Start, ngrams: Ngrams) -> tuple[bytes, Ngrams]:
    """N-grams (V + n, 3) coded by what a memory knows without any, and the same as they are read back.

    The counts of rare tokens by themselves are changed to what their levels allow.
    """
    rows, coded = ngrams.copy(), np.zeros(1024 + 32 * len(ngrams), np.uint8)
    _, used = _run_ngrams(start, rows, coded, False)
    assert used <= len(coded), "n-grams that cost more than 32 bytes each"
    return coded[:used].tobytes(), rows


def decode_ngrams(start: Start, coded: bytes, count: int) -> Ngrams | None:
    """The ``count`` rows that ``encode_ngrams`` has coded; None where the code says there are others."""
    rows = np.zeros((count, 3), np.uint32)
    done, _ = _run_ngrams(start, rows, np.frombuffer(coded, np.uint8).copy(), True)
    return rows if done == count else None


def _run_ngrams(start: Start, rows: Ngrams, coded: NDArray[np.uint8], read: bool) -> tuple[int, int]:
    section = MemorySection(order=LONGEST_NGRAM - 1, experts=(), mixing="linear")
    mixer = _new_mixer(section, start, LONGEST_NGRAM, len(rows))
    coder = ngram_coder(coded, start.levels[start.leaves])
    return code_ngrams(mixer, coder, rows, read), int(coder.state[3])


def memory_bytes(section: MemorySection, vocab_size: int, tokens: int) -> int:
    """Bytes of memory for so many tokens, stored ones included; n-grams take more."""
    rows = sum(_set_sizes(section, vocab_size))
    # Weights are there twice, to be taken back.
    beside = 8 * rows * (2 * _number(section) + 4) + _number(section) * 12 * vocab_size
    wanted = _wanted(section, tokens).bytes + _fixed_bytes(tokens)
    return min(wanted, section.max_bytes) + beside


class _Sizes(NamedTuple):
    contexts: int
    successors: int
    cells: int

    @property
    def bytes(self) -> int:
        return 16 * self.contexts + 4 * self.successors + 4 * self.cells


def _number(section: MemorySection) -> int:
    """Contexts of each token."""
    experts = section.experts if section.mixing == "logistic" else ()
    return section.order + 1 + sum(_CONTEXTS[name] for name in set(experts))


def _wanted(section: MemorySection, tokens: int, ngrams: int = 0) -> _Sizes:
    """Room for a text of so many tokens, and so many n-grams."""
    number = _number(section)
    return _Sizes(
        int(tokens * number * _CONTEXTS_PER_TOKEN) + _LEAST + ngrams,
        int(tokens * number * _SUCCESSORS_PER_TOKEN) + _LEAST + 4 * ngrams,
        min(max(tokens, 1024), 1 << 26),
    )


def _sizes(section: MemorySection, tokens: int, ngrams: int) -> _Sizes:
    """The same within ``max_bytes``."""
    wanted = _wanted(section, tokens, ngrams)
    share = min(1.0, (section.max_bytes - _fixed_bytes(tokens)) / wanted.bytes)
    if share <= 0:
        least = 32_000_000 + 2 * tokens
        raise PgolfError(f"memory.max_bytes: too little beside {tokens:,} tokens of text; allow {least:,}")
    return _Sizes(*(max(int(share * part), 1024) for part in wanted))


def _fixed_bytes(tokens: int) -> int:
    """Of the text itself, and of the tables that refine the result."""
    return 2 * tokens + 4 * mixing.REFINING


def _set_sizes(section: MemorySection, vocab_size: int) -> list[int]:
    by_match = mixing.MATCH_CLASSES * mixing.MOST_FOUND
    return [by_match, vocab_size, (section.order + 2) * mixing.QUANTA * 2, vocab_size]


def _ready_mixer(section: MemorySection, start: Start, tokens: int) -> Mixer:
    """One that knows the n-grams, and has room for so many tokens."""
    mixer = _new_mixer(section, start, tokens, len(start.ngrams))
    if len(start.ngrams):
        load_ngrams(mixer, start.ngrams)
    return mixer


def _new_mixer(section: MemorySection, start: Start, tokens: int, ngrams: int) -> Mixer:
    number, size = _number(section), start.vocab_size
    room = _sizes(section, tokens, ngrams)
    bands = np.arange(mixing.BANDS) - mixing.BANDS // 2
    refined = np.round(mixing.ONE / (1 + np.exp(-bands * mixing.BAND_WIDTH))).astype(np.int32)
    # Latest places of long contexts; counts of tokens at the nodes and by themselves; refinement.
    cells = room.cells + 4 * (size - 1) + size
    counts = new_counts(room.contexts, room.successors, cells + mixing.REFINING, 1)
    counts.cells[cells:] = np.tile(refined, 2 * mixing.REFINED)
    sets = _set_sizes(section, size)
    inputs = -(-(2 * number + 3) // 4) * 4  # The rest of the last four stays 0.
    weights = np.zeros((sum(sets), inputs), np.float32)
    weights[:, 0 : 2 * number : 2] = 1.2 / number
    weights[:, 2 * number] = 0.2
    zeros, ones = np.meshgrid(mixing.LEVELS, mixing.LEVELS, indexing="ij")
    opinion = ((ones + 0.4) / (zeros + ones + 0.8)).astype(np.float32)
    opinions = np.broadcast_to(opinion[None, :, :, None], (number, *opinion.shape, mixing.KINDS)).reshape(-1)
    lengths = np.arange(LONGEST + 1)
    linear = section.mixing == "linear"
    switches = [name in section.experts and not linear for name in _CONTEXTS]
    levels = 2.0 ** start.levels.astype(np.float64)
    return Mixer(
        counts=counts,
        tree=tree_of(start.leaves, levels),
        starts=start.starts.astype(np.int8),
        text=np.zeros(max(tokens, LONGEST_NGRAM), np.uint16),  # N-grams are loaded by way of it.
        numbers=np.array([0, 0, 0, section.order, linear, *switches, start.bos, 0, room.cells]),
        words=np.zeros(2, np.uint64),
        weights=weights,
        final=np.full((sets[0], mixing.SETS), 1 / mixing.SETS, np.float32),
        joints=np.zeros((mixing.JOINTS, max(sets[0], sets[2]), 2)),
        rows=np.concatenate([[0], np.cumsum(sets)[:-1]]).astype(np.int64),
        opinions=opinions.copy(),
        trust=np.full(len(opinions), 2, np.uint8),
        better=np.full(1, 0.5),
        matches=np.clip(1 - 1 / (lengths + 2), 0.5, 0.999).astype(np.float32),
        keys=np.zeros(number, np.uint64),
        slots=np.zeros(number, np.int64),
        codes=np.zeros((number, size), np.uint32),
        times=np.zeros((number, size), np.int64),
        seen=np.zeros((33, number, 5), np.int64),
        latest=np.zeros(number, np.int64),
        known=np.zeros((number, 2), np.int64),
        parts=np.zeros((34, 3, number), np.int64),
        partings=np.zeros((2, 34), np.int64),
        inputs=np.zeros((33, inputs), np.float32),
        spots=np.zeros((33, number + 4), np.int64),
        chosen=np.zeros((33, mixing.SETS), np.int64),
        sums=np.zeros((33, mixing.SETS + 1)),
        joined=np.zeros((33, mixing.JOINTS + 3)),
        picked=np.zeros((33, mixing.JOINTS), np.int64),
        row=np.zeros(size, np.float32),
        shares=np.zeros(size + 1),
    )
