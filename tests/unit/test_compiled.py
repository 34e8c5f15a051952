"""The model with its loss is one graph for ``torch.compile``, made once.

The backend only counts the graphs that it is given and runs them as they are, so this holds for the capture
of the graph, which is where the model's code matters; kernels are made from it on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from pgolf.model import attend, loss
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.device import compiled
from tests.unit.test_model import randomised

SMALL = ["model.width=64", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=96", "ttt.frozen_blocks=0"]
RECIPES = {
    "seed_456": [*SMALL, "model.layers=2", "model.unique_layers=1", "model.xsa_last=1"],
    "seed_644": [
        *SMALL,
        *(
            "model.layers=2",
            "model.xsa_last=1",
            "model.value_embedding.layers=[1]",
            "model.document_mask=true",
        ),
    ],
    "seed_1232_flow": [*SMALL, "model.layers=2", "model.xsa_last=2"],
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def counting(network: GPT) -> tuple[Callable[..., Tensor], list[GraphModule]]:
    """The network compiled in one piece or not at all, and the graphs that this took so far."""
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    return torch.compile(network, backend=backend, fullgraph=True, dynamic=False), graphs


def step(forward: Callable[..., Tensor], network: GPT, seed: int) -> Tensor:
    """One training step on other tokens; returns the loss."""
    batch = torch.randint(network.config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(seed))
    batch[0, 9] = 1  # BOS
    value = forward(batch[:, :-1], batch[:, 1:]).mean()
    value.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
            parameter.grad = None
    return value.detach()


@pytest.mark.parametrize("name", RECIPES)
def test_steps_share_one_graph_and_follow_the_model_as_written(name: str) -> None:
    network = randomised(load_recipe(name, RECIPES[name]).model).train()
    other = network.clone()
    forward, graphs = counting(network)
    for seed in range(3):
        assert torch.allclose(step(forward, network, seed), step(other, other, seed), atol=1e-5)
    assert len(graphs) == 1
    # Evaluation in between goes past the compiled code, and leaves it valid.
    with torch.inference_mode():
        network.eval().hidden(torch.zeros(1, 7, dtype=torch.long))
    network.train()
    step(forward, network, 3)
    assert len(graphs) == 1


def test_every_number_of_passes_through_a_loop_takes_one_graph() -> None:
    settings = ["model.loop.last=1", "model.loop.passes=3", "model.loop.pass_vectors=true", "model.layers=3"]
    model = load_recipe("seed_456", [*RECIPES["seed_456"], *settings, "model.unique_layers=0"]).model
    network = randomised(model).train()
    other = network.clone()
    forward, graphs = counting(network)
    for seed, passes in enumerate((1, 1, 3, 3, 1, 3)):
        with network.passing(passes), other.passing(passes):
            assert torch.allclose(step(forward, network, seed), step(other, other, seed), atol=1e-5)
    assert len(graphs) == 2


def test_lanes_are_part_of_the_graph() -> None:
    for mode in ("one", "two"):
        lanes = ["model.layers=3", "model.unique_layers=0", f"model.lanes.mode={mode}", "model.lanes.start=1"]
        network = randomised(load_recipe("seed_456", [*RECIPES["seed_456"], *lanes]).model).train()
        other = network.clone()
        forward, graphs = counting(network)
        for seed in range(2):
            assert torch.allclose(step(forward, network, seed), step(other, other, seed), atol=1e-5)
        assert len(graphs) == 1


def test_fake_quantization_takes_one_more_graph_for_all_its_steps() -> None:
    network = randomised(load_recipe("tiny", ["model.layers=1", "model.xsa_last=1"]).model).train()
    forward, graphs = counting(network)
    for seed in range(2):
        step(forward, network, seed)
    switch = network.fake_quant
    switch.active = switch.soft_round = True
    for seed, alpha in enumerate((1.0, 4.0, 16.0)):
        switch.alpha.fill_(alpha)
        step(forward, network, seed)
    assert len(graphs) == 2
    switch.active = switch.soft_round = False
    step(forward, network, 0)
    assert len(graphs) == 2


def test_each_sequence_length_takes_one_graph_however_many_there_are() -> None:
    network = randomised(load_recipe("tiny", ["model.layers=1", "model.xsa_last=1"]).model).train()
    with torch._dynamo.config.patch(recompile_limit=2):
        compiled(network, torch.device("cuda"), True)  # Lifts the limit; nothing is compiled yet.
        forward, graphs = counting(network)
        for _ in range(2):
            for length in range(4, 8):
                tokens = torch.zeros(1, length, dtype=torch.long)
                forward(tokens, tokens)
    assert len(graphs) == 4


@pytest.mark.parametrize("learned", ["true", "false"])
def test_the_chunked_loss_is_part_of_the_graph(learned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "loss_form", lambda *_: "chunked")
    monkeypatch.setattr(loss, "_CHUNK", 4 * 320 * 16)
    settings = ["model.layers=1", "model.xsa_last=1", f"model.asymmetric_softcap={learned}"]
    network = randomised(load_recipe("tiny", settings).model).train()
    other = network.clone()
    forward, graphs = counting(network)
    for seed in range(2):
        assert torch.allclose(step(forward, network, seed), step(other, other, seed), atol=1e-5)
    assert len(graphs) == 1


def test_flex_attention_and_its_mask_are_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised(load_recipe("tiny", ["model.document_mask=true"]).model)
    batch = torch.randint(320, (2, 32), generator=torch.Generator().manual_seed(0))
    batch[:, (5, 20)] = 1
    expected = network(batch)
    monkeypatch.setattr(attend, "attention_backend", lambda *_: "flex")
    forward, graphs = counting(network)
    with torch.no_grad():  # On the CPU it has no backward pass.
        for _ in range(2):
            assert torch.allclose(forward(batch), expected, atol=1e-4)
    assert len(graphs) == 1
