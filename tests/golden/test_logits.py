"""Logits, losses and gradients equal the references' on real text, for every variant of the model.

Tolerances: logits and losses 1e-4 absolute, gradient norms 1e-3 relative (float32 on both sides).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgolf.compress.legacy import REFERENCE_NAMES, import_reference, reference_names
from pgolf.model.gpt import GPT
from tests.golden.toy import LOGITS, logits_recipe

CASES = [(number, variant) for number, variants in LOGITS.items() for variant in variants]


@pytest.mark.parametrize(("number", "variant"), CASES)
def test_logits_losses_and_gradients(shared: Path, tmp_path: Path, number: str, variant: str) -> None:
    recipe, folder = logits_recipe(number, variant), shared / "golden" / f"pr{number}"
    tensors = load_file(folder / f"logits_{variant}.safetensors")
    save_file(
        {name[7:]: t for name, t in tensors.items() if name.startswith("weight.")}, tmp_path / "w.safetensors"
    )
    network = GPT(recipe.model)
    network.load_state_dict(import_reference(tmp_path / "w.safetensors", recipe))
    with torch.no_grad():
        logits = network(tensors["tokens"].long())
        long_nll = network(tensors["long_tokens"].long(), tensors["long_targets"].long())
    assert torch.allclose(logits, tensors["logits"], atol=1e-4, rtol=0)
    assert torch.allclose(long_nll[0], tensors["long_nll"], atol=1e-4, rtol=0)
    golden = json.loads((folder / f"logits_{variant}.json").read_text())
    loss = network(tensors["tokens"].long(), tensors["targets"].long()).mean()
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-4)
    loss.backward()
    compared = 0
    for name, parameter in network.named_parameters():
        pieces = reference_names(name, REFERENCE_NAMES[number], parameter.shape)
        for index, piece in enumerate(pieces):
            expected = golden["grad_norm"][piece]
            compared += 1
            if expected is None:
                assert parameter.grad is None
            else:
                assert parameter.grad is not None
                gradient = parameter.grad if len(pieces) == 1 else parameter.grad[index]
                assert gradient.norm().item() == pytest.approx(expected, rel=1e-3), name
    assert compared == len(golden["grad_norm"])
