"""What computes attention, and that with the document mask a document is read as if it stood alone."""

from __future__ import annotations

import importlib.machinery
import itertools
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.profiler import ProfilerActivity, profile

from pgolf.model import attend
from pgolf.model.attend import DocumentMask, attention_backend, causal_attention, document_ids
from pgolf.model.gpt import GPT
from pgolf.model.step import extend
from tests.unit import test_cache
from tests.unit.test_features import EXAMPLES
from tests.unit.test_model import PLAIN, randomised, section, tokens

BOS = 5  # Not the usual one.
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LENGTH = 12
VARIANTS = test_cache.VARIANTS | {name: [*PLAIN, *settings] for name, settings in EXAMPLES.items()}
ENDS = (0, 3, 4, 9, LENGTH)  # the text begins in the middle of a document, and one has no token but BOS


def documents() -> Tensor:
    """Two sequences (2, 12) with documents that begin at positions 3, 4 and 9."""
    x = tokens(length=LENGTH)
    x[x == BOS] = 2
    x[:, ENDS[1:-1]] = BOS
    return x


def masked(variant: str) -> GPT:
    return randomised(section(*VARIANTS[variant], f"model.bos={BOS}", "model.document_mask=true")).eval()


def heads(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, LENGTH, count, 8) for count in (4, 2, 2))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("variant", ("plain", "smear", "bigram", "additive bigram", "everything"))
def test_documents_are_read_as_if_each_stood_alone(variant: str) -> None:
    network, x = masked(variant), documents()
    whole = network.hidden(x)
    for start, end in itertools.pairwise(ENDS):
        alone = network.hidden(x[:, start:end], LENGTH)
        assert torch.allclose(whole[:, start:end], alone, atol=1e-5, rtol=1e-5), (start, end)
    other = randomised(section(*VARIANTS[variant], f"model.bos={BOS}")).eval()
    assert not torch.allclose(other.hidden(x)[:, 3:], whole[:, 3:], atol=1e-2)
    assert torch.allclose(other.hidden(x)[:, :3], whole[:, :3], atol=1e-5)


@pytest.mark.parametrize("variant", ("additive bigram", "everything"))
def test_a_cache_remembers_where_documents_begin(variant: str) -> None:
    network, x = masked(variant), documents()
    expected = network.hidden(x)
    cache = network.cache(2, LENGTH)
    for sizes in ([LENGTH], [1] * LENGTH, [2, 1, 1, 4, 4], [5, 7]):
        parts = [extend(network, part, cache) for part in x.split(sizes, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5), sizes
        cache.reset()


def test_document_ids_count_the_beginnings() -> None:
    assert document_ids(torch.tensor([[5, 1, 6, 1, 1], [1, 2, 3, 4, 1]]), 1).tolist() == [
        [0, 1, 1, 2, 3],
        [1, 1, 1, 1, 2],
    ]


@pytest.mark.parametrize("mask", (False, True))
def test_query_heads_share_keys_and_values_without_copies(mask: bool) -> None:
    documents = DocumentMask(document_ids(torch.ones(2, LENGTH, dtype=torch.long), 1)) if mask else None
    q, k, v = (tensor.requires_grad_() for tensor in heads())
    if documents is not None:
        documents.dense(LENGTH)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        causal_attention(q, k, v, documents).sum().backward()
    operations = {event.key for event in profiler.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in operations
    assert not operations & {"aten::repeat_interleave", "aten::repeat", "aten::index_select"}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_the_same_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, (q, k, v) = DocumentMask(document_ids(documents(), BOS)), heads()
    expected = causal_attention(q, k, v, mask)
    monkeypatch.setattr(attend, "attention_backend", lambda *_: "flex")
    monkeypatch.setattr(attend, "_flex", lambda: flex_attention)
    # Uncompiled it computes the same in plain operations, for which the CPU will do.
    assert torch.allclose(causal_attention(q, k, v, mask), expected, atol=1e-5)
    assert mask.blocks() is mask.blocks()


@pytest.mark.parametrize("with_normalisers", (False, True))
def test_flash_attention_3_gets_position_before_head(
    with_normalisers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def stand_in(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        calls.append(options)
        assert q.shape == (2, LENGTH, 4, 8)
        assert k.shape == v.shape == (2, LENGTH, 2, 8)
        y = torch.nn.functional.scaled_dot_product_attention(
            *(tensor.transpose(1, 2) for tensor in (q, k, v)), is_causal=options["causal"], enable_gqa=True
        ).transpose(1, 2)
        return (y, torch.zeros(2, 4, LENGTH)) if with_normalisers else y

    q, k, v = heads(torch.bfloat16)
    expected = causal_attention(q.float(), k, v)
    monkeypatch.setattr(attend, "attention_backend", lambda *_: "flash3")
    monkeypatch.setattr(attend, "_flash_3", stand_in)
    assert torch.equal(causal_attention(q.float(), k, v), expected)
    assert calls == [{"causal": True}]


def test_the_backend_follows_from_device_format_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = torch.bfloat16
    monkeypatch.setattr(attend, "_flash_3", None)
    monkeypatch.setattr(attend, "_is_hopper", lambda index: index == 0)
    assert attention_backend(CUDA, bf16, 64, masked=False, positions=384) == "sdpa"
    monkeypatch.setattr(attend, "_flash_3", lambda *_, **__: None)
    assert attention_backend(CUDA, bf16, 64, masked=False, positions=384) == "flash3"
    assert attention_backend(CUDA, torch.float32, 64, masked=False, positions=384) == "sdpa"
    assert attention_backend(CUDA, bf16, 20, masked=False, positions=384) == "sdpa"
    assert attention_backend(torch.device("cuda", 1), bf16, 64, masked=False, positions=384) == "sdpa"
    for there, backend in ((True, "flex"), (False, "sdpa")):
        monkeypatch.setattr(attend, "has_triton", lambda there=there: there)
        assert attention_backend(CUDA, bf16, 64, masked=True, positions=384) == backend
        assert attention_backend(CUDA, bf16, 8, masked=True, positions=384) == "sdpa"
        assert attention_backend(CUDA, bf16, 64, masked=True, positions=127) == "sdpa"
        assert attention_backend(CPU, bf16, 64, masked=True, positions=384) == "sdpa"
    assert attention_backend(CPU, bf16, 64, masked=False, positions=384) == "sdpa"


def test_flash_attention_3_is_looked_for_and_may_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "flash_attn_interface"
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    assert attend._import_flash_3() is None  # there, but without the function
    module.flash_attn_func = print  # type: ignore[attr-defined]
    assert attend._import_flash_3() is print


@pytest.mark.parametrize(("major", "backend"), ((9, "flash3"), (10, "sdpa")))
def test_the_rule_is_a_constant_to_the_compiler(
    major: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()

    def capability(index: int | None) -> tuple[int, int]:
        torch._dynamo.graph_break()  # Like the driver's answer: nothing that the compiler could follow.
        return major, 0

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(attend, "_flash_3", lambda *_, **__: None)
    monkeypatch.setattr(attend, "_is_hopper", attend._constant_to_the_compiler(attend._is_hopper))

    def follow(x: Tensor) -> Tensor:
        return (
            x + 1
            if attention_backend(CUDA, torch.bfloat16, 64, masked=False, positions=384) == backend
            else x
        )

    assert torch.compile(follow, backend="eager", fullgraph=True)(torch.zeros(())) == 1


def test_values_have_one_format_with_a_table_added_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = set()

    def stand_in(q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask | None) -> Tensor:
        formats.add(v.dtype)
        return causal_attention(q, k, v, mask)

    monkeypatch.setattr("pgolf.model.attention.causal_attention", stand_in)
    network = randomised(section(*PLAIN, *EXAMPLES["unprojected values"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(tokens(length=LENGTH))
    assert formats == {torch.bfloat16}


def test_a_compiler_follows_the_question_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def follow(x: Tensor) -> Tensor:
        masked = attention_backend(CUDA, torch.bfloat16, 64, masked=True, positions=384)
        return x + 1 if masked == "flex" else x - 1

    compiled = torch.compile(follow, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).abs() == 1
