"""The Triton kernels against the formula, in Triton's interpreter: started by test_triton_kernels.py, not
collected.

The interpreter must be asked for (``TRITON_INTERPRET=1``) before the kernels are imported.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.kernels import cross_entropy
from pgolf.kernels.cross_entropy import softcap_cross_entropy

CAP = 3.0


def _case(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = (4 * torch.randn(rows, columns, generator=generator)).to(dtype).requires_grad_()
    return z, torch.randint(columns, (rows,), generator=generator), torch.linspace(-1, 2, rows)


def _expected(z: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(CAP * torch.tanh(z.double() / CAP), targets, reduction="none")


@pytest.mark.parametrize(
    ("rows", "columns", "block", "dtype"),
    (
        (5, 64, 4096, torch.float32),
        (5, 100, 32, torch.float32),
        (3, 33, 16, torch.bfloat16),
        (0, 8, 8, torch.float32),
    ),
)
def test_losses_and_gradients(
    rows: int, columns: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_LARGEST_BLOCK", block)
    z, targets, upstream = _case(rows, columns, dtype)
    losses, expected = softcap_cross_entropy(z, targets, CAP), _expected(z, targets)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), expected, atol=1e-5, rtol=0)
    (found,) = torch.autograd.grad(losses, z, upstream)
    (wanted,) = torch.autograd.grad(expected, z, upstream.double())
    assert found.dtype == dtype
    # The interpreter cuts bits off where the hardware rounds.
    assert torch.allclose(
        found.double(), wanted.double(), atol=1e-6, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5
    )


def test_rows_apart_columns_apart_and_expanded_gradients() -> None:
    z, targets, _ = _case(12, 40, torch.float32)
    for view in (z[::2], z.view(40, 12).t()[:6]):
        losses = softcap_cross_entropy(view, targets[::2], CAP)
        assert torch.allclose(losses.double(), _expected(view, targets[::2]), atol=1e-5, rtol=0)
        (found,) = torch.autograd.grad(losses.sum(), z, retain_graph=True)
        (wanted,) = torch.autograd.grad(_expected(view, targets[::2]).sum(), z)
        assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-5)


def test_extreme_products_and_targets_outside() -> None:
    z = torch.tensor([[-1e9, 0.0, 1e9], [200.0, 200.0, 200.0]], requires_grad=True)
    losses = softcap_cross_entropy(z, torch.tensor([0, 1]), 60.0)
    assert torch.allclose(losses.double(), _expected_cap(z, torch.tensor([0, 1]), 60.0), atol=1e-4, rtol=0)
    (found,) = torch.autograd.grad(losses.sum(), z)
    assert torch.isfinite(found).all()
    outside = softcap_cross_entropy(z.detach(), torch.tensor([3, -1]), 60.0)
    assert torch.isnan(outside).all()
    unknown = torch.full((1, 3), float("nan"))
    assert torch.isnan(softcap_cross_entropy(unknown, torch.tensor([0]), 60.0)).all()


def _expected_cap(z: Tensor, targets: Tensor, cap: float) -> Tensor:
    return F.cross_entropy(cap * torch.tanh(z.double() / cap), targets, reduction="none")


def test_the_operator_keeps_its_promises_and_stays_one_node_of_a_compiled_graph() -> None:
    z, targets, _ = _case(4, 16, torch.float32)
    op = torch.ops.pgolf.softcap_cross_entropy.default
    torch.library.opcheck(op, (z, targets, CAP), test_utils=("test_schema", "test_autograd_registration"))

    def loss(weight: Tensor) -> Tensor:
        product: Tensor = softcap_cross_entropy(F.linear(weight, z), targets, CAP)
        return product.mean()

    weight = torch.randn(4, 16, requires_grad=True)
    z = torch.randn(16, 16)
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(weight), weight)
    (found,) = torch.autograd.grad(whole(weight), weight)
    assert torch.allclose(found, expected)
