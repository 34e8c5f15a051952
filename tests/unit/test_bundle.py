"""The single file: it holds what a recipe uses and nothing else, and computes what the package computes,
exactly.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import inspect
import os
import re
import subprocess
import symtable
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import default_rng

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.code_size import code_bytes
from pgolf.compress.pack import fit
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.evaluate.evaluate import evaluate
from pgolf.model.gpt import GPT, build_model
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import open_run
from pgolf.submit.bundle import Bundle, bundle, packed_form
from pgolf.train.loop import train
from tests.shards import write_shard
from tests.unit.stand_ins import write_tokenizer

CPU = torch.device("cpu")
SMALL = [
    *("model.vocab_size=300", "model.layers=3", "model.width=16", "model.heads=2", "model.kv_heads=1"),
    *("model.mlp_hidden=32", "train.steps=5", "train.warmdown_steps=4", "train.warmup_steps=0"),
    *("train.batch_tokens=64", "train.micro_batches=2", "train.sequence_length=16", "train.validate_every=2"),
    *(
        "train.checkpoint_every=0",
        "evaluate.stride=8",
        "evaluate.batch=4",
        "ttt.chunk_tokens=64",
        "ttt.frozen_blocks=1",
    ),
    *(
        "ttt.batch_sequences=2",
        "ttt.epochs=1",
        "ttt.lora.rank=2",
        "ttt.lora.chunk_tokens=32",
        "compress.cap=200000",
    ),
    *("compress.keep_below=64", "compress.calibration_tokens=64", "optim.muon_momentum_warmup_steps=3"),
]
# What no script needs: the package's own checks, files and reports.
ABSENT = "contradictions with_overrides load_recipe load_checkpoint raw_code_bytes evaluate_weights"
# Settings, and words that the file must have.
VARIANTS: dict[str, tuple[list[str], str]] = {
    "plain": (
        [
            "model.bigram.buckets=0",
            "model.smear=false",
            "model.skip=none",
            "average.kind=none",
            "ttt.method=full",
        ],
        "TttScorer round_on_grid RangeCoder",
    ),
    "everything": (
        [
            *("model.bigram.buckets=32", "model.bigram.width=8", "model.value_embedding.layers=[1, 2]"),
            *(
                "model.value_embedding.width=4",
                "model.xsa_last=2",
                "model.refiner=flow",
                "model.refiner_latent=8",
            ),
            *(
                "model.refiner_hidden=8",
                "model.gated_attention=true",
                "model.value_residual=true",
                "model.skip=gated",
            ),
            *(
                "model.mlp=star_relu",
                "model.rope_dims=4",
                "model.rope_train_length=8",
                "average.kind=swa_of_ema",
            ),
            *("average.every=1", "average.start_scale=1.0", "qat.enabled=true", "qat.threshold=0.8"),
            *("ttt.method=lora_document", "compress.low_rank=1", "model.norm_scale=inverse_sqrt_depth"),
            *("model.loop.last=1", "model.loop.passes=2", "model.loop.start_fraction=0.4"),
            *("model.loop.pass_vectors=true", "model.lanes.mode=two", "model.lanes.start=2"),
            *("model.window_smear.width=4", "model.dense.every=2", "model.asymmetric_softcap=true"),
            *("optim.muon_row_norm=normuon", "optim.adam_weight_decay={embedding=0.1, scalar=0.01}"),
            *("train.length_schedule=[[8, 0.5], [16, 1.0]]", "train.warmdown_fraction=0.8"),
            *("train.warmdown_steps=0", "train.lr_floor=0.1", "optim.muon_weight_decay_taper=0.5"),
            *("average.window=0.4", "average.decay=0"),
            *("ttt.lora.per_pass=true", "ttt.lora.gradient=scoring", "ttt.lora.chunk_schedule=[[8, 0]]"),
            'ttt.lora.targets=["query", "beside_attention", "beside_mlp", "head", "vectors"]',
            "ttt.lora.rank=2",
        ],
        "Bigram Smear ValueEmbedding FlowRefiner FakeQuant DocumentScorer low_rank_correction Lanes Dense",
    ),
    "rowwise": (
        [
            *(
                "model.bigram.buckets=9000",
                "model.bigram.width=8",
                "model.unique_layers=2",
                "average.kind=swa",
            ),
            *(
                "average.every=1",
                "compress.scheme=rowwise",
                "compress.rounding=nearest",
                "compress.calibration=none",
            ),
            *(
                "compress.codec=zstd",
                "compress.level=[19, 3]",
                "compress.clip=std",
                "compress.clip_std={attention=4.0, mlp=3.0}",
                "compress.prune=0.03",
            ),
            *("ttt.method=phased", "optim.bigram_table_group=scalar", "ttt.optimizer=adamw"),
        ],
        "prune_smallest PhasedScorer DocumentScorer quantize_matrix",
    ),
    "export grid": (
        [
            *("model.bigram.buckets=0", "qat.enabled=true", "qat.grid=export", "qat.threshold=0.8"),
            *("ttt.method=lora", "compress.calibration=self", "train.steps=4"),
        ],
        "freeze_grid grid_rounding LoraScorer sample_text",
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    write_tokenizer(folder)
    random = default_rng(0)
    for split, count in (("train", 4000), ("val", 321)):
        tokens = random.integers(3, 300, count).astype("uint16")
        tokens[::50] = 1
        write_shard(folder / f"text_{split}_000000.bin", tokens)
    return open_dataset(folder)


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Recipe, Bundle, Any]]:
    recipe = load_recipe("tiny", [*SMALL, *VARIANTS[request.param][0]])
    made = bundle(recipe)
    path = tmp_path_factory.mktemp("file") / "train_gpt_readable.py"
    path.write_text(made.readable)
    name = "generated_" + request.param.replace(" ", "_")
    yield request.param, recipe, made, _imported(made.readable, name, path)
    del sys.modules[name]


def _imported(source: str, name: str, path: Path) -> Any:
    """Run the text of a file as a module, with pgolf out of reach."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == "pgolf"}
    sys.modules["pgolf"] = None  # type: ignore[assignment]
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        del sys.modules["pgolf"]
        sys.modules.update(hidden)
    return module


def test_a_recipe_without_a_memory_has_a_file_without_its_code(
    variant: tuple[str, Recipe, Bundle, Any],
) -> None:
    _, _, made, _ = variant
    assert not any("memory" in module for module in made.modules)


def test_numbers_are_those_of_the_package(
    variant: tuple[str, Recipe, Bundle, Any], dataset: Dataset, tmp_path: Path
) -> None:
    name, recipe, _, made = variant
    assert made.RECIPE.model_dump(mode="json", exclude_defaults=True) == recipe.model_dump(
        mode="json", exclude_defaults=True
    )
    assert made.RECIPE.digest() == recipe.digest()

    ours, theirs = build_model(recipe.model, 7).eval(), made.build_model(made.RECIPE.model, 7).eval()
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(parameter, other)
            noise = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter += noise
            other += noise
        assert torch.equal(ours(tokens), theirs(tokens))

    run = open_run(recipe, dataset, tmp_path / "ours", CPU)
    train(run, _Silent())
    team, log = made.Team(), made.Log(made.Team())
    (tmp_path / "theirs").mkdir()
    data = made.open_dataset(dataset.folder, None, 300)
    (tmp_path / "train_gpt.py").write_bytes(
        bytes(code_bytes())
    )  # A grid is chosen for what code leaves of the cap.
    made.__dict__["__file__"] = str(tmp_path / "train_gpt.py")
    kept = tmp_path / "theirs" / "weights.pt"
    with pytest.MonkeyPatch.context() as patch:
        validated, plain = [], made.Run.validate
        patch.setattr(made.Run, "validate", lambda run: (validated.append(kept.is_file()), plain(run))[1])
        weights, grid = made.train(made.RECIPE, data, tmp_path / "theirs", CPU, team, log)
    assert validated == [False] * (len(validated) - 1) + [True], (
        "the last one is made when the weights are saved"
    )
    saved = torch.load(kept, weights_only=True)
    assert list(saved) == list(weights) and all(torch.equal(saved[key], weights[key]) for key in weights)
    expected = {key: value.float() for key, value in run.averager.result(run.network.state_dict()).items()}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)

    path = tmp_path / "theirs.pgolf"
    given = {
        "recipe": made.RECIPE,
        "dataset": data,
        "weights": weights,
        "grid": grid,
        "path": path,
        "log": log,
    }
    _call(made.pack_weights, room=150_000, **given)
    network = GPT(recipe.model)
    network.load_state_dict(weights)
    calibration = calibration_for(network.eval(), recipe, dataset)
    digest = dataset.tokenizer.digest
    packed = fit(weights, recipe, digest, tmp_path, 150_000, 0, calibration, lambda what: None, run.grid)
    assert path.read_bytes() == packed.content

    artifact = made.read_artifact(path)
    network.load_state_dict(artifact.state)
    theirs.load_state_dict(artifact.state)
    text = dataset.validation_text(recipe.evaluation_length)
    given = {**text._asdict(), "team": team}
    for mode in ("standard", "sliding", "ttt"):
        score = evaluate(network, recipe, *text, mode)
        other = _call(made.evaluate, network=theirs, recipe=artifact.recipe, mode=mode, **given)
        assert (other.val_bpb, other.bytes) == (score.val_bpb, score.bytes), f"{name} {mode}"


def _call(function: Any, **given: Any) -> Any:
    """Call with those arguments that the function has: what this recipe does not need is left out of
    signatures.
    """
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})


class _Silent:
    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def validation(self, step: int, result: object) -> None: ...

    def evaluation(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


def test_only_what_is_used_is_there(variant: tuple[str, Recipe, Bundle, Any]) -> None:
    name, _, made, module = variant
    _, present = VARIANTS[name]
    defined = {
        n.name for n in ast.walk(ast.parse(made.readable)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    }
    assert set(present.split()) <= defined
    assert not set(ABSENT.split()) & (defined | set(vars(module)))
    imports = [n for n in ast.walk(ast.parse(made.readable)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not re.search("pgolf|pydantic|rich|typer", " ".join(map(ast.unparse, imports)))


def test_every_name_is_defined(variant: tuple[str, Recipe, Bundle, Any]) -> None:
    tables, used = [symtable.symtable(variant[2].readable, "file", "exec")], set()
    for table in tables:
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    for node in ast.walk(ast.parse(variant[2].readable)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            used |= {n.id for n in ast.walk(annotation or ast.Pass()) if isinstance(n, ast.Name)}
    assert used <= set(vars(variant[3])) | set(dir(builtins))


@functools.cache
def _packed(source: str) -> bytes:
    """The packed form, with the names that are looked for here."""
    return packed_form(source, ("RECIPE", "build_model", "softcap_cross_entropy", "_KERNEL_MODULE"))


def test_the_packed_form_is_the_same_program(
    variant: tuple[str, Recipe, Bundle, Any], tmp_path: Path
) -> None:
    _, _, made, _ = variant
    packed = _packed(made.source)
    assert len(packed) < len(made.readable.encode()) / 3
    module = _imported(packed.decode(), "generated_packed", tmp_path / "train_gpt.py")
    readable = variant[3]
    ours, theirs = readable.build_model(readable.RECIPE.model, 3), module.build_model(module.RECIPE.model, 3)
    tokens = torch.arange(16)[None]
    assert torch.equal(ours(tokens), theirs(tokens))


def test_comments_and_texts_are_kept(variant: tuple[str, Recipe, Bundle, Any]) -> None:
    readable = variant[2].readable
    assert '"""A decoder-only transformer, assembled from the parts its recipe names."""' in readable
    assert (
        "# A core used n times receives the sum of n gradients; their mean keeps its step size." in readable
    )
    assert max(map(len, readable.splitlines())) <= 200


BARE = '''"""About."""
from dataclasses import dataclass
from typing import Any
NAME = Any
@dataclass
class A:
    """Text."""
    x: int = 1
    """About x."""
def f(a: Any) -> A:
    """Text."""
    b: int
    c: Any = a  # why
    return A(c)
'''


def test_minifying_keeps_fields_and_drops_texts() -> None:
    bare = packed_form(BARE, ("f",)).decode()
    assert "About" not in bare and "Text" not in bare and "why" not in bare
    assert "->" not in bare and "c:" not in bare
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(bare, names)
    assert names["f"](5).x == 5


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")
def test_the_kernels_are_in_the_packed_file(variant: tuple[str, Recipe, Bundle, Any], tmp_path: Path) -> None:
    # In a process of its own: Triton's interpreter has to be asked for before it is imported.
    name, recipe, made, _ = variant
    if name != "plain":
        pytest.skip("one variant is enough")
    script = tmp_path / "train_gpt.py"
    script.write_bytes(_packed(made.source))
    program = f"""
import sys
import types
import torch
torch.version.cuda = "13.0"  # Only there are they used.
sys.modules["packed"] = types.ModuleType("packed")
file = vars(sys.modules["packed"])
file["__file__"] = {str(script)!r}
exec(compile(open({str(script)!r}).read(), "train_gpt.py", "exec"), file)
z = (4 * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))).requires_grad_()
targets, cap = torch.tensor([0, 7, 299, 12, 3]), {recipe.model.softcap}
losses = file["softcap_cross_entropy"](z, targets, cap)
expected = torch.nn.functional.cross_entropy(cap * torch.tanh(z / cap), targets, reduction="none")
torch.testing.assert_close(losses, expected)
weights = torch.linspace(-1, 2, 5)
torch.testing.assert_close(torch.autograd.grad(losses, z, weights), torch.autograd.grad(expected, z, weights))
print(file["_KERNEL_MODULE"].__name__)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "kernels.py\n", done.stderr
