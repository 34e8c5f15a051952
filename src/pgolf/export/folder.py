"""`pgolf export`: a model as a folder that other tools open, without pgolf."""

from __future__ import annotations

import functools
import logging
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import safetensors.torch
import torch
from torch import Tensor, nn

from pgolf.compress.weights import Weights, load_weights
from pgolf.data.dataset import TOKENIZER
from pgolf.data.tokenizer import Tokenizer
from pgolf.data.tokenizer_kinds import other_kind
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT, parameter_count
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.environment import VERSION, need
from pgolf.runtime.run_files import scored_file
from pgolf.runtime.writing import new_folder, write_bytes, write_json
from pgolf.submit.bundle import SECTIONS, STANDINS, one_file
from pgolf.submit.program import Key, Program

# The formats, and the packages that each needs.
FORMATS = {"hf": ("transformers",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
# The package that opens each kind of tokenizer, and what of ours does so.
_KINDS = {
    "sentencepiece": "sentencepiece_model.SentencePieceModel",
    "tokenizers": "tokenizer_json.TokenizerJson",
    "tiktoken": "tiktoken_encoding.TiktokenEncoding",
}
_NOTHING = Key(STANDINS, "nothing")
_LARGEST_DIFFERENCE = 1e-4
"""Of logits in onnxruntime from ours."""


def export(source: Path, out: Path, form: str = "hf", tokenizer: Path | None = None) -> dict[str, Any]:
    """Write the model of a run or file to the new folder ``out``.

    Args:
        source: run folder (its artifact, before packing its weights), artifact or weights file.
        out: is made; a ``PgolfError`` if it holds anything.
        form: one of ``FORMATS``. "hf": what ``AutoModelForCausalLM`` and ``AutoTokenizer`` of transformers
            open with ``trust_remote_code=True``. "onnx": ``model.onnx`` from tokens (B, T) int64, called
            ``input_ids``, to ``logits`` (B, T, V) float32.
        tokenizer: its file, where it is not found otherwise.

    Raises:
        PgolfError: the model or its tokenizer is not usable, or a package is missing.
    """
    if form not in FORMATS:
        raise PgolfError(f"--format {form}: unknown; use {', '.join(FORMATS)}")
    need(f"--format {form}", "export", *FORMATS[form])
    weights = load_weights(scored_file(source))
    network, opened = weights.model(), weights.tokenizer(tokenizer)
    parameters = parameter_count(network)
    with new_folder(out) as folder:
        write_bytes(folder / TOKENIZER, opened.content)
        if form == "onnx":
            _write_onnx(network, weights.recipe.evaluation_length, folder / "model.onnx")
        else:
            write_json(folder / "config.json", _config(weights, opened))
            _write_hf(network, opened, folder)
        write_bytes(folder / "README.md", _card(weights.recipe, form, opened, parameters).encode())
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {"folder": str(out), "format": form, "parameters": parameters, "files": files}


def _config(weights: Weights, tokenizer: Tokenizer) -> dict[str, Any]:
    recipe, model = weights.recipe, weights.recipe.model
    return {
        "model_type": "pgolf",
        "architectures": ["PgolfForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_pgolf.PgolfConfig",
            "AutoModelForCausalLM": "modeling_pgolf.PgolfForCausalLM",
        },
        "architecture": model.model_dump(mode="json"),
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": recipe.evaluation_length,
        "tie_word_embeddings": False,  # The one matrix is in the file once.
        "dtype": "float32",
        **_generation(tokenizer),
        "pgolf": {
            "version": VERSION,
            "recipe": recipe.name,
            "tokenizer_sha256": tokenizer.digest,
            "transform": tokenizer.transform,
        },
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """BOS begins a document and so ends the one before."""
    return {f"{role}_token_id": tokenizer.bos_id for role in ("bos", "eos", "pad")} | {"use_cache": False}


def _card(recipe: Recipe, form: str, tokenizer: Tokenizer, parameters: int) -> str:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("pgolf.export").joinpath("card.md").read_text("utf-8")
    about = {"recipe": recipe, "form": form, "tokenizer": tokenizer, "parameters": parameters}
    return environment.from_string(template).render(about, version=VERSION, kind=_kind(tokenizer))


def _kind(tokenizer: Tokenizer) -> str:
    """The package that opens the tokenizer's file."""
    backend = other_kind(tokenizer.path, tokenizer.content)
    own = "sentencepiece_model.SentencePieceModel" if backend is None else type(backend).__name__
    return next(package for package, name in _KINDS.items() if name.endswith(own))


def _write_hf(network: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    state = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "generation_config.json", _generation(tokenizer))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PgolfTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_pgolf.PgolfTokenizer", None]},
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    others = [f"data.{name}" for package, name in _KINDS.items() if package != _kind(tokenizer)]
    for name, root, without in (
        ("modeling", "PgolfForCausalLM", ["model.loss.target_losses"]),
        ("tokenization", "PgolfTokenizer", others),
    ):
        write_bytes(folder / f"{name}_pgolf.py", _source(name, root, *without).encode())


@functools.cache
def _source(name: str, root: str, *without: str) -> str:
    """What a class of ``export/`` needs in one file, without definitions that are never called there."""
    entry = f"pgolf.export.{name}"
    instead = {Key(*f"pgolf.{definition}".rsplit(".", 1)): _NOTHING for definition in without}
    instead[Key("pgolf.runtime.section", "Section")] = Key(SECTIONS, "Section")
    program = Program((SECTIONS, STANDINS, entry), instead, {})
    about = f"The {name} file of a model made with pgolf {VERSION}, from its own source."
    return one_file(program, Key(entry, root), about).readable


class _Logits(nn.Module):
    """Tokens in, logits out, by positions that rotate as in a whole window."""

    def __init__(self, network: GPT, window: int) -> None:
        super().__init__()
        self.network, self.window = network, window

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.network.project(self.network.hidden(input_ids, self.window))


def _write_onnx(network: GPT, window: int, path: Path) -> None:
    import onnxruntime

    model, random = _Logits(network, window).eval(), torch.Generator().manual_seed(0)

    def tokens(batch: int, length: int) -> Tensor:
        return torch.randint(network.config.vocab_size, (batch, length), generator=random)

    versions = f"torch {torch.__version__} and onnxruntime {onnxruntime.__version__}"
    remedy = "try other versions of them"
    try:
        path.write_bytes(_onnx(model, tokens(2, min(5, window))))
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        for given in (tokens(1, 1), tokens(3, window)):
            (found,) = session.run(["logits"], {"input_ids": given.numpy()})
            with torch.inference_mode():
                difference = float((torch.from_numpy(found) - model(given)).abs().max())
            if not difference <= _LARGEST_DIFFERENCE:
                raise PgolfError(f"{path.name}: {versions} disagree on logits by {difference:.2g}; {remedy}")
    except Exception as error:  # Whatever their exporter or runtime says.
        if isinstance(error, (PgolfError, OSError)):
            raise
        what = " ".join(str(error).split())[:200]
        raise PgolfError(f"{path.name}: {versions} fail on this model ({what}); {remedy}") from error


def _onnx(model: nn.Module, example: Tensor) -> bytes:
    """A model in ONNX, for batches of any size and length; weights included."""
    any_size = torch.export.Dim.DYNAMIC
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # It would warn of packages that nobody needs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": {0: any_size, 1: any_size}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
