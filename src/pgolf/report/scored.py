"""The sections of a run's report that take work: what the text costs, and what the model writes."""

from __future__ import annotations

from dataclasses import replace

import torch

from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.evaluate.build import uses_memory, without_memory
from pgolf.evaluate.evaluations import EVALUATIONS, OF_MODE
from pgolf.generate.model import Model, sample_texts
from pgolf.report.content import Passage, Passages, Section
from pgolf.report.memory_tables import order_table
from pgolf.report.text_analysis import TargetCosts, pieces_of, score_targets, text_section, visible
from pgolf.runs.records import RunRecord
from pgolf.runtime.progress import counting

SAMPLES, SAMPLE_TOKENS = 3, 120


def scored_sections(
    run: RunRecord, weights: Weights, dataset: Dataset, mode: str, targets: int, device: torch.device
) -> list[Section]:
    """What the first ``targets`` targets cost in a mode, what a memory knew of them, and samples."""
    packed = weights.kind == "artifact"
    with_memory = uses_memory(weights.recipe, mode)

    def score(weights: Weights, evaluation: str) -> TargetCosts:
        ledger = run.folder / EVALUATIONS[evaluation if packed else "float"].ledger
        known = ledger if ledger.is_file() and (packed or mode == "standard") else None
        with counting("what each target costs") as progress:
            return score_targets(weights, dataset, mode, targets, known, device, progress)

    costs = score(weights, "memory" if with_memory else OF_MODE[mode])
    won = []
    if with_memory:
        alone = score(replace(weights, recipe=without_memory(weights.recipe)), OF_MODE[mode])
        stored = weights.memory_start(dataset.tokenizer).stored
        table = order_table(alone, costs, stored, weights.recipe.memory.order)
        won = [Section("orders", "What the memory knew", [table])]
    texts = sample_texts(Model(weights.source, dataset.tokenizer.path), SAMPLES, SAMPLE_TOKENS)
    samples = [Passage(f"sample {place}", [(visible(text), None)]) for place, text in enumerate(texts, 1)]
    note = f"Beginnings of documents, up to {SAMPLE_TOKENS} tokens, by `pgolf generate`; fixed seeds."
    written = Section("samples", "Samples", [Passages("What the model writes", samples, note)])
    text = text_section(costs, pieces_of(dataset.tokenizer), dataset.tokenizer.bos_id)
    return [*won, text, written]
