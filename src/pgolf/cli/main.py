"""The command line: parse, call one function, print. No work is done here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli.audit import AUDIT_EXAMPLES, audit_command
from pgolf.cli.bench import bench_app
from pgolf.cli.codec import (
    BENCH_EXAMPLES,
    COMPRESS_EXAMPLES,
    DECOMPRESS_EXAMPLES,
    bench_compressors_command,
    compress_command,
    decompress_command,
)
from pgolf.cli.common import (
    AsJson,
    DataFolder,
    DeviceName,
    Overrides,
    TokenizerFile,
    check_data_paths,
    epilog,
    flat_rows,
    paths_are_mistakes,
    print_comparison,
    print_json,
    print_mistake,
    print_profile,
    print_result,
)
from pgolf.cli.data import data_app
from pgolf.cli.doctor import DOCTOR_EXAMPLES, doctor_command
from pgolf.cli.evaluate import EVAL_EXAMPLES, VERIFY_EXAMPLES, eval_command, verify_command
from pgolf.cli.generate import GENERATE_EXAMPLES, generate_command
from pgolf.cli.help import HELP_EXAMPLES, AllVerbs, help_command
from pgolf.cli.launch import launch_app
from pgolf.cli.report import (
    DIFF_EXAMPLES,
    REPORT_EXAMPLES,
    RUNS_EXAMPLES,
    diff_command,
    report_command,
    runs_command,
)
from pgolf.cli.significance import SIGNIFICANCE_EXAMPLES, significance_command
from pgolf.cli.study import STUDY_EXAMPLES, study_command
from pgolf.cli.submit import SUBMIT_EXAMPLES, submit_command
from pgolf.cli.tables import print_columns, print_table
from pgolf.errors import Interrupted, PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS, SCORES
from pgolf.runtime.package import VERSION
from pgolf.runtime.run_files import ARTIFACT
from pgolf.runtime.terminal import output, patient_streams, plain
from pgolf.runtime.threads import let_threads_wait

app = typer.Typer(
    name="pgolf",
    help="Byte-budgeted language models: train, pack under a byte cap, score in bits per byte.",
    cls=AllVerbs,
    epilog=epilog("pgolf run quickstart", "pgolf help data prepare", "pgolf --install-completion bash"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(launch_app, name="launch")
app.command("eval", epilog=epilog(*EVAL_EXAMPLES))(eval_command)
app.command("audit", epilog=epilog(*AUDIT_EXAMPLES))(audit_command)
app.command("compress", epilog=epilog(*COMPRESS_EXAMPLES))(compress_command)
app.command("decompress", epilog=epilog(*DECOMPRESS_EXAMPLES))(decompress_command)
bench_app.command("compressors", epilog=epilog(*BENCH_EXAMPLES))(bench_compressors_command)
app.command("generate", epilog=epilog(*GENERATE_EXAMPLES))(generate_command)
app.command("verify-ledger", epilog=epilog(*VERIFY_EXAMPLES))(verify_command)
app.command("significance", epilog=epilog(*SIGNIFICANCE_EXAMPLES))(significance_command)
app.command("study", epilog=epilog(*STUDY_EXAMPLES))(study_command)
app.command("report", epilog=epilog(*REPORT_EXAMPLES))(report_command)
app.command("runs", epilog=epilog(*RUNS_EXAMPLES))(runs_command)
app.command("diff", epilog=epilog(*DIFF_EXAMPLES))(diff_command)
app.command("submit", epilog=epilog(*SUBMIT_EXAMPLES))(submit_command)
app.command("doctor", epilog=epilog(*DOCTOR_EXAMPLES))(doctor_command)
app.command("help", epilog=epilog(*HELP_EXAMPLES))(help_command)


# What click raises for a wrong command line. Newer versions of typer carry a click of their own.
ClickException: Any = typer.BadParameter.__mro__[2]
_LIST_OPTIONS = ("--text", "--val-text", "--against")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"pgolf {VERSION}")
        raise typer.Exit
    if "WORLD_SIZE" in os.environ:
        from pgolf.cli.team import refuse_ranks

        refuse_ranks(context.invoked_subcommand or "")


@app.command(
    "train",
    epilog=epilog(
        "pgolf train --recipe quickstart --out runs/first",
        "pgolf train --recipe seed_1232 --set train.steps=2000 --data data/fineweb-sp1024 --out runs/short",
        "pgolf train --resume --out runs/short",
        "pgolf train --recipe quickstart --out runs/look --set train.steps=20 --profile",
    ),
)
def train_command(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Name of a shipped recipe, or a .toml file.")
    ] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    init: Annotated[Path | None, typer.Option("--init", help="Start from these weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Profile a few steps: a trace and a table in the run's profile folder."
        ),
    ] = False,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Train a model; writes metrics.jsonl, checkpoints and, at the end, model.safetensors."""
    from pgolf.cli.team import joined
    from pgolf.runs.pipeline import train_job

    changes = overrides or []
    with joined(device) as (chosen, team):
        result = train_job(
            recipe,
            changes,
            data,
            tokenizer,
            out,
            chosen,
            initial=init,
            resume=resume,
            profile=profile,
            team=team,
        )
        if team.is_first:
            if profile and not as_json:
                print_profile(result.pop("profile"))
            print_result(result, as_json, _training_rows(result), title=str(out))


def _training_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    scores = (("weights", "val_bpb", "averaged weights"), ("raw_weights", "raw_val_bpb", "last weights"))
    named = [
        (Path(result[file]).name, f"{result[bpb]:.4f} bits per byte   {what}, standard windows")
        for file, bpb, what in scores
    ]
    figures = ("steps", "seconds", "tokens_per_second", "tflops_per_second", "mfu")
    return [*flat_rows({key: result[key] for key in figures if result[key] is not None}), *named]


@app.command(
    "pack",
    epilog=epilog(
        "pgolf pack runs/first --out model.pgolf",
        "pgolf pack runs/first --out small.pgolf --cap 900000",
        "pgolf pack runs/first --out model.pgolf --compare",
    ),
)
def pack_command(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    out: Annotated[Path, typer.Option("--out", help="Artifact to write.")],
    cap: Annotated[
        int | None, typer.Option("--cap", min=1, help="Largest total in bytes; default: compress.cap.")
    ] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also code the same tensors with every coder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize and code the weights, read them back to verify, and count the bytes.

    With --cap, and by default in new recipes, precision goes where the loss minds it most and the artifact
    lands just under the cap; a table says what each tensor got. --set compress.scheme=rowwise keeps to fixed
    widths.
    """
    from pgolf.compress.compare import compare_artifact
    from pgolf.compress.report import TENSOR_COLUMNS
    from pgolf.runs.pipeline import pack_job
    from pgolf.runtime.progress import counting

    check_data_paths(data, tokenizer)
    report = pack_job(weights, out, cap, overrides or [], data, tokenizer)
    result = report.to_json()
    if compare:
        with counting("comparing coders") as progress:
            result["coders"] = [row.to_json() for row in compare_artifact(out, progress)]
    if not as_json and report.scheme == "budget":
        title = "what was chosen; rise of the loss in nats per token"
        print_columns(TENSOR_COLUMNS, report.tensor_rows(), title, drop=("predicted", "measured", "bytes"))
    print_result(result, as_json, report.rows(), title=str(out))
    if compare and not as_json:
        print_comparison(result["coders"], title="the same codes, steps and kept tensors in every coder")


@app.command(
    "inspect",
    epilog=epilog("pgolf inspect model.pgolf", "pgolf inspect model.pgolf --picture codes.png --json"),
)
def inspect_command(
    file: Annotated[Path, typer.Argument(help="Artifact.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw codes and bytes by group as a PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in an artifact: sizes, provenance, and the codes, entropy and bytes of every tensor."""
    from pgolf.compress.inspect import inspect_artifact
    from pgolf.report import histogram

    found = inspect_artifact(file)
    if picture is not None:
        histogram.draw_codes(found, picture)
    if as_json:
        print_json(found.to_json())
        return
    rows = histogram.tensor_rows(found, blocks=histogram.blocks_for(sys.stdout.encoding))
    print_columns(histogram.TENSOR_COLUMNS, rows, str(file), left=("histogram",), drop=histogram.TENSOR_DROP)
    title = "bytes of the file by group of tensors"
    print_columns(histogram.GROUP_COLUMNS, histogram.group_rows(found), title, drop=histogram.GROUP_DROP)
    origin = flat_rows({"origin": found.origin})
    print_table([*histogram.summary_rows(found), *origin], title="artifact")


@app.command(
    "import",
    epilog=epilog("pgolf import final_model.int6.ptz --recipe seed_644 --out imported.safetensors"),
)
def import_command(
    source: Annotated[Path, typer.Argument(help="A reference's .ptz artifact, .pt or .safetensors weights.")],
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe that describes it.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write.")],
    overrides: Overrides = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Its tokenizer, so that evaluation can check the data.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the weights of a reference system in; never executes a pickle."""
    from pgolf.runs.pipeline import import_job

    result = import_job(source, recipe, overrides or [], out, tokenizer)
    print_result(result, as_json, flat_rows(result), title=str(out))


@app.command("run", epilog=epilog("pgolf run quickstart", "pgolf run seed_1232 --data data/fineweb-sp1024"))
def run_command(
    name: Annotated[str, typer.Argument(help="Recipe: a shipped name or a .toml file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/NAME.")] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--score", help="float, packed, sliding or ttt; repeatable; default: all."),
    ] = None,
    keep: Annotated[
        list[int] | None,
        typer.Option("--keep-step", min=1, help="Keep the checkpoint after this step; repeatable."),
    ] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Do the whole job: data, training, packing, all evaluations, report. Continues what was interrupted."""
    from pgolf.cli.team import joined
    from pgolf.recipe.recipe import load_recipe
    from pgolf.report.markdown import write_report
    from pgolf.runs.pipeline import run_all

    with joined(device) as (chosen, team):
        recipe = load_recipe(name, overrides or [])
        folder = out or Path("runs") / recipe.name
        wanted = scores or SCORES
        given = recipe, data, tokenizer, folder, chosen, team
        result = run_all(*given, scores=wanted, keep=keep or (), report=write_report)
        if not team.is_first:
            return
        if as_json:
            print_json(result)
        else:
            _print_run(result, folder)


@app.command("recipes", epilog=epilog("pgolf recipes", "pgolf recipes seed_1232 --set model.layers=9"))
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Print this one, resolved.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or print one with its parameters, bytes, FLOPs and memory."""
    from pgolf.recipe.files import recipe_names
    from pgolf.recipe.recipe import load_recipe
    from pgolf.runs.estimate import estimate

    if name is None:
        known = {entry: load_recipe(entry).description for entry in recipe_names()}
        print_result(known, as_json, list(known.items()), title="recipes")
        return
    recipe = load_recipe(name, overrides or [])
    figures = estimate(recipe)
    if as_json:
        print_json({"recipe": recipe.model_dump(mode="json"), "estimate": figures.to_json()})
        return
    # A file or a pipe gets it as it is, for another command to read.
    print(plain(recipe.to_toml(), keep="\n") if sys.stdout.isatty() else recipe.to_toml())
    print_table(figures.rows(), title=f"{recipe.name}: estimates before training")


def main() -> None:
    """Entry point of the command: prints mistakes as one line and exits with status 2."""
    let_threads_wait()  # No line above has imported torch.
    with patient_streams():
        status = _run(repeat_list_options(sys.argv[1:]))
        sys.stdout.flush()
        if output.problem is not None:
            status = _mistake(output.problem)
    sys.exit(status)


def _run(words: list[str]) -> int:
    """Do what the command line says; the exit status."""
    try:
        # Outside standalone mode click raises what it would print, and returns an exit status.
        with paths_are_mistakes():
            status = app(args=words, prog_name="pgolf", standalone_mode=False)
    except PgolfError as error:
        return _mistake(str(error))
    except ClickException as error:
        # A wrong command line is wrong on every rank, and noticed before they know of each other.
        return 2 if os.environ.get("RANK", "0") != "0" else _mistake(error.format_message())
    except Interrupted as stop:
        print(f"pgolf: {plain(str(stop))}", file=sys.stderr)
        return 130
    except (KeyboardInterrupt, typer.Abort):
        print("pgolf: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    return status if isinstance(status, int) else 0


def repeat_list_options(words: list[str]) -> list[str]:
    """Write ``--text a b`` as ``--text a --text b``, so that patterns which a shell expands work."""
    repeated: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word if word in _LIST_OPTIONS else ""
        elif option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(word)
    return repeated


def _mistake(message: str) -> int:
    print_mistake(message)
    return 2


def _times(result: dict[str, Any]) -> str:
    scoring = sum(evaluation["seconds"] for evaluation in result["evaluations"].values())
    parts = [("training", result.get("train", {}).get("seconds")), ("packing", result["pack"].get("seconds"))]
    return ", ".join(
        f"{what} {time:.0f} s" for what, time in [*parts, ("evaluation", scoring)] if time is not None
    )


def _print_run(result: dict[str, Any], folder: Path) -> None:
    evaluations, packed = result["evaluations"], result["pack"]
    made = [EVALUATIONS[name] for name in SCORES if name in evaluations]
    rows = [
        *((entry.label, f"{evaluations[entry.name]['val_bpb']:.4f}   {entry.of}") for entry in made),
        ("artifact", f"{packed['total_bytes']:,} of {packed['cap']:,} bytes, code included"),
        ("time", _times(result)),
        ("report", f"{folder / 'report.md'}, {folder / 'report.html'}"),
        ("artifact file", str(folder / ARTIFACT)),
        ("curve", str(folder / "curve.png")),
    ]
    print_table(rows, title=f"{result['recipe']}: bits per byte (BPB) on held-out text")


if __name__ == "__main__":
    main()
