"""The job: `pgolf recipes`, `train`, `pack`, `eval` and `run`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from pgolf.cli.app import (
    AsJson,
    DataFolder,
    DeviceName,
    Overrides,
    TextFiles,
    TokenizerFile,
    TrustCode,
    ValTextFiles,
    check_data_paths,
    verb,
)
from pgolf.cli.tables import (
    lines,
    print_columns,
    print_comparison,
    print_json,
    print_result,
    print_table,
    say,
)
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS, SCORES
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import ARTIFACT, AUDIT
from pgolf.runtime.terminal import plain


@verb(
    "recipes",
    "pgolf recipes",
    "pgolf recipes seed_1232 --set model.layers=9",
    "pgolf recipes frontier --explain",
)
def recipes_verb(
    name: Annotated[str | None, Argument(help="Print this one, resolved.")] = None,
    overrides: Overrides = None,
    explain: Annotated[
        bool, Option("--explain", help="Say where each choice comes from, and what it is worth.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or print one with its parameters, bytes, FLOPs and memory."""
    from pgolf.optim.schedule import remark
    from pgolf.recipe.files import explanations, recipe_names
    from pgolf.recipe.recipe import load_recipe
    from pgolf.runs.estimate import estimate

    if name is None:
        known = {entry: load_recipe(entry).description for entry in recipe_names()}
        print_result(known, as_json, list(known.items()), title="recipes")
        return
    if explain:
        remarks = explanations(name)
        if not remarks:
            raise PgolfError(f"recipe {name}: no key has a remark; write key = value  # remark")
        rows = [(f"{key} = {value}", text) for key, (value, text) in remarks.items()]
        print_result({key: text for key, (_, text) in remarks.items()}, as_json, rows, title=name)
        return
    recipe = load_recipe(name, overrides or [])
    figures = estimate(recipe)
    if as_json:
        print_json({"recipe": recipe.model_dump(mode="json"), "estimate": asdict(figures)})
        return
    # A file or a pipe gets it as it is, for another command to read.
    print(plain(recipe.to_toml(), keep="\n") if sys.stdout.isatty() else recipe.to_toml())
    print_table(figures.rows(), title=f"{recipe.name}: estimates before training")
    if said := remark(recipe.train):
        say(f"note: {said}")


_TRAINING = {
    "training": "{steps:,} steps in {seconds:,.1f} s",
    "speed": "{tokens_per_second:,.0f} tokens per second, {tflops_per_second:.3g} TFLOP/s",
    "utilisation": "{mfu:.3f} of the device's peak (MFU)",
}


RecipeName = Annotated[
    str | None, Argument(metavar="[NAME]", help="Recipe: a shipped name or a .toml file.", show_default=False)
]
RecipeOption = Annotated[str | None, Option("--recipe", help="Another way to write NAME.")]
RunFolder = Annotated[Path | None, Option("--out", "-o", help="Run folder; default: runs/NAME.")]
InitialWeights = Annotated[
    Path | None, Option("--init", help="Start from these weights: a file, or the folder of a finished run.")
]


def _recipe_named(name: str | None, option: str | None) -> str:
    """The recipe of a command; a PgolfError if it is named twice, or not at all."""
    if name and option:
        raise PgolfError(f"recipe {name}: --recipe {option} names another one; leave one of them out")
    if not (named := name or option):
        raise PgolfError("name a recipe, such as quickstart; `pgolf recipes` lists them")
    return named


@verb(
    "train",
    "pgolf train quickstart",
    "pgolf train seed_1232 --set train.steps=2000 --data data/fineweb-sp1024 --out runs/short",
    "pgolf train --resume --out runs/short",
    "pgolf train quickstart --out runs/longer --init runs/quickstart",
    "pgolf train quickstart --out runs/look --set train.steps=20 --profile",
)
def train_verb(
    name: RecipeName = None,
    option: RecipeOption = None,
    out: RunFolder = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    text: TextFiles = None,
    val_text: ValTextFiles = None,
    tokenizer: TokenizerFile = None,
    init: InitialWeights = None,
    resume: Annotated[bool, Option("--resume", help="Continue the run in the folder.")] = False,
    profile: Annotated[
        bool,
        Option("--profile", help="Profile a few steps: a trace and a table in the run's profile folder."),
    ] = False,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Train a model; writes metrics.jsonl, checkpoints and, at the end, model.safetensors."""
    from pgolf.cli.team import joined
    from pgolf.data.corpus import data_given
    from pgolf.recipe.recipe import load_recipe
    from pgolf.runs.pipeline import train_job

    recipe = _recipe_named(name, option) if name or option or out is None else None
    given = data_given(data, text, val_text, tokenizer)
    with joined(device) as (chosen, team):
        out = out or Path("runs") / load_recipe(str(recipe), overrides or []).name
        job = recipe, overrides or [], given, tokenizer, out, chosen
        result = train_job(*job, initial=init, resume=resume, profile=profile, team=team)
        if not team.is_first:
            return
        if profile and not as_json:
            _print_profile(result.pop("profile"))
        print_result(result, as_json, _training_rows(result), title=str(out))


def _print_profile(found: dict[str, Any]) -> None:
    """What ``train.profile`` found, as JSON values, as a table."""
    from pgolf.train.profile import Operation, as_table

    if found["operations"]:
        header, rows = as_table([Operation(**operation) for operation in found["operations"]])
        title = f"slowest operations of a step; trace in {found['trace']}"
        print_columns(header, rows, title, drop=("calls per step", "CPU share", "GPU share", "CPU ms"))


def _training_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = lines(result, _TRAINING)
    scores = (("weights", "val_bpb", "averaged weights"), ("raw_weights", "raw_val_bpb", "last weights"))
    for file, bpb, what in scores:
        rows.append((Path(result[file]).name, f"{result[bpb]:.4f} bits per byte   {what}, standard windows"))
    return rows


@verb(
    "pack",
    "pgolf pack runs/first",
    "pgolf pack runs/first --out small.pgolf --cap 900000 --effort 80",
    "pgolf pack runs/first --out alone.pgolf --with-tokenizer",
    "pgolf pack runs/first --out model.pgolf --compare",
)
def pack_verb(
    weights: Annotated[Path, Argument(help="Run folder or weights file.")],
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="Artifact to write; default: artifact.pgolf in the run folder."),
    ] = None,
    cap: Annotated[int | None, Option(min=1, help="Largest total in bytes; default: compress.cap.")] = None,
    effort: Annotated[
        int | None,
        Option(min=0, help="Tune by so many steps after each module is rounded; default: compress.effort."),
    ] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    with_tokenizer: Annotated[
        bool,
        Option("--with-tokenizer", help="Put the tokenizer into the artifact too; it does not count."),
    ] = False,
    count_tokenizer: Annotated[
        bool, Option("--count-tokenizer", help="The same, and it counts towards the cap.")
    ] = False,
    compare: Annotated[
        bool, Option("--compare", help="Also code the same tensors with every coder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize and code the weights, read them back to verify, and count the bytes.

    With --cap, and by default in new recipes, precision goes where the loss minds it most and the artifact
    lands just under the cap; a table says what each tensor got. --set compress.scheme=rowwise keeps to fixed
    widths.
    """
    from pgolf.compress.compare import compare_artifact
    from pgolf.compress.report import SPLIT_COLUMNS, TENSOR_COLUMNS
    from pgolf.runs.pipeline import carry_of, pack_job
    from pgolf.runtime.progress import counting

    check_data_paths(data, tokenizer)
    carry = carry_of(with_tokenizer, count_tokenizer)
    settings = [*(overrides or []), *([] if effort is None else [f"compress.effort={effort}"])]
    report = pack_job(weights, out, cap, settings, data, tokenizer, carry)
    out = out or weights / ARTIFACT
    result = report.to_json()
    if compare:
        with counting("comparing coders") as progress:
            result["coders"] = [asdict(row) for row in compare_artifact(out, progress)]
    if not as_json and report.scheme == "budget":
        title = "what was chosen; rise of the loss in nats per token"
        print_columns(TENSOR_COLUMNS, report.tensor_rows(), title, drop=("predicted", "measured", "bytes"))
    if not as_json and (splits := report.split_rows()):
        title = "bytes for text and weights; bits per byte of held-out training text"
        print_columns(SPLIT_COLUMNS, splits, title)
    print_result(result, as_json, report.rows(), title=str(out))
    if compare and not as_json:
        print_comparison(result["coders"], title="the same codes, steps and kept tensors in every coder")


_SCORE = {
    "bits per byte": "{val_bpb:.4f}",
    "loss": "{val_loss:.4f} nats per token",
    "scored": "{targets:,} tokens, {bytes:,} bytes of text",
    "time": "{seconds:.1f} s",
    "warning": "{warning}",
    "ledger": "{ledger}",
    "kept": "{kept}",
}


@verb(
    "eval",
    "pgolf eval runs/first",
    "pgolf eval runs/first --mode sliding --stride 32 --limit-targets 100000 --json",
    "pgolf eval model.pgolf --data data/books --mode ttt --ledger ttt.jsonl",
    "pgolf eval models/small --data data/books --stride 512",
    "pgolf eval plain.pt --data data/books --scorer plugin.py:make --isolated --strict",
)
def eval_verb(
    weights: Annotated[
        Path,
        Argument(
            help="Artifact, weights file, run folder (its artifact, before packing its weights), or folder "
            "of a transformers model; with --scorer any file that the plug-in loads."
        ),
    ],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    scorer: Annotated[
        str | None, Option(help="Plug-in: MODULE:FACTORY or FILE.py:FACTORY; default: pgolf's own.")
    ] = None,
    isolated: Annotated[
        bool,
        Option(
            "--isolated",
            help="Goes with --scorer: run the plug-in in a process that is shown no token too early.",
        ),
    ] = False,
    mode: Annotated[
        str | None, Option(help="standard, sliding or ttt; default: ttt where the recipe learns from it.")
    ] = None,
    stride: Annotated[int | None, Option(min=1, help="Targets scored per window.")] = None,
    limit_targets: Annotated[int | None, Option(min=1, help="Score only the first targets.")] = None,
    ledger: Annotated[
        Path | None, Option(help="Write what every range of targets cost (JSON lines).")
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Reveal one target at a time; slow.")] = False,
    trust: TrustCode = False,
    overrides: Overrides = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Score weights in bits per byte on the validation split.

    The data of a run is found by its folder, and a score of all targets with the run's own settings is kept
    there with its ledger, for `pgolf report`.
    """
    from pgolf.audit.evaluation import eval_any
    from pgolf.cli.team import joined

    if isolated != (scorer is not None):
        raise PgolfError(
            "--scorer and --isolated go together: a plug-in is scored in a process of its own only "
            "(`pgolf audit --scorer` tests one)"
        )
    job = weights, data, tokenizer, mode, stride, limit_targets, overrides or []
    with joined(device) as (chosen, team):
        scored = eval_any(*job, chosen, trust, scorer=scorer, ledger=ledger, strict=strict, team=team)
        result = scored.to_json() | ({} if ledger is None else {"ledger": str(ledger)})
        if team.is_first:
            print_result(result, as_json, lines(result, _SCORE), title=f"{weights} ({scored.mode})")


@verb(
    "run",
    "pgolf run quickstart",
    "pgolf run web1m --text train.jsonl.zst --val-text val.jsonl.zst",
    "pgolf run seed_1232 --data data/fineweb-sp1024",
)
def run_verb(
    name: RecipeName = None,
    option: RecipeOption = None,
    out: RunFolder = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    text: TextFiles = None,
    val_text: ValTextFiles = None,
    tokenizer: TokenizerFile = None,
    score: Annotated[
        list[str] | None, Option(help="float, packed, sliding, ttt or memory; repeatable; default: all.")
    ] = None,
    init: InitialWeights = None,
    no_audit: Annotated[
        bool, Option("--no-audit", help="No audit, and no text scored again for the report.")
    ] = False,
    keep_step: Annotated[
        list[int] | None, Option(min=1, help="Keep the checkpoint after this step; repeatable.")
    ] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Do the whole job: data, training, packing, all evaluations, audit, report.

    Continues what was interrupted; what is done is not repeated.
    """
    from pgolf.cli.team import joined
    from pgolf.data.corpus import data_given
    from pgolf.recipe.recipe import load_recipe
    from pgolf.report.job import write_audited_report, write_report
    from pgolf.runs.pipeline import run_all

    name, given = _recipe_named(name, option), data_given(data, text, val_text, tokenizer)
    with joined(device) as (chosen, team):
        recipe = load_recipe(name, overrides or [])
        if "memory" in (score or ()) and not recipe.memory.enabled:
            raise PgolfError(f"--score memory: recipe {recipe.name} has none (memory.enabled)")
        folder = out or Path("runs") / recipe.name
        job = recipe, given, tokenizer, folder, chosen, team
        report = write_report if no_audit else partial(write_audited_report, device=chosen)
        how: dict[str, Any] = {"initial": init, "scores": score or SCORES, "keep": keep_step or ()}
        result = run_all(*job, **how, report=report)
        if team.is_first:
            title = f"{result['recipe']}: bits per byte (BPB) on held-out text"
            print_result(result, as_json, _run_rows(result, folder), title)


def _run_rows(result: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    evaluations, packed = result["evaluations"], result["pack"]
    made = [EVALUATIONS[name] for name in SCORES if name in evaluations]
    times = {
        "training": result.get("train", {}).get("seconds"),
        "packing": packed.get("seconds"),
        "evaluation": sum(evaluation["seconds"] for evaluation in evaluations.values()),
    }
    audit = []
    if (folder / AUDIT).is_file():
        found = read_json(folder / AUDIT)
        times["audit"] = found["seconds"]
        verdict = f"violates {', '.join(found['violated'])}" if found["violated"] else "no violation"
        where = f"{len(found['findings'])} tests, {found['targets']:,} targets"
        audit.append(("audit", f"{verdict}   {where}, {found['subject']}"))
    return [
        *((entry.label, f"{evaluations[entry.name]['val_bpb']:.4f}   {entry.of}") for entry in made),
        ("artifact", f"{packed['total_bytes']:,} of {packed['cap']:,} bytes, code included"),
        *audit,
        ("time", ", ".join(f"{what} {time:.0f} s" for what, time in times.items() if time is not None)),
        ("report", f"{folder / 'report.md'}, {folder / 'report.html'}"),
        ("artifact file", str(folder / ARTIFACT)),
        ("curve", str(folder / "curve.png")),
    ]
