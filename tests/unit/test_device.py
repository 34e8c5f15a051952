"""What is set up once for a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.model.gpt import build_model
from pgolf.recipe.recipe import load_recipe
from pgolf.runtime.device import compiled, keep_freed_memory


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[int, int] = {}
    library = SimpleNamespace(mallopt=lambda parameter, value: settings.update({parameter: value}) or 1)
    monkeypatch.setattr("pgolf.runtime.device.ctypes.CDLL", lambda name: library)
    assert keep_freed_memory()
    trim_threshold, mmap_threshold = -1, -3
    assert settings == {mmap_threshold: 1 << 25, trim_threshold: 1 << 30}
    # One setting without the other must not stay: then every tensor would be mapped anew.
    settings.clear()
    library.mallopt = lambda parameter, value: settings.update({parameter: value}) or 0
    assert not keep_freed_memory()
    assert list(settings) == [mmap_threshold]


def test_other_systems_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.runtime.device.sys.platform", "darwin")
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ("setting", "mode"), [("true", None), ("max-autotune-no-cudagraphs", "max-autotune-no-cudagraphs")]
)
def test_the_recipe_says_how_to_compile(
    monkeypatch: pytest.MonkeyPatch, setting: str, mode: str | None
) -> None:
    recipe, asked = load_recipe("tiny", [f"train.compile={setting}"]), []
    network = build_model(recipe.model, 0)
    monkeypatch.setattr(
        "pgolf.runtime.device.torch.compile", lambda model, **options: asked.append(options) or model
    )
    assert compiled(network, torch.device("cpu"), recipe.train.compile) is network
    assert asked == []
    compiled(network, torch.device("cuda"), recipe.train.compile)
    compiled(network, torch.device("cuda"), False)
    assert asked == [{"dynamic": False, "mode": mode}]


def test_no_other_way_to_compile() -> None:
    with pytest.raises(PgolfError, match=r"train\.compile"):
        load_recipe("tiny", ["train.compile=fast"])
