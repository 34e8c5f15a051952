"""Weights on the disk: safetensors that carry their recipe and the digest of their tokenizer."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
import torch
import zstandard
from torch import Tensor

from pgolf.compress.coders import bounded_zstd
from pgolf.compress.container import MAGIC, read_artifact
from pgolf.compress.grid import Grid, grid_from, leads_to_the_same
from pgolf.data.corpus import built_in_corpus
from pgolf.data.dataset import TOKENIZER, Dataset, find_tokenizer
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.model.load import model_from, parameter_shapes
from pgolf.optim.averaging import Averager
from pgolf.recipe.recipe import Recipe, recipe_from_tree
from pgolf.recipe.sections import CompressSection
from pgolf.runtime.paths import utf8_name
from pgolf.runtime.run_files import recorded_data, weights_file
from pgolf.runtime.writing import atomic_write

if TYPE_CHECKING:
    from pgolf.memory.memory import Start

FORMAT = "pgolf-weights-1"
CHECKPOINT_FORMAT = "pgolf-checkpoint-1"
# What safetensors calls the number formats.
_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_WHOLES = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
_DTYPES = {**_FLOATS, **_WHOLES, torch.uint8: "U8", torch.bool: "BOOL"}
_MAX_TOKENIZER = 1 << 24
# Names of a grid's entries begin with it; no parameter's does.
_GRID = "grid."
# Weights of memory and model on their log odds at first, where the memory has no text.
UNTRAINED = (0.5, 0.6)


@dataclass(frozen=True)
class Weights:
    """Named float32 tensors with everything needed to use them."""

    state: dict[str, Tensor]
    recipe: Recipe
    tokenizer_digest: str
    source: Path
    kind: Literal["weights", "artifact"]
    grid: Grid | None = None
    """What training rounded on, where it did so on a frozen grid."""
    memory: bytes = b""
    """What the recipe's memory begins with, as an artifact keeps it; empty where it keeps nothing."""
    carried: bytes = b""
    """The tokenizer's file as an artifact carries it, zstd; empty where it carries none."""

    def grid_for(self, compress: CompressSection) -> Grid | None:
        """The grid that training rounded on, if ``compress`` asks for one of that kind, the cap apart."""
        return self.grid if leads_to_the_same(self.recipe.compress, compress) else None

    def check(self) -> None:
        """PgolfError where a tensor of the recipe's model is missing, unknown or of another shape; nothing is
        allocated.
        """
        expected = parameter_shapes(self.recipe.model)
        found = {name: tensor.shape for name, tensor in self.state.items()}
        for name, shape in expected.items():
            if name not in found:
                raise PgolfError(f"{self.source}: tensor {name} is missing; the file does not fit its recipe")
            if found[name] != shape:
                both = f"has shape {tuple(found[name])}; the recipe wants {tuple(shape)}"
                raise PgolfError(f"{self.source}: tensor {name} {both}")
        if unknown := sorted(set(found) - set(expected)):
            raise PgolfError(f"{self.source}: tensor {unknown[0]} is not part of the recipe's model")

    def model(self) -> GPT:
        """A model on the CPU with copies of these weights, after ``check``."""
        self.check()
        return model_from(self.recipe.model, self.state).eval()

    def memory_start(self, tokenizer: Tokenizer) -> Start:
        """What a memory beside the model begins with, by the artifact; reading stored text takes a while.

        It is read once. Without such a section the memory knows the pieces of the ``tokenizer``, and no text.
        One that is damaged, or for another vocabulary, is a ``PgolfError``.
        """
        # Compiles functions, which takes seconds where that was never done.
        from pgolf.memory.stored import start_of

        if not self.memory:
            return start_of(tokenizer.pieces, tokenizer.bos_id, np.zeros(0, np.uint16), UNTRAINED)
        return self._kept_start

    @functools.cached_property
    def _kept_start(self) -> Start:
        from pgolf.memory.stored import read_start

        size = self.recipe.model.vocab_size
        return read_start(self.recipe.memory, self.memory, size, str(self.source))

    def tokenizer(self, given: Path | None = None) -> Tokenizer:
        """The tokenizer that the model was trained with.

        It is the ``given`` file; by default that in the artifact, beside the weights, in the data that their
        run recorded, or in the built-in corpus of their recipe. PgolfError where it is not found, or what was
        given or found belongs to another model.
        """
        known, size = self.tokenizer_digest, self.recipe.model.vocab_size
        if given is None and self.carried:
            found = [_carried_tokenizer(self.source, self.carried)]
        else:
            places = [path for path in self._tokenizer_places() if path.is_file()]
            found = [Tokenizer.load(path) for path in (places if given is None else [given])]
        if not found:
            remedy = "pass --tokenizer MODEL, the one it was trained with"
            raise PgolfError(f"{self.source}: its tokenizer is not known; {remedy}")
        opened = next((tokenizer for tokenizer in found if tokenizer.digest == known), found[0])
        if known and known != opened.digest:
            raise PgolfError(
                f"{opened.path}: is not the tokenizer of {self.source} (SHA-256 {opened.digest[:12]}, not "
                f"{known[:12]}); pass the right one with --tokenizer"
            )
        if opened.vocab_size != size:
            raise PgolfError(
                f"{opened.path}: has {opened.vocab_size} pieces, but {self.source} predicts {size}"
            )
        return opened

    def check_data(self, dataset: Dataset) -> None:
        """PgolfError where a dataset was made with another tokenizer than the model knows."""
        known, found = self.tokenizer_digest, dataset.tokenizer.digest
        if known and known != found:
            raise PgolfError(
                f"{self.source}: was trained with another tokenizer (SHA-256 {known[:12]}) than "
                f"{dataset.folder} ({found[:12]}); pass the --data it was trained on"
            )

    def _tokenizer_places(self) -> list[Path]:
        folder = self.source.parent
        places = [folder / TOKENIZER]
        recorded = recorded_data(folder)
        found = None if recorded is None else find_tokenizer(recorded)
        if found is not None:
            places.append(found)
        if self.recipe.data.corpus == "python":
            corpus = built_in_corpus(self.recipe.model.vocab_size, self.recipe.data.transform)
            places.append(corpus / TOKENIZER)
        return places


def packed_tokenizer(tokenizer: Tokenizer) -> bytes:
    """What an artifact carries of a tokenizer."""
    return zstandard.ZstdCompressor(level=22).compress(tokenizer.content)


def _carried_tokenizer(path: Path, packed: bytes) -> Tokenizer:
    try:
        return Tokenizer.read(path, bounded_zstd(packed, _MAX_TOKENIZER))
    except ValueError as error:
        raise PgolfError(f"{path}: section tokenizer cannot be decoded ({error})") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors atomically; ``metadata`` (JSON) goes into the header with a digest of everything.

    Equal arguments give equal bytes; the safetensors library itself writes metadata in random order.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    about["content"] = _content_digest(plain, about)
    # The largest numbers first, so that each tensor begins at a multiple of its numbers' size.
    order = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(about.items()))}
    end = 0
    for name in order:
        tensor, start = plain[name], end
        end += tensor.nbytes
        kind = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = kind | {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes_of(plain[name]))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote; PgolfError where it is absent, of something else, or damaged."""
    tensors, header = read_safetensors(path)
    digest = header.pop("content", None)
    if digest is None:
        raise PgolfError(f"{path}: carries no recipe; bring foreign weights in with `pgolf import`")
    with sound(path):
        if digest != _content_digest(tensors, header):
            raise PgolfError(f"{path}: damaged (its checksum does not match); restore it from a copy")
        return tensors, {key: json.loads(value) for key, value in header.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; PgolfError where it is absent or unreadable."""
    try:
        with utf8_name(path) as readable, safetensors.safe_open(readable, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise PgolfError(f"{path}: no such file") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise PgolfError(f"{path}: not a readable safetensors file ({error})") from error


@contextlib.contextmanager
def sound(path: Path) -> Iterator[None]:
    """Around reading a file whose checksum is right: whoever wrote it may have written anything.

    An entry that is missing, or is not what it should be, is a ``PgolfError``.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        # A tensor of a wrong shape or type, JSON without end: all of these, in one line.
        what = " ".join(str(error).split())[:200]
        raise PgolfError(f"{path}: not what pgolf writes ({type(error).__name__}: {what})") from error


def save_weights(
    path: Path, state: Mapping[str, Tensor], recipe: Recipe, tokenizer_digest: str, grid: Grid | None = None
) -> None:
    """Write a model's weights (float32) with its recipe, and the grid that training rounded on, if it did."""
    tensors = {name: tensor.detach().float() for name, tensor in state.items()}
    metadata = {"format": FORMAT, "recipe": recipe.model_dump(mode="json"), "tokenizer": tokenizer_digest}
    extra, about = grid_entries(grid)
    save_tensors(path, tensors | extra, metadata | about)


def grid_entries(grid: Grid | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata by which a file keeps a grid; both empty where there is none."""
    if grid is None:
        return {}, {}
    return {_GRID + name: tensor for name, tensor in grid.tensors().items()}, {"grid": grid.about()}


def take_grid(tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> Grid | None:
    """The grid that a file keeps, if any; its entries are taken out of ``tensors``."""
    entries = {
        name.removeprefix(_GRID): tensors.pop(name) for name in list(tensors) if name.startswith(_GRID)
    }
    return grid_from(entries, metadata["grid"]) if "grid" in metadata else None


def load_weights(path: Path) -> Weights:
    """Open a run folder, a weights file, a training checkpoint or a packed artifact.

    A checkpoint gives the averaged weights as they were then. PgolfError where nothing usable is there; it
    says what was found.
    """
    path = weights_file(path)
    with path.open("rb") as opened:
        is_artifact = opened.read(len(MAGIC)) == MAGIC
    if is_artifact:
        artifact = read_artifact(path)
        about = artifact.recipe, artifact.tokenizer_digest, path
        return Weights(artifact.state, *about, "artifact", None, artifact.memory, artifact.tokenizer)
    tensors, metadata = load_tensors(path)
    if metadata.get("format") not in (FORMAT, CHECKPOINT_FORMAT):
        known = f"has a format ({metadata.get('format')}) that this version of pgolf does not know"
        raise PgolfError(f"{path}: {known}")
    with sound(path):
        recipe = recipe_from_tree(metadata["recipe"], str(path))
        grid = take_grid(tensors, metadata)
        if metadata["format"] == CHECKPOINT_FORMAT:
            tensors = _averaged_so_far(tensors, recipe)
        return Weights(tensors, recipe, str(metadata["tokenizer"]), path, "weights", grid)


def _averaged_so_far(tensors: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """What training would save if it ended at this checkpoint."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    averager = Averager(recipe.average, parts["model"], recipe.train.steps)
    averager.load(parts["average"])
    return averager.result(parts["model"])


def _content_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a contiguous tensor on the CPU as they are in memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
