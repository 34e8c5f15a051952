"""Logits, losses and gradients equal the references' on real text, for every variant of the model.

Tolerances: logits 1e-4 absolute, losses 1e-5, gradient norms 1e-3 relative (float32 on both sides).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pgolf.compress.legacy import import_reference
from safetensors.torch import load_file, save_file

from pgolf.model.gpt import GPT
from tests.golden.toy import LOGITS, logits_recipe

CASES = [(number, variant) for number, variants in LOGITS.items() for variant in variants]


def _load(shared: Path, tmp_path: Path, number: str, variant: str) -> tuple[GPT, dict[str, torch.Tensor]]:
    recipe = logits_recipe(number, variant)
    tensors = load_file(shared / "golden" / f"pr{number}" / f"logits_{variant}.safetensors")
    weights = {name[7:]: value for name, value in tensors.items() if name.startswith("weight.")}
    save_file(weights, tmp_path / "reference.safetensors")
    network = GPT(recipe.model)
    network.load_state_dict(import_reference(tmp_path / "reference.safetensors", recipe))
    return network, tensors


@pytest.mark.parametrize(("number", "variant"), CASES)
def test_logits_and_losses(shared: Path, tmp_path: Path, number: str, variant: str) -> None:
    network, tensors = _load(shared, tmp_path, number, variant)
    with torch.no_grad():
        logits = network(tensors["tokens"].long())
        long_nll = network(tensors["long_tokens"].long(), tensors["long_targets"].long())
    assert torch.allclose(logits, tensors["logits"], atol=1e-4, rtol=0)
    assert torch.allclose(long_nll[0], tensors["long_nll"], atol=1e-4, rtol=0)
