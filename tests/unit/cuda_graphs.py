"""The models on a CUDA device that is not there: started by test_cuda_graphs.py, not collected.

    cuda_graphs.py LIBRARY [OPTION OF PYTEST ...]

The library stands in for a device and must be there before torch. Tensors are fake: they have a device, a
shape and a format and no contents, and autocast, attention and loss choose what they choose on a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    (folder,) = find_spec("torch").submodule_search_locations  # type: ignore[union-attr, misc]
    for library in (*(Path(folder, "lib", name) for name in ("libc10.so", "libtorch_cpu.so")), sys.argv[1]):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from pgolf.kernels import cross_entropy
from pgolf.model import attend, loss
from pgolf.model.gpt import GPT
from pgolf.optim.place import set_formats
from pgolf.optim.schedule import stages
from pgolf.recipe.files import recipe_names
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.costs import activation_bytes

CUDA, ROWS, LENGTH = torch.device("cuda", 0), 2, 128
BATCH = [f"train.batch_tokens={ROWS * LENGTH}", "train.micro_batches=1", f"train.sequence_length={LENGTH}"]
BATCH += ["train.length_schedule=[]", "ttt.frozen_blocks=0", "qat.enabled=false"]
SHALLOW = [*BATCH, "model.layers=2", "model.xsa_last=1"]
# Looped, and with its two lanes: visits are layers 0, 0 and 1.
LOOPED = [*BATCH, "model.layers=2", "model.xsa_last=2", "model.lanes.start=1"]
LOOPED += ["model.loop.first=0", "model.loop.last=0", "model.loop.passes=2"]
# What does not fit into two layers.
OTHERS = {
    "frontier": LOOPED,
    "frontier_sp1024": LOOPED,
    "seed_644": [*SHALLOW, "model.value_embedding.layers=[1]"],
}


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attend, "has_triton", lambda: True)
    monkeypatch.setattr(loss, "has_triton", lambda: True)
    monkeypatch.setattr(loss, "softcap_cross_entropy", cross_entropy.softcap_cross_entropy, raising=False)
    torch._dynamo.reset()
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    with FakeTensorMode():
        yield
    torch.set_autocast_enabled("cuda", False)


def shrunk(name: str, *settings: str) -> Recipe:
    return load_recipe(name, [*OTHERS.get(name, SHALLOW), *settings])


def on_cuda(recipe: Recipe) -> GPT:
    network = set_formats(GPT(recipe.model).train(), recipe)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(CUDA)))
    return network


def tokens(length: int = LENGTH) -> Tensor:
    return torch.zeros(ROWS, length, dtype=torch.int64, device=CUDA)


def compiled(network: GPT, backend: str) -> tuple[Callable[..., Tensor], Any]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(network, backend=counter, fullgraph=True, dynamic=False), counter


class Flash(torch.autograd.Function):
    """Keeps what fused attention keeps; on this device torch would take attention apart."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, y, q.new_empty(q.shape[:3], dtype=torch.float32))
        return y


def check_a_step(name: str, backend: str) -> None:
    """A recipe's step is one graph; "aot_eager" traces it backwards too, which takes three times as long."""
    recipe = shrunk(name)
    network = on_cuda(recipe)
    forward, counter = compiled(network, backend)
    forward(tokens(), tokens()).mean().backward()
    forward(tokens(), tokens())
    assert counter.frame_count == 1
    operations = {str(node.target) for node in counter.graphs[0].graph.nodes}
    assert "pgolf.softcap_cross_entropy.default" in operations
    assert any("flex_attention" in each for each in operations) == recipe.model.document_mask
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_of_every_recipe_is_one_graph(name: str) -> None:
    check_a_step(name, "eager")


def test_so_is_the_backward_pass_of_the_recipe_with_most_parts() -> None:
    check_a_step("frontier", "aot_eager")


def test_every_stage_of_the_frontier_takes_one_graph_and_no_more() -> None:
    # The mask is in the graphs above, and tracing it takes most of the time.
    schedule = f"train.length_schedule=[[{LENGTH // 4}, 0.1], [{LENGTH // 2}, 0.7], [{LENGTH}, 1.0]]"
    recipe = shrunk("frontier", "model.document_mask=false", schedule)
    network = on_cuda(recipe)
    forward, counter = compiled(network, "eager")
    found = [stage[2:] for stage in stages(recipe.train, recipe.model.loop)]
    assert found == [(1, 32), (1, 64), (2, 64), (2, 128)]
    for passes, length in found * 2:
        with network.passing(passes):
            forward(tokens(length), tokens(length))
    assert counter.frame_count == len(found)


@pytest.mark.parametrize("name", ["frontier", "seed_456", "seed_644", "seed_1232_flow"])
def test_the_stream_is_bfloat16_and_the_estimate_counts_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shrunk(name, "model.document_mask=false")
    estimated = activation_bytes(recipe, mixed=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: Flash.apply(q, k, v))
    network, kept = on_cuda(recipe), {}
    formats: set[torch.dtype] = set()
    for layer in network.layers:
        layer.register_forward_hook(lambda _m, _i, out: formats.update(x.dtype for x in out if x is not None))
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        # The estimate counts the loss' products apart.
        if tensor.shape[1:] != (recipe.model.vocab_size,):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(tokens(), tokens()).mean()
    assert formats == {torch.bfloat16}
    size = sum(kept[each].untyped_storage().nbytes() for each in kept.keys() - weights)
    assert estimated == pytest.approx(size, rel=0.12)


if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:], __file__]))
