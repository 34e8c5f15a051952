"""Packing: from weights to an artifact under a byte cap, verified by reading it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgolf.compress import budget
from pgolf.compress.calibrate import Calibration
from pgolf.compress.code_size import code_bytes, raw_code_bytes
from pgolf.compress.container import decode_artifact, encode_artifact
from pgolf.compress.grid import Grid, grid_of
from pgolf.compress.report import PackReport, describe
from pgolf.compress.scheme import check_range, quantize_state, stored_bits
from pgolf.compress.stored import Quantized, Stored, code_range
from pgolf.compress.tuning import Tuner, turns
from pgolf.errors import PgolfError
from pgolf.model.load import parameter_shapes
from pgolf.optim.routing import quantizer_group
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.environment import VERSION
from pgolf.runtime.writing import write_bytes

if TYPE_CHECKING:
    from pgolf.runtime.progress import Note

_HEADER_ESTIMATE = 3000
# What the header says of a carried tokenizer: two digests and two sizes, mostly.
_CARRIED_HEADER = 128
_TRAINED_RMS = 0.14
# Bits of a code of the finest grid: the entropy of a normal row whose largest entry is 127.
_WIDEST = 7.2
# How much finer or coarser a frozen grid may be made to land on the cap before steps are chosen anew.
_LARGEST_SHIFT = 1.25
# Part of the bytes for weights that such a grid has to use.
_LEAST_USE = 0.99


def pack(
    state: Mapping[str, Tensor],
    recipe: Recipe,
    tokenizer_digest: str,
    out: Path,
    cap: int | None = None,
    calibration: Calibration | None = None,
    note: Note = lambda *_: None,
    grid: Grid | None = None,
    memory: bytes = b"",
    about: Mapping[str, Any] | None = None,
    tokenizer: bytes = b"",
    counted: bool = False,
) -> PackReport:
    """Quantize and code weights, verify the result, and write it.

    The "budget" scheme chooses steps so that artifact and code use the cap. A grid that training rounded on
    is used with the nearest codes, so that what is stored is what training saw; if the size is a little off,
    as few rows as possible get the next finer or coarser step. A cap too far off has steps chosen anew. The
    artifact's origin says which: "grid" is "trained", with the "shift" of the steps, or "solved", or "tuned"
    where ``compress.effort`` brought it nearer to the exact model. The "rowwise" scheme tries the recipe's
    codec levels in order, then, if the recipe allows it, 5 bits for one layer after the other from the middle
    outward.

    Args:
        state: named float32 tensors.
        recipe: goes into the artifact; its compress section says how to pack.
        tokenizer_digest: goes into the artifact.
        out: file to write.
        cap: largest total in bytes; the recipe's by default.
        calibration: how the loss depends on the weights; without it all have the same precision.
        note: told what is being done; see ``Note``.
        grid: on which training rounded these weights, for the "budget" scheme.
        memory: what the recipe's memory begins with; the weights get the bytes that it leaves.
        about: further entries of the artifact's origin.
        tokenizer: the tokenizer's file, of the digest, zstd, to put into the file; empty: none.
        counted: whether its bytes count towards the cap.

    PgolfError where nothing tried fits: it says the smallest total reached, and nothing is written.
    """
    limit, code = cap or recipe.compress.cap, code_bytes(recipe.memory.enabled)
    given = calibration, note, grid, memory, about
    taken = code + (carried_bytes(tokenizer) if counted else 0)
    packed = fit(state, recipe, tokenizer_digest, out, limit, taken, *given)
    content = packed.content
    # Tuned tensors make each other's errors good: what one alone costs says nothing.
    tuned = packed.origin.get("grid") == "tuned"
    if tokenizer:
        how = recipe.compress.codec, packed.level, packed.origin, memory, tokenizer
        content = encode_artifact(packed.stored, recipe, tokenizer_digest, *how)
        assert decode_artifact(content, "the packed artifact").tokenizer == tokenizer
    carried = len(content) - len(packed.content)
    write_bytes(out, content)
    return PackReport(
        cap=limit,
        total_bytes=len(content) + code - (0 if counted else carried),
        model_bytes=len(content),
        code_bytes=code,
        raw_code_bytes=raw_code_bytes(recipe.memory.enabled),
        scheme=recipe.compress.scheme,
        coder=recipe.compress.codec,
        level=packed.level,
        five_bit_cores=packed.five_bit_cores,
        origin=packed.origin,
        tensors=describe(state, packed.stored, recipe, None if tuned else calibration, note),
        tokenizer_bytes=carried,
        tokenizer_counts=counted,
    )


def carried_bytes(tokenizer: bytes) -> int:
    """Bytes by which a tokenizer's section makes an artifact larger, at most."""
    return len(tokenizer) + _CARRIED_HEADER


def fit(
    state: Mapping[str, Tensor],
    recipe: Recipe,
    tokenizer_digest: str,
    out: Path,
    limit: int,
    code: int,
    calibration: Calibration | None,
    note: Note,
    grid: Grid | None = None,
    memory: bytes = b"",
    about: Mapping[str, Any] | None = None,
) -> Packed:
    """The artifact that ``pack`` writes, read back to verify it; it and ``code`` have ``limit`` bytes.

    PgolfError where nothing tried fits; ``out`` names the file that was to be written.
    """
    state = {name: tensor.cpu() for name, tensor in state.items()}
    packer = _Packer(state, recipe, tokenizer_digest, calibration, limit - code, note, memory)
    packer.origin |= about or {}
    by_budget = recipe.compress.scheme == "budget"
    packed = (packer.on_grid(grid) or packer.by_budget()) if by_budget else packer.by_rows()
    if packed is None:
        fewer = "" if by_budget else ", lower compress.bits"
        raise PgolfError(
            f"{out}: does not fit the cap of {limit:,} bytes; the smallest total reached is "
            f"{packer.smallest + code:,} (code {code:,}); raise --cap{fewer} or shrink the model"
        )
    note("verifying")
    _verify(packed.content, packed.stored, recipe)
    return packed


def freeze_grid(
    state: Mapping[str, Tensor], recipe: Recipe, tokenizer_digest: str, calibration: Calibration | None
) -> Grid:
    """The grid to round on from now on: on it a state, in the nearest codes, lands on the recipe's cap.

    Args: see ``pack``; the state is what would be packed now. PgolfError where no grid fits.
    """
    code, cap = code_bytes(recipe.memory.enabled) + stored_bytes(recipe), recipe.compress.cap
    nearest = recipe.model_copy(
        update={"compress": recipe.compress.model_copy(update={"rounding": "nearest"})}
    )
    packer = _Packer(state, nearest, tokenizer_digest, calibration, cap - code, lambda *_: None)
    packed = packer.by_budget()
    if packed is None:
        raise PgolfError(
            f"no grid to round on fits the cap of {cap:,} bytes; the smallest total reached is "
            f"{packer.smallest + code:,} (code {code:,}); pack what is trained so far with a larger --cap, "
            "or train with a larger compress.cap"
        )
    return grid_of(packed.stored, None if calibration is None else calibration.source)


@dataclass(frozen=True)
class Packed:
    """An artifact's bytes, what they hold, and how they came about."""

    content: bytes
    stored: dict[str, Stored]
    origin: dict[str, Any]
    level: int = 1
    five_bit_cores: tuple[int, ...] = ()


@dataclass
class _Packer:
    """The two schemes; each returns what fits ``limit`` bytes, or None."""

    state: Mapping[str, Tensor]
    recipe: Recipe
    tokenizer_digest: str
    calibration: Calibration | None
    limit: int
    note: Note
    memory: bytes = b""
    smallest: int = 1 << 62
    """Bytes of the smallest file so far."""

    def __post_init__(self) -> None:
        self.sensitivities = {} if self.calibration is None else dict(self.calibration.sensitivities)
        self.origin: dict[str, Any] = {"pgolf": VERSION, "scheme": self.recipe.compress.scheme}
        if self.calibration is not None:
            self.origin["calibration"] = self.calibration.source

    def by_rows(self) -> Packed | None:
        """Fixed widths, with the references' ways to get under a cap."""
        compress = self.recipe.compress
        for five_bit in _fallbacks(self.recipe):
            stored = quantize_state(self.state, compress, frozenset(five_bit), self.sensitivities)
            for level in compress.level:
                content = self._encode(stored, self.origin, level)
                if len(content) <= self.limit:
                    return Packed(content, stored, self.origin, level, tuple(sorted(five_bit)))
        return None

    def on_grid(self, grid: Grid | None) -> Packed | None:
        """The nearest codes on a given grid, or on one so close to it that the size is right."""
        if grid is None:
            return None
        for name, tensor in self.state.items():
            check_range(name, tensor, 16)
        origin = self.origin | {"grid": "trained"}
        if grid.calibration is not None:
            origin["calibration"] = dict(grid.calibration)

        def store(fineness: float) -> dict[str, Stored]:
            shifted = grid.shifted(fineness)
            return {name: shifted.store(name, tensor) for name, tensor in self.state.items()}

        packed = self._search(store, origin, "shift", 1.0)
        if packed is None or not (
            1 / _LARGEST_SHIFT <= packed.origin["shift"] <= _LARGEST_SHIFT
            and len(packed.content) >= _LEAST_USE * self.limit
        ):
            self.note("the grid of the training does not suit the cap")
            return None
        return packed

    def by_budget(self) -> Packed | None:
        """Steps by sensitivity, as fine as the cap allows."""
        compress = self.recipe.compress
        targets = budget.prepare(self.state, self.sensitivities, compress)
        for name, tensor in self.state.items():
            check_range(name, tensor, 16)
        kept = {name: tensor.detach().half() for name, tensor in self.state.items() if name not in targets}

        def store(fineness: float) -> dict[str, Stored]:
            return {
                name: kept[name] if name in kept else self._quantized(name, targets[name], fineness)
                for name in self.state
            }

        free = self.limit - len(self.memory) - sum(value.nbytes for value in kept.values())
        start = budget.first_guess(targets, 8 * max(free - _HEADER_ESTIMATE, 1))
        packed = self._search(store, self.origin | {"grid": "solved"}, "fineness", start)
        if packed is None or self.calibration is None or self.calibration.text is None:
            return packed
        return self._in_turn(packed, targets, self.calibration)

    def _in_turn(
        self, packed: Packed, targets: Mapping[str, budget.Target], calibration: Calibration
    ) -> Packed:
        """The same by ``tuning.py``, with the steps of what was packed; the last part takes what is left."""
        assert calibration.text is not None
        tuner = Tuner(self.state, self.recipe, calibration.text)
        fineness, done, (*parts, last) = packed.origin["fineness"], dict[str, Stored](), turns(targets)

        def rounded(names: list[str], weights: Mapping[str, Tensor], fineness: float) -> dict[str, Stored]:
            tuned = {name: replace(targets[name], weight=weights[name]) for name in names}
            return {name: self._quantized(name, target, fineness) for name, target in tuned.items()}

        for index, names in enumerate(parts):
            self.note("rounding and tuning", index, len(parts) + 1)
            part = rounded(names, tuner.weights(), fineness)
            done |= part
            tuner.fix(part)
        weights = tuner.weights()
        for name, tensor in weights.items():
            check_range(name, tensor, 16)
        done |= {name: weights[name].half() for name in self.state if name not in done and name not in last}

        def store(fineness: float) -> dict[str, Stored]:
            whole = {**done, **rounded(last, weights, fineness)}
            return {name: whole[name] for name in self.state}

        tuned = self._search(store, packed.origin | {"grid": "tuned"}, "last", fineness)
        either = [packed] if tuned is None else [packed, tuned]
        return min(either, key=lambda one: tuner.divergence(one.stored, calibration.tokens))

    def _search(
        self, store: Callable[[float], dict[str, Stored]], origin: Mapping[str, Any], label: str, start: float
    ) -> Packed | None:
        """The largest file within the limit from ``store``; its origin has the fineness as ``label``."""

        def build(fineness: float) -> tuple[Packed, int]:
            stored, named = store(fineness), {**origin, label: float(f"{fineness:.6g}")}
            content = self._encode(stored, named, 1)
            return Packed(content, stored, named), len(content)

        entries = sum(each.numel() for name, each in self.state.items() if budget.is_budgeted(name, each))
        return budget.search(build, start, self.limit, self.recipe.compress.slack, entries)

    def _quantized(self, name: str, target: budget.Target, fineness: float) -> Quantized:
        quantized = budget.round_target(target, fineness)
        rank = self.recipe.compress.low_rank
        if not rank:
            return quantized
        return budget.low_rank_correction(target, quantized, self.sensitivities.get(name), rank)

    def _encode(self, stored: Mapping[str, Stored], origin: Mapping[str, Any], level: int) -> bytes:
        compress = self.recipe.compress
        given = self.tokenizer_digest, compress.codec, level, origin, self.memory
        content = encode_artifact(stored, self.recipe, *given)
        self.smallest = min(self.smallest, len(content))
        size, limit = (total - len(self.memory) for total in (len(content), self.limit))
        self.note(f"{size:,} of {limit:,} bytes for weights")
        return content


def middle_out(count: int) -> list[int]:
    """0 to count - 1 from the middle outward: for 11 that is 5, 6, 4, 7, 3, ..."""
    middle = count // 2
    order = [layer for offset in range(count) for layer in (middle + offset, middle - offset)]
    return [layer for layer in dict.fromkeys(order) if 0 <= layer < count]


def predicted_bytes(recipe: Recipe) -> int:
    """Estimate of the artifact's size before training.

    Rows of trained weights are close to normal, so a code costs about log2(rms * sqrt(2 pi e) / step) bits,
    and the codec 2 % more. An absmax step follows from the expected largest of a row's entries; where a scale
    floor sets the step, rms is taken as 0.14, which the published artifacts of #644 and #1232 imply. Of the
    "budget" scheme, which uses the whole cap otherwise, it is what 8-bit codes take.
    """
    shapes = parameter_shapes(recipe.model)
    if recipe.compress.scheme == "budget":
        largest = sum(_WIDEST * shape.numel() / 8 for shape in shapes.values()) + _HEADER_ESTIMATE
        return int(largest) + stored_bytes(recipe)
    bits = 8.0 * _HEADER_ESTIMATE
    for name, shape in shapes.items():
        width = stored_bits(name, shape, recipe.compress)
        expected = width if width > 8 else _expected_code_bits(width, name, shape, recipe)
        bits += shape.numel() * expected
        bits += 16 * shape[0] if width <= 8 else 0
    return int(bits / 8) + stored_bytes(recipe)


def stored_bytes(recipe: Recipe) -> int:
    """Bytes of the cap that a recipe gives to stored text and counts; 0 where that is chosen later."""
    return recipe.memory.stored_bytes if recipe.memory.enabled and recipe.memory.stored != "none" else 0


def _expected_code_bits(width: int, name: str, shape: torch.Size, recipe: Recipe) -> float:
    highest = code_range(width)[1]
    largest = math.sqrt(2 * math.log(max(shape[1], 2)))  # in units of the rms
    if recipe.compress.clip == "std":
        largest = recipe.compress.deviations(quantizer_group(name))
    step = largest / highest
    floor = recipe.compress.int8_scale_floor if width == 8 else recipe.compress.scale_floor
    if floor:
        step = max(step, floor / highest / _TRAINED_RMS)
    entropy = math.log2(math.sqrt(2 * math.pi * math.e) / step)
    return min(max(1.02 * entropy, 0.1), width)


def _fallbacks(recipe: Recipe) -> Iterator[list[int]]:
    yield []
    if recipe.compress.fallback == "int5_middle_out":
        order = middle_out(recipe.model.cores)
        for count in range(1, len(order) + 1):
            yield order[:count]


def _verify(content: bytes, stored: Mapping[str, Stored], recipe: Recipe) -> None:
    """Read the bytes back; anything but the very same tensors is a bug of ours, not of the user."""
    artifact = decode_artifact(content, "the packed artifact")
    assert artifact.recipe == recipe
    assert artifact.stored.keys() == stored.keys()
    for name, value in stored.items():
        back = artifact.stored[name]
        if isinstance(value, Quantized):
            assert isinstance(back, Quantized), name
            same = torch.equal(back.codes, value.codes) and torch.equal(back.dequantize(), value.dequantize())
        else:
            same = isinstance(back, Tensor) and torch.equal(back, value)
        assert same, name
