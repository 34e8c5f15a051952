"""What runs of a study have in common, and in which order they start because of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.study.sharing import Progress, Shares, Start, branch_step, pack_key, train_key, trunk_key
from pgolf.study.spec import Planned


def tiny(*settings: str) -> Recipe:
    return load_recipe("tiny", settings)


def cells(*settings: Sequence[str]) -> list[Planned]:
    return [Planned(f"{number}", {}, 1, tiny(*changes)) for number, changes in enumerate(settings)]


def names(starts: Sequence[Start]) -> list[str]:
    return [start.cell.name for start in starts]


@pytest.mark.parametrize(
    "settings",
    [
        ("train.steps=200",),
        ("train.warmdown_steps=10",),
        ("train.warmdown_shape=cosine", "train.lr_floor=0.1"),
        ("train.warmdown_fraction=0.4", "train.warmdown_steps=0"),
        ("qat.enabled=true", "qat.threshold=1.0"),
        ("compress.cap=90000", "ttt.epochs=5", "evaluate.stride=8"),
    ],
)
def test_what_begins_with_the_warmdown_shares_the_trunk(settings: tuple[str, ...]) -> None:
    assert trunk_key(tiny(*settings)) == trunk_key(tiny())


def test_swa_shares_the_trunk_of_the_last_weights_and_ema_that_of_its_own_decay() -> None:
    plain, swa = tiny("average.kind=none"), tiny("average.kind=swa", "average.start_scale=1.0")
    assert trunk_key(plain) == trunk_key(swa) != trunk_key(tiny())
    assert trunk_key(tiny("average.kind=swa_of_ema")) == trunk_key(tiny())
    assert trunk_key(tiny("average.decay=0.95")) != trunk_key(tiny())
    window = ("average.window=0.1", "average.decay=0")
    assert trunk_key(tiny(*window)) != trunk_key(tiny(*window, "train.steps=200"))


@pytest.mark.parametrize(
    "setting",
    [
        *(
            "optim.matrix_lr=0.03",
            "optim.muon_momentum_warmup_steps=7",
            "train.seed=5",
            "train.batch_tokens=1024",
        ),
        *(
            "model.smear=false",
            "train.micro_batches=2",
            "train.validate_every=7",
            "data.validation_fraction=0.1",
        ),
    ],
)
def test_what_changes_training_from_the_start_shares_nothing(setting: str) -> None:
    assert trunk_key(tiny(setting)) != trunk_key(tiny()) and train_key(tiny(setting)) != train_key(tiny())


def test_a_wall_clock_limit_shares_no_trunk() -> None:
    assert trunk_key(tiny("train.wallclock_seconds=60")) is None


def test_where_a_loop_begins_depends_on_all_steps() -> None:
    loop = ("model.loop.passes=2", "model.loop.start_fraction=0.5")
    assert trunk_key(tiny(*loop)) != trunk_key(tiny(*loop, "train.steps=99"))
    assert trunk_key(tiny(loop[0])) == trunk_key(tiny(loop[0], "train.steps=99"))


@pytest.mark.parametrize(
    "setting", ["train.length_schedule=[[32, 0.5], [64, 1.0]]", "optim.muon_weight_decay_taper=0.5"]
)
def test_what_follows_the_part_of_training_that_is_done_shares_only_with_as_many_steps(setting: str) -> None:
    assert trunk_key(tiny(setting)) == trunk_key(tiny(setting, "train.warmdown_steps=10"))
    assert trunk_key(tiny(setting)) != trunk_key(tiny(setting, "train.steps=200"))


def test_the_trunk_ends_where_the_warmdown_begins() -> None:
    assert branch_step(tiny()) == 50
    assert branch_step(tiny("train.warmdown_steps=0")) == 100
    assert branch_step(tiny("train.warmdown_steps=0", "train.warmdown_fraction=0.85")) == 15
    assert branch_step(tiny("train.warmdown_steps=500")) == 0


def test_stages_depend_on_their_sections_only() -> None:
    base = tiny()
    assert train_key(tiny("compress.cap=90000", "ttt.lr=0.1", "evaluate.stride=8")) == train_key(base)
    assert pack_key(tiny("compress.cap=90000")) != pack_key(base)
    assert pack_key(tiny("ttt.lr=0.1")) == pack_key(base)
    assert train_key(tiny("evaluate.batch=3")) != train_key(base), "it validates in other batches"
    export = ("qat.enabled=true", "qat.grid=export")
    assert train_key(tiny(*export, "compress.cap=90000")) != train_key(tiny(*export)), "it trains on the grid"


def test_the_longest_goes_first_and_keeps_checkpoints_for_the_others() -> None:
    planned = cells(["train.steps=60"], ["train.steps=100"], ["train.steps=80"], ["optim.matrix_lr=0.1"])
    shares = Shares(planned)
    first, second = shares.rounds(planned, Progress())
    assert [(start.cell.name, start.source, start.keep) for start in first] == [
        ("1", None, (10, 30)),
        ("3", None, ()),
    ]
    assert [(start.cell.name, start.source and start.source.step) for start in second] == [
        ("0", 10),
        ("2", 30),
    ]
    assert [start.trains for start in second] == [50, 50]


def test_if_the_first_fails_the_next_takes_its_place() -> None:
    planned = cells(["train.steps=60"], ["train.steps=100"], ["train.steps=80"])
    starts, _ = Shares(planned).next_round([planned[0], planned[2]], Progress(begun={"1"}))
    assert [(start.cell.name, start.source, start.keep) for start in starts] == [("2", None, (10,))]
    kept = Progress(begun={"1"}, snapshots={"1": {10, 30}})
    starts, _ = Shares(planned).next_round([planned[0], planned[2]], kept)
    assert [start.source and start.source.step for start in starts] == [10, 30]


def test_a_longer_cell_that_came_later_begins_with_what_there_is() -> None:
    planned = cells(["train.steps=60"], ["train.steps=100"])
    progress = Progress(begun={"0"}, trained={"0"}, packed={"0"}, snapshots={"0": {10, 55}})
    [start], _ = Shares(planned).next_round([planned[1]], progress)
    assert start.source is not None and start.source.step == 10, "at step 55 the other was in its warmdown"


def test_training_and_packing_are_shared_by_stage() -> None:
    planned = cells([], ["ttt.epochs=3"], ["compress.cap=90000"], ["compress.cap=90000", "ttt.epochs=3"])
    first, second, third = Shares(planned).rounds(planned, Progress())
    assert [names(first), names(second), names(third)] == [["0"], ["1", "2"], ["3"]]
    assert third[0].source is not None and third[0].source.cell.name == "2", "it packed alike"
    assert all(start.trains == 0 for start in (*second, *third))


def test_moments_wait_for_the_run_they_look_at_and_keep_it_from_skipping_them() -> None:
    recipe, long = tiny(), tiny("train.steps=200", "train.warmdown_steps=20")
    moment, end = Planned("m", {}, 1, recipe, 30), Planned("e", {}, 1, recipe)
    other = Planned("o", {}, 1, long)
    shares = Shares([moment, end, other])
    first, second = shares.rounds([moment, end], Progress())
    assert (names(first), first[0].keep, names(second)) == (["e"], (30,), ["m"])
    kept = Progress(begun={"o"}, snapshots={"o": {20, 50}})
    starts, _ = shares.next_round([moment, end], kept)
    assert starts[0].source is not None and starts[0].source.step == 20, "step 30 is still to come"
    _, hopeless = shares.next_round([moment], Progress(begun={"e"}, trained={"e"}))
    assert hopeless == [moment]
