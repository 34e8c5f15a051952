"""What can be audited: a scorer of the protocol, or an evaluator that is handed the whole stream at once.

A *factory* makes it: a function that takes a ``Context`` and returns either

* a ``Scorer`` (``evaluate/protocol.py``), which never sees more than the grader shows it; or
* an *evaluator*, the usual shape of a script: a function ``evaluate(tokens, byte_table)`` that is given all
  tokens and returns a ``Claim`` of what every target cost. It may take two more arguments, by name:

  - ``announced``: how many targets the stream has. Whoever needs the number for a schedule takes it from
    here, because the auditor also hands over streams that are cut short;
  - ``wanted``: positions of targets whose whole distribution the claim should carry.

Each call of an evaluator starts from the artifact: what it learned in the call before is forgotten.
Either may have two attributes: ``documents_independent`` (True claims that no document's score depends on
another document) and ``periods`` (lengths after which its windows and chunks repeat, so that edges can be
aimed at).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Scorer

if TYPE_CHECKING:
    from pgolf.compress.weights import Weights
    from pgolf.data.dataset import Dataset


@dataclass(frozen=True)
class Claim:
    """What an evaluator says a stream cost."""

    nats: NDArray[np.floating[Any]]
    """Nats of every scored target (n,), in the order in which they were counted."""
    bytes: int
    """Bytes by which it divides."""
    val_bpb: float | None = None
    """The score that it reports, in bits per byte."""
    positions: NDArray[np.integer[Any]] | None = None
    """Which target (0-based) each of ``nats`` is of (n,); None says 0, 1, 2, ..."""
    distributions: Mapping[int, Any] | None = None
    """For the ``wanted`` positions: natural logarithms (V,) of the distribution before the target is seen."""
    byte_distributions: Mapping[int, Any] | None = None
    """For an evaluator that predicts bytes, likewise: (m, 256), one row for each of the target's m bytes."""


@dataclass(frozen=True)
class Context:
    """What a factory is told."""

    artifact: Path
    """The artifact to load; any file format."""
    device: torch.device
    """Where to compute."""
    vocab_size: int
    """Size V of the alphabet."""
    bos_id: int
    """The token that begins every document."""
    byte_table: ByteTable
    """``count(previous, targets)`` gives the bytes of targets."""
    token_bytes: Callable[[int, int], bytes] | None = field(default=None, repr=False)
    """The bytes themselves of one target after the token before it; None if the tokenizer does not say."""

    def weights(self) -> Weights:
        """The weights and recipe of an artifact of pgolf's (``weights().model()`` is the network)."""
        from pgolf.compress.weights import load_weights  # Brings a compiler.

        return load_weights(self.artifact)


def context_of(artifact: Path, dataset: Dataset, device: torch.device) -> Context:
    """What a factory is told of an artifact and of data; nothing of its text."""
    tokenizer = dataset.tokenizer
    token_bytes = functools.partial(_token_bytes, tokenizer.parts, tokenizer.byte_table)
    size, bos, table = tokenizer.vocab_size, tokenizer.bos_id, tokenizer.byte_table
    return Context(artifact, device, size, bos, table, token_bytes)


def _token_bytes(parts: Sequence[bytes | None], table: ByteTable, previous: int, target: int) -> bytes:
    """The bytes of a target; the table says whether a leading space counts."""
    text = parts[target] or b""
    return text[len(text) - int(table.count(np.array(previous), np.array(target))) :]


class Evaluator:
    """A whole-stream evaluator, called with the arguments that it takes; see the top of this module."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        parameters = inspect.signature(function).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_announced = open_ended or "announced" in parameters
        self.takes_wanted = open_ended or "wanted" in parameters

    def __call__(self, tokens: Tokens, byte_table: ByteTable, announced: int, wanted: Sequence[int]) -> Claim:
        """Evaluate a copy of ``tokens``; an exception, or what is no claim, is a ``PgolfError``."""
        options: dict[str, Any] = {"announced": announced} if self.takes_announced else {}
        if self.takes_wanted:
            options["wanted"] = tuple(int(position) for position in wanted)
        with blamed(self.name, "evaluating"):
            claim = self.function(tokens.copy(), byte_table, **options)
        if not isinstance(claim, Claim):
            kind = _kind(claim)
            raise PgolfError(f"{self.name}: the evaluator returned {kind}, not a pgolf.audit.subject.Claim")
        targets = len(tokens) - 1
        with blamed(self.name, "reading its claim"):
            count, val_bpb = int(claim.bytes), None if claim.val_bpb is None else float(claim.val_bpb)
            nats = np.asarray(claim.nats, dtype=np.float64)
            # More costs than targets are more costs of the last target.
            places = np.minimum(np.arange(nats.size), targets - 1)
            positions = places if claim.positions is None else np.asarray(claim.positions)
        if nats.ndim != 1 or positions.shape != nats.shape or not np.issubdtype(positions.dtype, np.integer):
            shapes = f"nats have shape {nats.shape}, positions {positions.shape}"
            raise PgolfError(f"{self.name}: {shapes}; both must be (n,)")
        outside = positions[(positions < 0) | (positions >= targets)]
        if len(outside):
            raise PgolfError(f"{self.name}: claims a score for target {outside[0]} of {targets}")
        if np.isnan(nats).any():
            where = positions[np.isnan(nats)][0]
            raise PgolfError(f"{self.name}: what it claims for target {where} is not a number")
        return Claim(nats, count, val_bpb, positions, claim.distributions, claim.byte_distributions)


Subject = Scorer | Evaluator
Factory = Callable[[Context], Any]


def factory_place(name: str) -> tuple[str, str]:
    """Module or file, and function, of ``module:function`` or ``path/to/file.py:function``.

    Raises:
        PgolfError: the name is another one, or there is no such file.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise PgolfError(f"--scorer {name}: name a factory as MODULE:FUNCTION or FILE.py:FUNCTION")
    if place.endswith(".py") and not Path(place).is_file():
        raise PgolfError(f"--scorer {name}: no such file {place}")
    return place, attribute


def load_factory(name: str, folder: Path) -> Factory:
    """The factory of a name (see ``factory_place``); a ``PgolfError`` if there is none.

    ``folder`` is where the name was typed: files are named from there, and modules are searched there too.
    """
    place, _, attribute = name.rpartition(":")
    is_file = place.endswith(".py")
    module = _import_file(folder / place, name) if is_file else _import_module(place, name, folder)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PgolfError(f"--scorer {name}: {place} has no {attribute}{hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise PgolfError(f"--scorer {name}: is {_kind(factory)}; name a function that takes a Context")
    return factory


def make_subject(factory: Factory, context: Context, name: str) -> Subject:
    """Let a factory make what is audited; if it fails, or makes something else, that is a ``PgolfError``."""
    with blamed(name, "the factory"):
        made = factory(context)
    if isinstance(made, Scorer):
        size = getattr(made, "vocab_size", None)
        if size == context.vocab_size:
            return made
        raise PgolfError(
            f"{name}: the scorer's vocab_size is {size}, the data's tokenizer has {context.vocab_size} "
            "pieces; give the data that it was made for"
        )
    if isinstance(made, type) or not callable(made):
        raise PgolfError(
            f"{name}: the factory returned {_kind(made)}; it must return a pgolf.evaluate.protocol.Scorer or "
            "a function evaluate(tokens, byte_table)"
        )
    try:
        return Evaluator(made, name)
    except (TypeError, ValueError) as error:
        remedy = "use a plain function"
        raise PgolfError(f"{name}: the evaluator's arguments cannot be told ({error}); {remedy}") from error


@contextlib.contextmanager
def blamed(name: str, doing: str) -> Iterator[None]:
    """Turn an exception of a user's code into a mistake that says where it came from.

    pgolf's own code has no name, and its exceptions stay what they are.
    """
    try:
        yield
    except PgolfError:
        raise
    except Exception as error:
        if not name:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise PgolfError(f"{name}: {doing} failed with {type(error).__name__}: {error} ({place})") from error


def _import_module(place: str, name: str, folder: Path) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    with blamed(f"--scorer {name}", "the import"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise
            remedy = "name a module or a FILE.py"
            raise PgolfError(f"--scorer {name}: no module {place} here; {remedy}") from error


def _import_file(path: Path, name: str) -> Any:
    # As when Python runs it: its neighbours can be imported.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # A file may be called like a module that exists.
    spec = importlib.util.spec_from_file_location(f"_plug_in_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    with blamed(f"--scorer {name}", "the import"):
        spec.loader.exec_module(module)
    return module


def _kind(value: Any) -> str:
    is_class = isinstance(value, type)
    return f"the class {value.__name__}" if is_class else f"an object of type {type(value).__name__}"
