"""What targets cost under the tied, soft-capped output layer, without float32 logits of a whole batch.

With hidden states h, token embedding E and cap c, position i costs

    log sum_j exp(y_ij) - y_i,target(i),    y = c * tanh(h E^T / c)

The cap may be a learned one, of its own for positive and for negative logits; there is no kernel for that.
There are three ways to the same numbers, and ``loss_form`` says which is taken:

    kernel    on CUDA with Triton: h E^T once, in the format of the computation (bf16), then one kernel
              each way
    chunked   where logits would be large: some rows at a time, computed again in the backward pass
    plain     otherwise: the logits as a tensor, the framework's cross-entropy

Products are formed in the format autocast asks for (bf16 on CUDA) and rounded to it; all that follows is
float32.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgolf.kernels.available import has_triton
from pgolf.model.fast import by_hand

_LARGEST_PLAIN = 32 << 20
"""Bytes of float32 logits above which they are computed in chunks."""
_CHUNK = 4 << 20
"""Bytes of float32 logits in one chunk."""

_LARGEST_EXPONENT = 60.0
"""Exponentials of capped logits up to this, and sums of millions of them, stay far inside float32's range."""

Form = Literal["kernel", "chunked", "plain"]

# Decided here and not in the forward pass, which is compiled.
if has_triton():
    from pgolf.kernels.cross_entropy import softcap_cross_entropy


def loss_form(rows: int, vocabulary: int, device: torch.device, learned: bool = False) -> Form:
    """Which way ``target_losses`` takes for so many rows and columns of logits on a device, if the cap is a
    learned one.
    """
    if device.type == "cuda" and has_triton() and not learned:
        return "kernel"
    return "chunked" if 4 * rows * vocabulary > _LARGEST_PLAIN else "plain"


def target_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: Tensor | float, rows: int | None = None
) -> Tensor:
    """Loss of each target in nats; differentiable (once) in ``hidden``, ``weight`` and a learned ``softcap``.

    Args:
        hidden: final hidden states (..., D).
        weight: token embedding (V, D).
        targets: (...) int64, each from 0 to V - 1.
        softcap: the cap c of the logits; or the caps of positive and of negative ones (2,), learned.
        rows: of a chunk, where logits come in chunks; as many as suit a processor by default.

    Returns:
        Losses (...) float32 (float64 if the inputs are).
    """
    hidden, weight = _in_autocast_format(hidden.flatten(0, -2)), _in_autocast_format(weight)
    wanted = targets.flatten()
    learned = isinstance(softcap, Tensor)
    form = loss_form(hidden.size(0), weight.size(0), hidden.device, learned)
    if form == "kernel":
        assert not isinstance(softcap, Tensor)
        losses = softcap_cross_entropy(F.linear(hidden, weight), wanted, softcap)
    elif form == "chunked":
        losses = chunked_losses(hidden, weight, wanted, softcap, rows)
    elif not learned and by_hand(hidden) and softcap <= _LARGEST_EXPONENT:
        losses = _Plain.apply(hidden, weight, wanted, softcap)
    else:
        losses = F.cross_entropy(capped(F.linear(hidden, weight), softcap), wanted, reduction="none")
    return losses.view_as(targets)


def capped(z: Tensor, softcap: Tensor | float) -> Tensor:
    """Logits c * tanh(z / c), in float32 (float64 if z is)."""
    cap = cap_of(z, softcap)
    return cap * torch.tanh(_wide(z) / cap)


def cap_of(z: Tensor, softcap: Tensor | float) -> Tensor | float:
    """The cap of each product or logit z: of caps (2,) the first where it is at least 0, else the second."""
    return torch.where(z >= 0, softcap[0], softcap[1]) if isinstance(softcap, Tensor) else softcap


def chunked_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: Tensor | float, rows: int | None = None
) -> Tensor:
    """As ``target_losses`` for hidden states (N, D) and targets (N,), ``rows`` of the logits at a time.

    The backward pass computes each chunk's logits again, so neither pass holds more than a few chunks of
    them.
    """
    rows = rows or max(1, _CHUNK // (4 * weight.size(0)))
    losses: Tensor = _Chunked.apply(hidden, weight, targets, softcap, rows)
    return losses


class _Plain(torch.autograd.Function):
    """The plain form in few passes: with t = tanh(z / c) and p = softmax(c t), dz = (p - target) (1 - t^2).

    Capped logits need no maximum taken off before their exponentials are added up.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        t = F.linear(hidden, weight).div_(softcap).tanh_()
        chosen = t.gather(1, targets[:, None])[:, 0] * softcap
        exponentials = (t * softcap).exp_()
        total = exponentials.sum(dim=1)
        ctx.save_for_backward(hidden, weight, targets, t, exponentials, total)
        return total.log().sub_(chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets, t, exponentials, total = ctx.saved_tensors
        dz = exponentials * (upstream / total)[:, None]
        dz.scatter_add_(1, targets[:, None], -upstream[:, None])
        dz.addcmul_(dz, t.square(), value=-1)
        return dz @ weight, dz.t() @ hidden if ctx.needs_input_grad[1] else None, None, None


class _Chunked(torch.autograd.Function):
    """The formula a part of the rows at a time. Of a learned cap: dy/dc = t - u (1 - t^2), u = z / c."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: Tensor | float, rows: int
    ) -> Tensor:
        losses, normalisers = [], []
        for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = capped(F.linear(h, weight), softcap)
            normaliser = logits.logsumexp(dim=1)
            normalisers.append(normaliser)
            losses.append(normaliser - logits.gather(1, target[:, None])[:, 0])
        learned = [softcap] if isinstance(softcap, Tensor) else []
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers), *learned)
        ctx.softcap, ctx.rows = None if learned else softcap, rows
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None, None]:
        hidden, weight, targets, normalisers, *learned = ctx.saved_tensors
        softcap = learned[0] if learned else ctx.softcap
        d_caps = torch.zeros_like(learned[0]) if learned else None
        parts = zip(*(t.split(ctx.rows) for t in (hidden, targets, normalisers, upstream)), strict=True)
        d_hidden: list[Tensor] = []
        # Summed over the chunks in float32, whatever the format of the products.
        d_weight = torch.zeros_like(weight, dtype=normalisers.dtype)
        for h, target, normaliser, up in parts:
            # In place where it can be: fresh memory costs more time than the arithmetic.
            z = _wide(F.linear(h, weight))
            cap = cap_of(z, softcap)
            u = z.div_(cap)
            t = u.tanh_() if d_caps is None else u.tanh()
            dz = torch.mul(t, cap).sub_(normaliser[:, None]).exp_()
            dz.scatter_add_(1, target[:, None], dz.new_full((len(dz), 1), -1.0))
            if d_caps is not None:
                by_cap = (t - u * (1 - t.square())).mul_(dz).mul_(up[:, None])
                positive = by_cap[u >= 0].sum()
                d_caps += torch.stack((positive, by_cap.sum() - positive))
            dz = dz.mul_(t.square_().neg_().add_(1)).mul_(up[:, None]).to(h.dtype)
            d_hidden.append(dz @ weight)
            d_weight += dz.t() @ h
        return torch.cat(d_hidden), d_weight.to(weight.dtype), None, d_caps, None


def _in_autocast_format(x: Tensor) -> Tensor:
    # As ``F.linear`` would do under autocast, but seen by the code of this module.
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()
