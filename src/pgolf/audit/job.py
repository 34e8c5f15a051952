"""What `pgolf audit` does: put artifact, data and scorer together, and audit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pgolf.audit.audit import audit
from pgolf.audit.report import Report, ordered, verdict
from pgolf.audit.runs import Settings
from pgolf.audit.subject import Context, Evaluator, Subject, load_factory, make_subject
from pgolf.codec.pieces import Pieces
from pgolf.codec.proof import Proof, decode_check
from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset, Text, open_dataset
from pgolf.data.inspect import ByteCheck, check_bytes
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import ByteTable
from pgolf.errors import PgolfError
from pgolf.evaluate.build import MODES, build_scorer
from pgolf.evaluate.ledger import text_digest
from pgolf.evaluate.protocol import Scorer
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runs.pipeline import job_dataset
from pgolf.runtime.files import sha256_file

Note = Callable[[str], None]

_FEWEST, _MOST = 1024, 16384
# Decoding asks for one target at a time, in three passes.
_DECODED = 256
# On CUDA matrix products are in bfloat16, and blocks of another size are rounded in another way.
_CUDA_ROUNDING = 0.05


@dataclass(frozen=True)
class Job:
    """An artifact with what scores it and the text to audit it on."""

    name: str
    context: Context
    make: Callable[[], Subject]
    plug_in: bool
    text: Text
    """The whole validation text."""
    counts: ByteCheck
    """Whether its bytes are counted right."""
    data: Path
    usual_targets: int
    """How many targets to take where none are asked for."""
    audited: dict[str, str]
    """Goes into the report."""

    def audit(self, settings: Settings, targets: int | None, note: Note) -> Report:
        """Audit on the first targets; see ``audit.audit``."""
        if self.context.device.type == "cuda":
            settings = replace(settings, rounding=max(settings.rounding, _CUDA_ROUNDING))
        text, full_targets = self.text.first(targets or self.usual_targets), len(self.text.byte_counts)
        found = audit(
            self.make,
            text,
            self.context,
            settings,
            name=self.name,
            plug_in=self.plug_in,
            data=self.data,
            full_targets=full_targets,
            note=note,
        )
        change = self.counts.normalisation
        (_, how), (_, normalisation) = self.counts.rows()
        longer = change is not None and change.makes_longer
        of_bytes = [
            verdict("bytes", "bytes per target", self.counts.problem is not None, how),
            verdict("bytes", "normalisation", longer, normalisation),
        ]
        return replace(found, audited=self.audited, findings=ordered([*found.findings, *of_bytes]))

    def decode(self, targets: int | None, progress: Callable[[int, int], None]) -> Proof:
        """Encode the first targets with one scorer and decode them with another; see ``codec.proof``."""

        def scorer() -> Scorer:
            made = self.make()
            if isinstance(made, Evaluator):
                raise PgolfError(
                    f"{self.name}: --by-decoding needs a Scorer; an evaluator is given all tokens, so it "
                    "cannot decode"
                )
            return made

        return decode_check(scorer, self.text.tokens, targets or _DECODED, progress=progress)


def audit_job(
    artifact: Path,
    data: Path | None,
    tokenizer: Path | None,
    scorer: str | None,
    mode: str | None,
    overrides: Sequence[str],
    device: torch.device,
) -> Job:
    """Prepare an audit of an artifact, or of any file or folder that a ``scorer`` loads.

    ``data`` is the folder of the validation text; None takes what the artifact's recipe names. ``scorer`` is
    a plug-in's factory, MODULE:FUNCTION or FILE.py:FUNCTION; None takes pgolf's own of a ``mode`` (None:
    sliding), with ``overrides`` of evaluate and ttt keys.
    """
    if scorer is None:
        return _own(artifact, data, tokenizer, mode or "sliding", overrides, device)
    if mode is not None or overrides:
        others = "leave them out where --scorer names another"
        raise PgolfError(f"--mode and --set are for pgolf's own scorers; {others}")
    if not artifact.exists():
        raise PgolfError(f"{artifact}: no such file or folder")
    if data is None:
        raise PgolfError(f"--scorer {scorer}: pass --data DIR, the text to audit it on")
    dataset = open_dataset(data, tokenizer)
    context, text, name = _context(artifact, dataset, device), dataset.validation_text(1), scorer

    def make() -> Subject:
        return make_subject(load_factory(name), context, name)

    usual = min(2 * _FEWEST, len(text.byte_counts))
    about = {"scorer": name, **_digests(artifact, dataset, text.tokens)}
    return Job(name, context, make, True, text, check_bytes(dataset, text), dataset.folder, usual, about)


def audited(artifact: Path, recipe: Recipe, dataset: Dataset, mode: str) -> dict[str, str]:
    """What an audit of one of pgolf's own scorers is about: mode, and digests of all that it depends on.

    The recipe has the settings of the evaluation, and ``mode`` is a key of ``MODES``.
    """
    tokens = dataset.validation_tokens(recipe.evaluation_length)
    return {"mode": mode, "recipe_sha256": recipe.digest(), **_digests(artifact, dataset, tokens)}


def _digests(artifact: Path, dataset: Dataset, tokens: Tokens) -> dict[str, str]:
    # A plug-in may load a folder.
    known = {"artifact_sha256": sha256_file(artifact)} if artifact.is_file() else {}
    return known | {"tokenizer_sha256": dataset.tokenizer.digest, "text_sha256": text_digest(tokens)}


def _own(
    artifact: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str,
    overrides: Sequence[str],
    device: torch.device,
) -> Job:
    if mode not in MODES:
        raise PgolfError(f"--mode {mode}: unknown; use {', '.join(MODES)}")
    weights = load_weights(artifact)
    recipe = weights.recipe.with_overrides(overrides, ("evaluate", "ttt"))
    dataset = job_dataset(recipe, data, tokenizer)
    weights.check_data(dataset)
    weights.model()  # what does not fit is a mistake that is better told now
    context = _context(artifact, dataset, device)

    def make() -> Subject:
        network = place(context.weights().model(), recipe, device)
        return build_scorer(network, recipe, mode, context.bos_id)

    text = dataset.validation_text(recipe.evaluation_length)
    usual = min(usual_targets(recipe, mode), len(text.byte_counts))
    about = audited(weights.source, recipe, dataset, mode)
    counts = check_bytes(dataset, dataset.validation_text(1))
    return Job(f"pgolf {mode}", context, make, False, text, counts, dataset.folder, usual, about)


def usual_targets(recipe: Recipe, mode: str) -> int:
    """A few windows and, for test-time training, three chunks; no more than takes long on a CPU."""
    targets = max(_FEWEST, 4 * recipe.evaluation_length)
    if mode == "ttt":
        chunk = recipe.ttt.chunk_tokens if recipe.ttt.method == "full" else recipe.ttt.lora.chunk_tokens
        targets = max(targets, 3 * chunk)
    return min(targets, _MOST)


def _context(artifact: Path, dataset: Dataset, device: torch.device) -> Context:
    tokenizer, token_bytes = dataset.tokenizer, None
    with contextlib.suppress(PgolfError):
        token_bytes = functools.partial(_token_bytes, Pieces(tokenizer), tokenizer.byte_table)
    size, bos, table = tokenizer.vocab_size, tokenizer.bos_id, tokenizer.byte_table
    return Context(artifact, device, size, bos, table, token_bytes)


def _token_bytes(pieces: Pieces, table: ByteTable, previous: int, target: int) -> bytes:
    """The bytes of a target; the table says whether a leading space counts."""
    text = pieces.bytes_of(target) or b""
    return text[len(text) - int(table.count(np.array(previous), np.array(target))) :]
