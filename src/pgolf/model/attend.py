"""Causal attention of queries, keys and values: what computes it, and the document mask.

    no mask         FlashAttention 3 (Shah et al. 2024, arXiv:2407.08608) on Hopper GPUs where its package is
                    installed; elsewhere the framework's fused attention, which picks a kernel for the device
    document mask   FlexAttention (Dong et al. 2024, arXiv:2412.05496) on CUDA with Triton, which skips blocks
                    of positions that no query of a block may see; elsewhere, and where it takes no such
                    heads or the sequence is short, fused attention with the mask as a tensor

All of them take the K key/value heads as they are; none copies them for the H / K query heads that share one.
``attention_backend`` is the rule. The results differ by rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pgolf.kernels.available import has_triton

Backend = Literal["flash3", "flex", "sdpa"]

# FlexAttention's kernels multiply no narrower matrices, and take blocks of so many positions: for fewer there
# is another kernel, which in some versions of torch refuses groups of query heads that are no power of two.
_FLEX_WIDTH, _FLEX_POSITIONS = 16, 128


def _import_flash_3() -> Callable[..., Any] | None:
    if importlib.util.find_spec("flash_attn_interface") is None:
        return None
    try:
        found: Callable[..., Any] = importlib.import_module("flash_attn_interface").flash_attn_func
    except (
        ImportError,
        OSError,
        AttributeError,
    ):  # Built for another torch, say; the framework's own is as right.
        return None
    return found


# Looked for here and not in the forward pass, which is compiled.
_flash_3 = _import_flash_3()


def _constant_to_the_compiler(rule: Callable[[int | None], bool]) -> Callable[[int | None], bool]:
    # Asked only where FlashAttention 3 is there; elsewhere the mark would import the compiler, seconds of
    # every start.
    return rule if _flash_3 is None else torch.compiler.assume_constant_result(rule)


@_constant_to_the_compiler
def _is_hopper(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index)[0] == 9


def attention_backend(
    device: torch.device, dtype: torch.dtype, head_width: int, masked: bool, positions: int
) -> Backend:
    """What computes attention over whole sequences: on a device, in a format, with or without mask."""
    if device.type != "cuda":
        return "sdpa"
    if masked:
        takes = head_width >= _FLEX_WIDTH and positions >= _FLEX_POSITIONS
        return "flex" if takes and has_triton() else "sdpa"
    fits = dtype in (torch.bfloat16, torch.float16) and head_width % 8 == 0 and head_width <= 256
    return "flash3" if fits and _flash_3 is not None and _is_hopper(device.index) else "sdpa"


class DocumentMask:
    """Which positions of each sequence see which: those before them, and themselves, in the same document.

    Made once per forward pass and shared by all layers, in the form that the backend takes.

    Args:
        ids: the document that each of T positions belongs to (B, T) int64; see ``document_ids``.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        # No dictionary: where a model is exported, sizes are symbols.
        self._dense: list[Tensor] = []
        self._blocks: BlockMask | None = None

    def dense(self, count: int) -> Tensor:
        """(B, 1, n, T) bool for the last n positions: true where one sees another."""
        found = next((mask for mask in self._dense if mask.size(2) == count), None)
        if found is None:
            length = self.ids.size(1)
            earlier = torch.ones(count, length, dtype=torch.bool, device=self.ids.device).tril(length - count)
            same = self.ids[:, length - count :, None] == self.ids[:, None, :]
            found = (earlier & same)[:, None]
            self._dense.append(found)
        return found

    def blocks(self) -> BlockMask:
        """For FlexAttention over all positions."""
        if self._blocks is None:
            ids, (batch, length) = self.ids, self.ids.shape

            def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (query >= key) & (ids[row, query] == ids[row, key])

            self._blocks = create_block_mask(sees, batch, None, length, length, device=ids.device)
        return self._blocks


def document_ids(tokens: Tensor, bos: int) -> Tensor:
    """Documents (B, T) of tokens (B, T), from 0: each ``bos`` begins one; before the first is document 0."""
    return (tokens == bos).cumsum(dim=1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask | None = None) -> Tensor:
    """Attend within each sequence, each position to itself and those before it.

    Args:
        q: queries (B, T, H, W).
        k: keys (B, T, K, W); query head h reads key/value head h // (H / K).
        v: values (B, T, K, W).
        mask: keeps attention within documents.

    Returns:
        (B, T, H, W) in the values' format.
    """
    # Rotary tables and gains are float32; under autocast this brings q and k back to the values' type.
    q, k = q.to(v.dtype), k.to(v.dtype)
    backend = attention_backend(q.device, q.dtype, q.size(-1), mask is not None, q.size(1))
    if backend == "flash3":
        assert _flash_3 is not None
        y = _flash_3(q, k, v, causal=True)
        # Some versions return the normalisers as well.
        return y[0] if isinstance(y, tuple) else y
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.size(1) != k.size(1)
    if mask is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif backend == "flex":
        y = _flex()(q, k, v, block_mask=mask.blocks(), enable_gqa=grouped)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.dense(q.size(2)), enable_gqa=grouped)
    return y.transpose(1, 2)


_compiled_flex: Callable[..., Any] | None = None


def _flex() -> Callable[..., Any]:
    """FlexAttention is a kernel only when compiled: with the model around it, or else by itself."""
    global _compiled_flex
    if torch.compiler.is_compiling():
        return flex_attention
    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention)
    return _compiled_flex
