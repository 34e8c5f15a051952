"""The zoo: every invalid subject is caught and its condition named; no valid one is accused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgolf.audit.report import CONDITIONS
from tests.audit.zoo import INVALID, VALID
from tests.audit.zoo.toys import Animal, audited

# Texts differ by their seed. Small transformers take half a second each; `python -m tests.audit.zoo` audits
# them with all seeds too.
SEEDS = pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 20), marks=pytest.mark.slow)], ids=["few", "many"]
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the texts of the seeds are written, once for all animals."""
    return tmp_path_factory.mktemp("zoo")


@SEEDS
@pytest.mark.parametrize("animal", VALID, ids=str)
def test_no_valid_subject_is_accused(animal: Animal, seeds: range, texts: Path) -> None:
    for seed in seeds[:1] if animal.slow else seeds:
        report = audited(animal, seed, texts)
        accused = [finding for finding in report.findings if not finding.passed]
        assert report.ok and not accused, f"seed {seed}: {accused}"


@SEEDS
@pytest.mark.parametrize("animal", INVALID, ids=str)
def test_every_invalid_subject_is_caught(animal: Animal, seeds: range, texts: Path) -> None:
    for seed in seeds[:1] if animal.slow else seeds:
        report = audited(animal, seed, texts)
        assert animal.condition in report.violated, f"seed {seed}: {report.violated}"
        assert animal.is_named_right(report.violated), f"seed {seed}: {report.violated}"


def test_the_zoo_is_complete() -> None:
    names = [animal.name for animal in [*VALID, *INVALID]]
    assert len(set(names)) == len(names)
    assert len(VALID) >= 18 and len(INVALID) >= 55
    assert {animal.condition for animal in INVALID} == set(CONDITIONS)
    # What is known to have happened in the field.
    assert {
        *("two_pass_ttt", "pre_quantization_ttt", "last_epoch_scoring", "minimum_over_passes", "slot"),
        *(
            "target_in_key_cache",
            "target_gated_experts",
            "unnormalised_byte_mixture",
            "smear_across_documents",
        ),
        *(
            "future_document_length",
            "warmup_on_validation",
            "calibration_on_validation",
            "byte_count_inflation",
        ),
        *("truncated_stream", "rescoring", "external_file", "future_token_in_padding"),
        *("target_keyed_hash", "powers_of_bytes", "gate_by_class", "memory_before_scoring", "two_orders"),
        *("counts_of_later_documents", "best_of_two_weights", "stored_validation_text"),
    } <= set(names)
    assert {"standard", "sliding", "sgd_ttt", "adamw_ttt", "lora_ttt_per_document", "ngram_mixture"} <= set(
        names
    )
    assert {"memory", "memory_beside_model", "memory_of_linear_mixing", "ppm"} <= set(names)
