"""Recipes: loading, inheritance, settings, and every kind of mistake reported in one go."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT, parameter_count
from pgolf.recipe.checks import _LARGEST
from pgolf.recipe.files import explanations, recipe_names, set_in_tree
from pgolf.recipe.recipe import Recipe, describe_keys, load_recipe, recipe_from_tree, recipe_keys
from pgolf.runs.costs import check_memory, check_size
from pgolf.runs.estimate import estimate
from pgolf.runs.records import flattened

PARAMETERS = {
    "seed_456": 25_517_137,
    "seed_644": 27_030_107,
    "seed_1232": 27_137_223,
    "seed_1232_flow": 27_235_848,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_of_the_references(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(GPT(load_recipe(name).model)) == count


def test_every_shipped_recipe_loads_and_survives_a_round_trip(tmp_path: Path) -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.toml"
        path.write_text(recipe.to_toml())
        assert load_recipe(str(path)) == recipe
        assert recipe_from_tree(recipe.model_dump(mode="json"), name) == recipe
        assert recipe.name == name
        assert recipe.description


def test_every_key_has_a_description() -> None:
    assert all(describe_keys()[key].endswith((".", "?")) for key in recipe_keys() if "." in key)


def test_settings_change_single_keys() -> None:
    recipe = load_recipe("quickstart", ["train.steps=7", "model.mlp=relu2", "train.warmdown_steps=3"])
    assert (recipe.train.steps, recipe.model.mlp) == (7, "relu2")
    assert recipe.digest() != load_recipe("quickstart").digest()


def test_a_recipe_extends_another_one(tmp_path: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text('extends = "seed_1232"\n[model.bigram]\nwidth = 64\n')
    recipe = load_recipe(str(child))
    assert recipe.model.bigram.width == 64
    assert recipe.model.bigram.buckets == 4096
    grandchild = tmp_path / "grandchild.toml"
    grandchild.write_text('extends = "child.toml"\n[train]\nsteps = 12500\n')
    assert load_recipe(str(grandchild)).model.bigram.width == 64


def test_remarks_stand_behind_the_keys_and_are_those_of_what_it_extends_first(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(
        'name = "a"\n[model]\nlayers = 3  # #1: deep\nwidth = 64\n[model.loop]\npasses = 2  # #2'
    )
    (tmp_path / "second.toml").write_text('extends = "first.toml"\n[model]\nlayers = 4  # #3: -0.1')
    expected = {"model.layers": ("4", "#3: -0.1"), "model.loop.passes": ("2", "#2")}
    assert explanations(str(tmp_path / "second.toml")) == expected
    frontier, recipe = explanations("frontier"), flattened(load_recipe("frontier").model_dump(mode="json"))
    for key, (value, remark) in frontier.items():
        assert tomllib.loads(f"value = {json.dumps(value)}")["value"] == value and key in recipe
        assert re.match(r"#\d{3,4}(: .+)?$", remark), f"{key} names no pull request"


def test_a_recipe_cannot_extend_itself(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    path.write_text('extends = "loop.toml"\n')
    with pytest.raises(PgolfError, match="extends itself"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.widht=3", r"unknown key model\.widht \(did you mean model\.width\?\)"),
        ("modle.width=3", r"unknown key modle.*did you mean"),
        ("evaluate.steps=3", r"unknown key evaluate\.steps"),
        ("model.heads=7", r"model\.width 512 is not a multiple of model\.heads 7"),
        ("model.kv_heads=3", r"not a multiple of model\.kv_heads"),
        ("model.rope_dims=33", r"model\.rope_dims 33 must be even"),
        ("model.unique_layers=12", r"exceeds model\.layers"),
        ("model.xsa_last=12", r"model\.xsa_last 12 exceeds"),
        ("model.value_embedding.layers=[12]", r"outside 0 to 9"),
        ("model.bigram.buckets=1", r"must be 0 \(none\) or at least 2"),
        ("train.batch_tokens=1000", r"not a multiple of train\.micro_batches"),
        ("evaluate.stride=4096", r"exceeds the window"),
        ("ttt.chunk_tokens=100", r"shorter than a window"),
        ("compress.bits.mlp=9", r"it must be 2 to 8, or 16"),
        ("compress.level=[99]", r"zstd has levels 1 to 22"),
        ("train.steps=-1", r"train\.steps: input should be greater than or equal to 0"),
        ("train.steps=many", r"train\.steps: input should be a valid integer"),
        ("train.steps", r"write it as section\.key=value"),
        ("train.steps.more=1", r"single value, not a section"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(setting: str, message: str) -> None:
    with pytest.raises(PgolfError, match=message):
        load_recipe("seed_456", [setting])


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(PgolfError) as caught:
        load_recipe("quickstart", ["model.widht=1", "train.stepz=2", "model.mlp=swish"])
    assert all(word in str(caught.value) for word in ("model.widht", "train.stepz", "model.mlp"))
    with pytest.raises(PgolfError) as caught:
        load_recipe("quickstart", ["model.heads=7", "evaluate.stride=4096"])
    assert all(word in str(caught.value) for word in ("model.heads", "evaluate.stride"))


def test_a_table_by_group_is_checked_like_a_section_and_comes_back() -> None:
    with pytest.raises(PgolfError) as caught:
        load_recipe("tiny", ["compress.clip_std={atention=3, mlp=0}", "optim.adam_weight_decay={vector=1}"])
    said = str(caught.value)
    assert "unknown key compress.clip_std.atention (did you mean compress.clip_std.attention?)" in said
    assert "compress.clip_std.mlp: input should be greater than 0" in said
    assert "unknown key optim.adam_weight_decay.vector" in said
    with pytest.raises(PgolfError, match=r"clip_std: input should be a valid number.*got 'wide'"):
        load_recipe("tiny", ["compress.clip_std=wide"])
    table = load_recipe("tiny", ["compress.clip_std={attention=13.0}"])
    assert recipe_from_tree(tomllib.loads(table.to_toml()), "x") == table
    assert recipe_from_tree(table.model_dump(mode="json", exclude_defaults=True), "x") == table
    assert table.with_overrides(["compress.clip_std.mlp=11.5"]).compress.deviations("mlp") == 11.5


def test_all_problems_of_a_schedule_are_listed_at_once() -> None:
    settings = [
        *("train.warmdown_fraction=0.5", "train.lr_floor=0.3", "qat.enabled=true", "average.window=0.1"),
        *("train.length_schedule=[[48, 0.5], [32, 0.4], [96, 0.9]]", "train.wallclock_seconds=5"),
    ]
    with pytest.raises(PgolfError) as caught:
        load_recipe("tiny", [*settings, "average.kind=swa_of_ema", "average.decay=0.9"])
    for says in (
        "train.warmdown_steps 50 and train.warmdown_fraction 0.5 both say",
        "qat.threshold 0.1 is not above train.lr_floor 0.3",
        "average.start_scale 0.2 is not above train.lr_floor 0.3",
        "average.decay 0.9 and average.window 0.1 both say",
        "average.window is a part of train.steps, and train.wallclock_seconds ends",
        "its longest, 96, must be train.sequence_length, 64",
        "is not a multiple of train.micro_batches * 48 = ",
        "the parts of training [0.5, 0.4, 0.9] must rise",
        "it ends at 0.9 of training; its last part must be 1",
    ):
        assert says in str(caught.value)
    for bad in (f"[[{10**40}, 1.0]]", "[[0, 1.0]]"):
        with pytest.raises(PgolfError, match="a length must be 1 to"):
            load_recipe("tiny", [f"train.length_schedule={bad}"])
    for outside in ("train.lr_floor=1.0", "train.lr_floor=-0.1", "optim.muon_weight_decay_taper_start=1"):
        with pytest.raises(PgolfError, match="input should be"):
            load_recipe("tiny", [outside])
    load_recipe("tiny", ["train.warmdown_fraction=0.5", "train.warmdown_steps=0"])


def test_ill_typed_keys_do_not_hide_what_else_is_wrong() -> None:
    bad = ["train.lr_floor=1.5", "compress.clip_std={atention=1}", "compress.level=[true, 1, 'a']"]
    with pytest.raises(PgolfError) as caught:
        load_recipe("tiny", [*bad, "train.warmdown_fraction=0.5", "train.length_schedule=[[64, 0.5]]"])
    for says in (
        "train.lr_floor: input",
        "clip_std.atention",
        "both say how long",
        "ends at 0.5 of training",
    ):
        assert says in str(caught.value)
    with pytest.raises(PgolfError) as caught:
        load_recipe("tiny", ["train.sequence_length=few", "train.nothing=1"])
    assert "not a multiple" not in str(caught.value), "the default's own problem is none of the user's"


def test_unknown_recipes_name_the_nearest_one() -> None:
    with pytest.raises(PgolfError, match=r"did you mean seed_644\?"):
        load_recipe("seed_664")
    with pytest.raises(PgolfError, match="no such file"):
        load_recipe("missing.toml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (path := tmp_path / "marked.toml").write_text('\ufeffextends = "tiny"\n', encoding="utf-8")
    assert load_recipe(str(path)).model == load_recipe("tiny").model


def test_broken_toml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    with pytest.raises(PgolfError, match="not valid TOML"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PgolfError, match="UTF-8"):
        load_recipe(str(path))


def test_overrides_can_be_limited_to_sections() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.with_overrides(["ttt.epochs=1"], ("evaluate", "ttt")).ttt.epochs == 1
    with pytest.raises(PgolfError, match="only keys of evaluate, ttt"):
        recipe.with_overrides(["model.width=320"], ("evaluate", "ttt"))


def test_defaults_stay_as_they_were() -> None:
    # Artifacts and checkpoints keep what differs from the defaults, so another default would change their
    # meaning.
    pinned = json.loads((Path(__file__).parent / "recipe_defaults.json").read_text())
    defaults = _flat(Recipe(name="x").model_dump(mode="json"))
    changed = {key: (value, defaults.get(key)) for key, value in pinned.items() if defaults.get(key) != value}
    assert not changed, (
        "a key that was there keeps its default; give the new value to the recipes that want it"
    )
    assert not set(defaults) - set(pinned), (
        "add new keys to recipe_defaults.json; their default means what was before"
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_can_be_no_path(name: str) -> None:
    with pytest.raises(PgolfError, match="unknown"):
        load_recipe(name)
    with pytest.raises(PgolfError, match="no such file"):
        load_recipe(f"{name}.toml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"description = '\xff'")
    with pytest.raises(PgolfError, match=r"a\.toml: not UTF-8 text \(byte 15\)"):
        load_recipe(str(tmp_path / "a.toml"))


WHOLE_NUMBERS = [key for key, value in flattened(Recipe().model_dump()).items() if type(value) is int]


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [10**17, 10**40])
def test_nothing_that_is_built_or_counted_can_be_without_end(key: str, value: int) -> None:
    with pytest.raises(PgolfError, match=re.escape(key)):
        load_recipe("tiny", [f"{key}={value}"])


def test_the_largest_recipes_are_estimated_without_being_built() -> None:
    wide = ["model.width=1048576", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=1048576"]
    many = [
        "train.batch_tokens=1073741824",
        "train.sequence_length=1048576",
        "model.bigram.buckets=268435456",
    ]
    recipe = load_recipe("tiny", [*wide, *many, "model.vocab_size=65536", "ttt.chunk_tokens=1048576"])
    assert estimate(recipe).parameters > 10**13
    with pytest.raises(PgolfError, match=r"its model has [\d,]+ parameters, and an artifact holds"):
        check_size(recipe)
    check_size(load_recipe("seed_456"))
    check_memory(load_recipe("seed_456"), torch.device("cpu"))
    with pytest.raises(PgolfError, match=r"recipe tiny: training takes more than [\d.]+ GiB, and cpu has"):
        check_memory(
            load_recipe("tiny", ["train.batch_tokens=1073741824", "model.width=1048576"]), torch.device("cpu")
        )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.layers", -(1 << 20000), "a number of thousands of digits"),
        ("model.value_embedding.layers", [1 << 20000], "value_embedding.layers must be at most"),
        ("compress.level", [1 << 20000], "compress.level must be at most"),
        ("model.softcap", float("inf"), "softcap: input should be a finite number"),
    ],
    ids=["negative", "in a list", "levels", "infinite"],
)
def test_numbers_that_make_no_sense_are_one_line(key: str, value: object, says: str) -> None:
    tree: dict[str, Any] = {}
    set_in_tree(tree, key.split("."), value)
    with pytest.raises(PgolfError, match=says) as caught:
        recipe_from_tree(tree, "x")
    assert "\n" not in str(caught.value)


def test_limits_name_keys() -> None:
    assert set(_LARGEST) <= set(recipe_keys())
