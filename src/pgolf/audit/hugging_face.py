"""Causal models of ``transformers``, in their folders: scored and audited on our data by our protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.audit.adapter import ForwardLogitsScorer
from pgolf.data.dataset import TOKENIZER, Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import Recipe
from pgolf.recipe.sections import EvaluateSection
from pgolf.runtime.environment import need
from pgolf.runtime.files import read_json, sha256_file

# Of windows where nothing is asked for, and of what a forward pass may make (numbers).
_LONGEST, _MOST_LOGITS = 2048, 1 << 26
_MODES = ("standard", "sliding")


class _Network(nn.Module):
    """A causal model that predicts the pieces of a tokenizer, and nothing else.

    The rows of its output past these are padding.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, tokens: Tensor) -> Tensor:
        return self.forward_logits(tokens)

    def forward_logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, V) float32."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits[..., : self.size]


@dataclass(frozen=True)
class Foreign:
    """A folder with its data and the windows it is scored in."""

    folder: Path
    dataset: Dataset
    mode: str
    evaluate: EvaluateSection
    trust: bool
    """Whether code in the folder may be run."""

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.evaluate.sequence_length

    @property
    def name(self) -> str:
        """What is scored how, in words."""
        return f"{_config(self.folder)['architectures'][0]} {self.mode}"

    def scorer(self, device: torch.device) -> ForwardLogitsScorer:
        """Open the model; a ``PgolfError`` if it is not whole, not causal or of another tokenizer."""
        size = self.dataset.tokenizer.vocab_size
        network = _Network(_open(self.folder, self.trust).float().to(device), size)
        stride = self.length if self.mode == "standard" else self.evaluate.stride
        scorer = ForwardLogitsScorer(network, self.length, stride, self.evaluate.batch or 1)
        if scorer.vocab_size != size:
            raise PgolfError(
                f"{self.folder}: predicts {scorer.vocab_size} tokens, but {self.dataset.tokenizer.path} has "
                f"{size} (one for the beginning of documents, if none of its own is); give data of its own "
                "tokenizer"
            )
        _check_causal(scorer, self.folder)
        return scorer


def foreign(
    folder: Path,
    data: Path | None,
    tokenizer: Path | None,
    mode: str | None,
    overrides: Sequence[str],
    trust: bool,
) -> Foreign:
    """Check a folder, its data and how it shall be scored; the model is not opened yet.

    Args:
        folder: has a ``config.json``.
        data: in the tokens of the folder's tokenizer.
        tokenizer: its file, where the data folder holds none.
        mode: "standard" or "sliding", the default.
        overrides: keys of the evaluate section. Windows are as long as the model can read, up to 2,048
            tokens, unless ``evaluate.sequence_length`` says otherwise.
        trust: run the code that the folder brings along, if it does.

    Raises:
        PgolfError: something does not fit, or transformers is not installed.
    """
    need(str(folder), "export", "transformers")
    import transformers

    config = _config(folder)
    known = str(config.get("model_type")) in transformers.CONFIG_MAPPING
    if "auto_map" in config and not known and not trust:
        raise PgolfError(
            f"{folder}: brings code of its own, which is not run unless --trust-remote-code says so; read it "
            "first"
        )
    if mode not in (None, *_MODES):
        raise PgolfError(f"--mode {mode}: {folder} is scored as it is; use {' or '.join(_MODES)}")
    if data is None:
        own = _own_tokenizers(folder)
        made = f"--tokenizer {own[0]}" if own else "its tokenizer"
        raise PgolfError(f"{folder}: pass --data DIR, made by `pgolf data prepare` with {made}")
    longest = _longest(folder, trust)
    length = min(longest, _LONGEST)
    dataset = open_dataset(data, tokenizer)
    batch = max(1, min(32, _MOST_LOGITS // (length * dataset.tokenizer.vocab_size)))
    usual = {"sequence_length": length, "stride": min(64, length), "batch": batch}
    recipe = Recipe().with_overrides(
        [*(f"evaluate.{key}={value}" for key, value in usual.items()), *overrides], ("evaluate",)
    )
    if recipe.evaluate.sequence_length > longest:
        asked = f"evaluate.sequence_length {recipe.evaluate.sequence_length}"
        raise PgolfError(f"{asked}: {folder} reads at most {longest} tokens at once")
    _check_tokenizer(folder, dataset)
    return Foreign(folder, dataset, mode or "sliding", recipe.evaluate, trust)


def _config(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "config.json")
    names = found.get("architectures") if isinstance(found, dict) else None
    if not isinstance(names, list) or not names or found.get("is_encoder_decoder"):
        raise PgolfError(f"{folder / 'config.json'}: names no causal model (architectures)")
    return dict(found)


def _own_tokenizers(folder: Path) -> list[Path]:
    return [folder / name for name in ("tokenizer.json", TOKENIZER) if (folder / name).is_file()]


def _check_tokenizer(folder: Path, dataset: Dataset) -> None:
    own = _own_tokenizers(folder)
    digests = [sha256_file(path) for path in own]
    if not own:
        raise PgolfError(
            f"{folder}: holds no tokenizer.json (nor {TOKENIZER}) to know its data by; write it there with "
            "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if dataset.tokenizer.digest not in digests:
        raise PgolfError(
            f"{folder}: has another tokenizer (SHA-256 {digests[0][:12]}) than {dataset.folder} "
            f"({dataset.tokenizer.digest[:12]}); prepare the data with --tokenizer {own[0]}"
        )


def _open(folder: Path, trust: bool) -> nn.Module:
    import transformers

    load: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    # Its bars and remarks are none of ours.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, about = load(
            folder,
            trust_remote_code=trust,
            local_files_only=True,
            output_loading_info=True,
            # Its own error does not name them.
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        raise _refusal(folder, error) from error
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
    if unfit := sorted(about["mismatched_keys"]):
        name, stored, wanted = unfit[0][0], *("x".join(map(str, shape)) for shape in unfit[0][1:])
        raise PgolfError(
            f"{folder}: tensor {name} is {stored}, but its config.json asks for {wanted}; use the "
            "config.json that the weights were saved with"
        )
    if missing := sorted(about["missing_keys"]):
        raise PgolfError(
            f"{folder}: is no whole causal model: tensor {missing[0]} of {type(model).__name__} is missing"
        )
    model.config.use_cache = False
    return model


def _refusal(folder: Path, error: Exception) -> PgolfError:
    # Of any kind: what transformers and the packages below it raise is not theirs alone to say.
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return PgolfError(f"{folder}: transformers opens no causal model there ({what})")


def _longest(folder: Path, trust: bool) -> int:
    """Tokens that a model can read at once, by its configuration."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust, local_files_only=True
        )
    except Exception as error:
        raise _refusal(folder, error) from error
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if value is not None and (type(value) is not int or value < 1):
            raise PgolfError(f"{folder / 'config.json'}: {name} is {value!r}, no number of tokens")
        if value is not None:
            return int(value)
    return _LONGEST


def _check_causal(scorer: ForwardLogitsScorer, folder: Path) -> None:
    """See that what a model predicts does not depend on what follows."""
    tokens = torch.arange(min(scorer.length, 16))[None] % scorer.vocab_size
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % scorer.vocab_size
    with torch.inference_mode():
        both = scorer.model(torch.cat((tokens, changed)).to(scorer.device))
    first, second = both[:, :-1]
    # Of one shape, both are computed alike: there is no rounding to allow for.
    if float((first - second).norm()) > 1e-5 * float(first.norm()):
        raise PgolfError(f"{folder}: is no causal model: its predictions depend on the tokens that follow")
