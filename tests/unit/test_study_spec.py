"""Study files: which cells they ask for, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.study.spec import load_study, study_titles

HEAD = 'title = "t"\nrecipe = "tiny"\nseeds = [1, 2]\n'


def written(folder: Path, text: str, head: str = HEAD) -> str:
    path = folder / "study.toml"
    path.write_text(head + text)
    return str(path)


def problem(folder: Path, text: str, head: str = HEAD) -> str:
    with pytest.raises(PgolfError) as error:
        load_study(written(folder, text, head))
    return str(error.value)


@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
@pytest.mark.parametrize("name", ["ablation", "flow", "frontier", "steps", "trajectory", "ttt"])
def test_shipped_studies_are_valid(name: str, small: bool) -> None:
    study = load_study(name, small)
    assert small or study_titles()[name] == study.file.title
    assert len(study.cells) >= 5
    if small:
        assert all(cell.recipe.data.corpus == "python" for cell in study.cells), "needs no data"
        assert all(cell.recipe.train.steps <= (1500 if name == "frontier" else 300) for cell in study.cells)


def test_every_combination_for_every_cell_and_seed(tmp_path: Path) -> None:
    text = "[base]\ntrain.validate_every = 0\n[[cells]]\n[[cells]]\nmodel.smear = false\n"
    text += '[grid]\noptim.matrix_lr = [0.01, 0.02]\n"compress.level" = [[3], [4, 5]]\n'
    cells = load_study(written(tmp_path, text)).cells
    assert len(cells) == 2 * 2 * 2 * 2
    first, last = cells[0], cells[-1]
    assert dict(first.changes) == {"optim.matrix_lr": 0.01, "compress.level": [3]} and first.seed == 1
    assert dict(last.changes) == {"model.smear": False, "optim.matrix_lr": 0.02, "compress.level": [4, 5]}
    settings = ["train.validate_every=0", "model.smear=false", "optim.matrix_lr=0.02", "compress.level=[4,5]"]
    assert last.recipe == load_recipe("tiny", [*settings, "train.seed=2"])
    assert len({cell.name for cell in cells}) == 16


def test_names_do_not_depend_on_the_other_cells(tmp_path: Path) -> None:
    few = load_study(written(tmp_path, "[grid]\ntrain.steps = [60, 80]\n")).cells
    more = load_study(written(tmp_path, "[grid]\ntrain.steps = [50, 60, 70, 80]\n")).cells
    assert {cell.name for cell in few} < {cell.name for cell in more}
    assert few[0].name == "train.steps-60_seed-1"


def test_a_cell_may_start_from_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "tiny"\n[train]\nsteps = 30\n')
    text = '[base]\nmodel.smear = false\n[[cells]]\n[[cells]]\nrecipe = "own.toml"\nmodel.layers = 3\n'
    cells = load_study(written(tmp_path, text)).cells
    assert [cell.recipe.train.steps for cell in cells] == [100, 100, 30, 30]
    assert [cell.recipe.model.layers for cell in cells] == [2, 2, 3, 3]
    assert not any(cell.recipe.model.smear for cell in cells)
    assert (cells[2].label, cells[2].name) == ("own, model.layers=3", "own_model.layers-3_seed-1")
    assert "unknown" in problem(tmp_path, '[[cells]]\nrecipe = "tinny"\n')
    assert "unknown key recipe" in problem(tmp_path, '[base]\nrecipe = "tiny"\n')


def test_moments_of_a_run_are_cells_and_its_end_always_is(tmp_path: Path) -> None:
    cells = load_study(written(tmp_path, "at_steps = [60, 90]\n")).cells
    assert [(cell.changes["step"], cell.seed, cell.step) for cell in cells] == [
        *((60, 1, 60), (60, 2, 60), (90, 1, 90), (90, 2, 90), (100, 1, None), (100, 2, None))
    ]
    assert len({cell.recipe for cell in cells}) == 2
    assert "not between 1 and train.steps 100" in problem(tmp_path, "at_steps = [0, 101]\n")
    assert "wallclock" in problem(tmp_path, "at_steps = [5]\n[base]\ntrain.wallclock_seconds = 5\n")


def test_small_replaces_keys(tmp_path: Path) -> None:
    text = "[grid]\ntrain.steps = [10, 20]\n[small]\nseeds = [5]\ngrid = { train.steps = [7] }\n"
    [cell] = load_study(written(tmp_path, text), small=True).cells
    assert (cell.recipe.train.steps, cell.seed) == (7, 5)
    with pytest.raises(PgolfError, match="no \\[small\\] table"):
        load_study(written(tmp_path, ""), small=True)


def test_a_written_study_is_the_same_study(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "tiny"\n[train]\nsteps = 30\n')
    head = HEAD.replace('"tiny"', '"own.toml"')
    study = load_study(written(tmp_path, "[[cells]]\n[[cells]]\nmodel.smear = false\n", head))
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copy.toml"
    copy.write_text(study.to_toml())
    assert load_study(str(copy)) == study


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = "[base]\nmodel.layer = 3\ntrain.seed = 4\n[[cells]]\nmodel.smear = false\ntrian.steps = 5\n"
    found = problem(
        tmp_path, f"{text}[grid]\nmodel.smear = [true]\noptim.matrix_lr = 0.1\n", HEAD.replace("2]", "1]")
    )
    for part in (
        "[base] unknown key model.layer (did you mean model.layers?)",
        "[base] train.seed: seeds are listed under seeds",
        "[[cells]] unknown key trian.steps (did you mean train.steps?)",
        "[grid] optim.matrix_lr: give a list of values",
        "model.smear is in [[cells]] and in [grid]",
        "seeds names 1 twice",
    ):
        assert part in found
    found = problem(tmp_path, "[grid]\nmodel.heads = [2, 3]\ntrain.steps = [-1, 5]\n")
    assert "cell model.heads=3, train.steps=5" in found and "is not a multiple of model.heads 3" in found
    assert "train.steps: input should be greater than or equal to 0" in found and "and 1 more" in found


def test_mistakes_say_where_and_what_to_do(tmp_path: Path) -> None:
    assert "seeds is missing" in problem(tmp_path, "", 'title = "t"\nrecipe = "tiny"\n')
    assert "seeds is empty" in problem(tmp_path, "", HEAD.replace("[1, 2]", "[]"))
    assert "did you mean grid?" in problem(tmp_path, "[gird]\ntrain.steps = [1]\n")
    assert "[base], [grid] or [[cells]]" in problem(tmp_path, "[optim]\nmatrix_lr = 0.1\n")
    assert "'slidng'" in problem(tmp_path, 'scores = ["slidng"]\n')
    assert "not valid TOML" in problem(tmp_path, "grid = {")
    assert "seeds is missing" in problem(tmp_path, "", '\ufefftitle = "t"\nrecipe = "tiny"\n')
    assert "are the same run" in problem(tmp_path, "[[cells]]\n[[cells]]\nmodel.layers = 2\n")
    assert "is listed twice" in problem(tmp_path, "[[cells]]\n[[cells]]\n")
    with pytest.raises(PgolfError, match="did you mean steps"):
        load_study("step")
    with pytest.raises(PgolfError, match="no such file"):
        load_study(str(tmp_path / "none.toml"))
    with pytest.raises(PgolfError, match="unknown"):
        load_study(written(tmp_path, "", HEAD.replace("tiny", "tinny")))
