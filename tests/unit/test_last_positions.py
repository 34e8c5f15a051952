"""Hidden states of the last positions alone equal those of the whole pass, for every option of the model."""

from __future__ import annotations

import pytest
import torch

from pgolf.evaluate.score import window_logits
from pgolf.evaluate.windows import Window, sliding_windows, windows_between
from tests.unit.stand_ins import LENGTH, random_tokens, small_model, small_recipe, window_losses
from tests.unit.test_cache import LENGTH as CACHE_LENGTH
from tests.unit.test_cache import VARIANTS
from tests.unit.test_model import randomised, section, tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_positions_alone_are_those_of_the_whole_pass(variant: str) -> None:
    network = randomised(section(*VARIANTS[variant])).eval()
    x = tokens(length=CACHE_LENGTH)
    expected = network.hidden(x)
    for last in (1, 2, CACHE_LENGTH - 1, CACHE_LENGTH):
        found = network.hidden(x, None, last)
        assert found.shape == expected[:, -last:].shape
        assert torch.allclose(found, expected[:, -last:], atol=1e-5, rtol=1e-5), last
    longer = network.hidden(x, 3 * CACHE_LENGTH)
    assert torch.allclose(network.hidden(x, 3 * CACHE_LENGTH, 4), longer[:, -4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["everything", "one group", "one layer"])
def test_gradients_through_the_last_positions_are_those_of_the_whole_pass(variant: str) -> None:
    network = randomised(section(*VARIANTS[variant]))
    x = tokens(length=CACHE_LENGTH)
    parameters = list(network.parameters())
    whole = torch.autograd.grad(network.hidden(x)[:, -3:].square().sum(), parameters, allow_unused=True)
    alone = torch.autograd.grad(network.hidden(x, None, 3).square().sum(), parameters, allow_unused=True)
    for (name, _), one, other in zip(network.named_parameters(), whole, alone, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            assert torch.allclose(one, other, atol=1e-4, rtol=1e-4), name


def test_the_last_layer_computes_the_rest_at_the_last_positions_alone() -> None:
    network = randomised(section("model.layers=3")).eval()
    seen: dict[str, int] = {}
    for index, core in enumerate(network.cores):
        for name in ("attention.query", "attention.key", "attention.output", "mlp.up"):
            module = core.get_submodule(name)
            module.register_forward_hook(
                lambda _, inputs, __, key=f"{index}.{name}": seen.update({key: inputs[0].size(1)})
            )
    network.hidden(tokens(length=CACHE_LENGTH), None, 2)
    restricted = {"2.attention.query", "2.attention.output", "2.mlp.up"}
    assert seen == {key: 2 if key in restricted else CACHE_LENGTH for key in seen}
    assert len(seen) == 12


@pytest.mark.parametrize("stride", [1, 3, LENGTH - 1, LENGTH])
@pytest.mark.parametrize("cut", [0, 2])
def test_windows_that_score_unequally_many_targets_share_a_pass(stride: int, cut: int) -> None:
    network = small_model(small_recipe()).eval()
    stream = random_tokens(60)
    windows = sliding_windows(3 * LENGTH, LENGTH, stride)[:6]
    windows = [window for window in windows if window.end - window.start == LENGTH]
    if cut:
        # A request may begin inside of what a window scores.
        windows = [*windows_between(cut, LENGTH, LENGTH, stride), *windows[1:]]
    with torch.inference_mode():
        rows = []
        for start, end, first in windows:
            inputs = torch.from_numpy(stream[None, start:end].astype("int64"))
            rows.append(torch.log_softmax(network(inputs)[0], dim=-1)[first - start :])
    targets = torch.cat([torch.from_numpy(stream[w.first + 1 : w.end + 1].astype("int64")) for w in windows])
    expected = torch.cat(rows)
    rows_of = window_logits(network, stream, windows).log_softmax(-1)
    assert torch.allclose(rows_of, expected, atol=1e-5, rtol=1e-5)
    losses = -expected.gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(window_losses(network, stream, windows), losses, atol=1e-5, rtol=1e-5)


def test_distributions_of_a_window_cut_short_rotate_as_in_a_whole_one() -> None:
    network = randomised(section(*VARIANTS["everything"])).eval()
    stream = random_tokens(30) % network.config.vocab_size
    window = Window(2, 10, 7)
    inputs = torch.from_numpy(stream[None, 2:10].astype("int64"))
    with torch.inference_mode():
        expected = torch.log_softmax(network.project(network.hidden(inputs, 24))[0, 5:], dim=-1)
    rows = window_logits(network, stream, [window], 24).log_softmax(-1)
    assert torch.allclose(rows, expected, atol=1e-5, rtol=1e-5)
