"""The quantizers give the references' codes and step sizes on a formula-made matrix of full width.

``data/formula_codes.json`` holds digests of what the reference scripts' quantizers return for it. The golden
artifacts are too small to exercise those of #644 and #1232.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgolf.compress.quantize import quantize_matrix
from pgolf.recipe.recipe import load_recipe
from pgolf.recipe.sections import CompressSection
from tests.golden.test_formula_weights import formula_weight

FIGURES = json.loads((Path(__file__).parent / "data" / "formula_codes.json").read_text(encoding="utf-8"))


def _section(case: str) -> CompressSection:
    number = case.split()[0]
    recipe = load_recipe(f"seed_{number}")
    if case.endswith("rows"):
        recipe = recipe.with_overrides(['compress.clip="row_percentiles"'])
    return recipe.compress


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", FIGURES)
def test_codes_and_steps(case: str) -> None:
    # Cubed for heavy tails; rows from well below the scale floor to above it.
    weight = formula_weight("cores.0.mlp.up.weight", (96, 512)) * 5
    weight = weight**3 * torch.linspace(0.02, 1.5, 96)[:, None]
    found = quantize_matrix(weight, int(case.split()[1][3:]), _section(case))
    assert int(found.codes.long().abs().sum()) == FIGURES[case]["codes_sum"]
    assert float(found.scale.double().sum()) == FIGURES[case]["scale_sum"]
    assert _digest(found.codes) == FIGURES[case]["codes_sha256"]
    assert _digest(found.scale) == FIGURES[case]["scale_sha256"]
