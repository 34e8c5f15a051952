"""A finished run folder, made in a second: random weights, packed and scored on text that tries to break
pages.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pgolf.compress.pack import pack
from pgolf.compress.weights import load_weights, save_weights
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.prepare import prepare
from pgolf.evaluate.evaluations import EVALUATIONS, evaluation_names
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import provenance
from pgolf.runs.pipeline import evaluate_weights
from tests.unit.stand_ins import small_model

CPU = torch.device("cpu")
VOCABULARY = 300
SETTINGS = [
    *(
        f"model.vocab_size={VOCABULARY}",
        "model.layers=2",
        "model.width=16",
        "model.heads=2",
        "model.kv_heads=1",
    ),
    *("model.mlp_hidden=24", "model.xsa_last=1", "model.bigram.buckets=32", "model.bigram.width=8"),
    *("train.sequence_length=16", "train.batch_tokens=64", "train.micro_batches=1", "train.steps=3"),
    *(
        "evaluate.stride=8",
        "evaluate.batch=3",
        "ttt.chunk_tokens=64",
        "ttt.batch_sequences=2",
        "ttt.epochs=1",
    ),
]
HOSTILE = [
    "<script>document.title='owned'</script> & <b>bold</b> \"quoted\"",
    "tab\tand\nnew line, right to left \u202eevil\u202c, nothing \u200b here, bell \x07.",
    "Snow \u2603 and \U0001f600 and \u00e9\u00e8, 42 pieces of NASA's 3rd plan for a QUIET Sunday.",
]


def run_recipe() -> Recipe:
    return load_recipe("seed_456", SETTINGS)


def run_data(folder: Path) -> Dataset:
    """A small data folder with documents of plain words, and hostile ones between them."""
    folder.mkdir(parents=True)
    plain = [
        f"Word {n} is number {n * 7 % 50} of many words, and {'so' * (n % 5)} on it goes." for n in range(200)
    ]
    for name, texts in (("train", plain), ("val", [*plain[:4], *HOSTILE, *plain[4:8]])):
        lines = (json.dumps({"text": text}) for text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    text, val_text = [folder / "train.jsonl"], [folder / "val.jsonl"]
    prepare(text, folder / "data", val_text=val_text, vocab_size=VOCABULARY, workers=1)
    return open_dataset(folder / "data")


def finished_run(folder: Path) -> tuple[Path, Dataset]:
    """A run folder with everything that `pgolf run` leaves, and its data, both in a new ``folder``."""
    dataset, run, recipe = run_data(folder), folder / "run", run_recipe()
    run.mkdir()
    (run / "recipe.toml").write_text(recipe.to_toml())
    (run / "provenance.json").write_text(json.dumps(provenance(dataset, CPU)))
    steps = [{"step": s, "train_loss": 6 / s, "lr_scale": 1 / s, "tokens_per_second": 9.0} for s in (1, 2, 3)]
    metrics = [
        {"step": 0, "val_loss": 6.0, "val_bpb": 4.0},
        *steps,
        {"step": 3, "val_loss": 5.0, "val_bpb": 3.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    state = small_model(recipe, seed=1).state_dict()
    save_weights(run / "model.safetensors", state, recipe, dataset.tokenizer.digest)
    report = pack(state, recipe, dataset.tokenizer.digest, run / "artifact.pgolf")
    result = {
        "recipe": recipe.name,
        "train": {"steps": 3, "seconds": 1.0},
        "pack": report.to_json(),
        "evaluations": {},
    }
    for name in evaluation_names(recipe.memory.enabled)[1:]:
        entry = EVALUATIONS[name]
        weights, ledger = load_weights(run / entry.file), run / entry.ledger
        scored = evaluate_weights(weights, recipe, dataset, entry.mode, CPU, ledger=ledger)
        result["evaluations"][name] = scored.to_json()
    (run / "result.json").write_text(json.dumps(result))
    return run, dataset
