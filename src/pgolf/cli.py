"""The command line: parse, call one function, print. No work is done here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import pgolf
from pgolf.errors import Interrupted, PgolfError

app = typer.Typer(
    name="pgolf",
    help="Byte-budgeted language models: train, pack under a byte cap, score in bits per byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Prepare, fetch and inspect token shards.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
stdout = Console(highlight=False)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Prepared folder, or a bare folder of *_train_*.bin and *_val_*.bin.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="SentencePiece model, where the data folder holds none.")
]
DeviceName = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: CUDA if there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


# What click raises for a wrong command line. Newer versions of typer carry a click of their own.
ClickException: Any = typer.BadParameter.__mro__[2]
_LIST_OPTIONS = ("--text", "--val-text")


def _epilog(*examples: str) -> str:
    # \b keeps click from re-flowing the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        stdout.print(f"pgolf {pgolf.__version__}")
        raise typer.Exit


@data_app.command(
    "prepare",
    epilog=_epilog(
        "pgolf data prepare --text books/*.txt --val-fraction 0.01 --vocab-size 1024 --out data/books",
        "pgolf data prepare --text train.jsonl.zst --val-text val.jsonl --tokenizer sp1024.model --out data/web",
    ),
)
def data_prepare(
    text: Annotated[list[Path], typer.Option("--text", help=".txt, .jsonl, .jsonl.zst or .parquet; several at once.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for shards, tokenizer and manifest.")],
    val_text: Annotated[
        list[Path] | None, typer.Option("--val-text", help="Files of validation documents; several at once.")
    ] = None,
    val_fraction: Annotated[float, typer.Option("--val-fraction", help="Part of the documents held out.")] = 0.0,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Existing SentencePiece model.")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", help="Train a tokenizer of this size.")] = None,
    one_document: Annotated[bool, typer.Option("--one-document", help="A .txt file is one document.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: all cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn text into token shards, with a tokenizer and a manifest."""
    from pgolf.data.prepare import prepare
    from pgolf.progress import counting

    with counting("preparing") as progress:
        manifest = prepare(
            text,
            out,
            val_text=val_text or (),
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            one_document=one_document,
            workers=workers,
            progress=progress,
        )
    _print_result(manifest, as_json, _split_rows(manifest["splits"]), title=f"{out}")


@data_app.command(
    "fetch", epilog=_epilog("pgolf data fetch fineweb-sp1024 --train-shards 10 --out data/fineweb-sp1024")
)
def data_fetch(
    name: Annotated[str, typer.Argument(help="Published data set: fineweb-sp1024.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to fill.")] = Path("data"),
    train_shards: Annotated[int, typer.Option("--train-shards", min=0, help="Training shards to fetch.")] = 1,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of the repository on the hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the official shards from the Hugging Face hub (needs the extra pgolf[hub]); resumable."""
    from pgolf.data.fetch import fetch

    folder = fetch(name, out, train_shards=train_shards, revision=revision)
    _print_result({"folder": str(folder)}, as_json, [("folder", str(folder))], title=name)


@data_app.command("inspect", epilog=_epilog("pgolf data inspect data/books", "pgolf data inspect data/books --json"))
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    tokenizer: TokenizerFile = None,
    as_json: AsJson = False,
) -> None:
    """Count tokens, documents and bytes; check headers and the overlap of training and validation."""
    from pgolf.data.inspect import inspect_dataset

    found = inspect_dataset(folder, tokenizer)
    _print_result(found, as_json, _flat_rows(found), title=str(folder))


@app.command(
    "train",
    epilog=_epilog(
        "pgolf train --recipe quickstart --out runs/first",
        "pgolf train --recipe seed_1232 --set train.steps=2000 --data data/fineweb-sp1024 --out runs/short",
        "pgolf train --resume --out runs/short",
    ),
)
def train_command(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Name of a shipped recipe, or a .toml file.")] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    init: Annotated[Path | None, typer.Option("--init", help="Start from these weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Train a model; writes metrics.jsonl, checkpoints and, at the end, model.safetensors."""
    from pgolf.device import pick_device
    from pgolf.pipeline import train_job

    result = train_job(recipe, overrides or [], data, tokenizer, out, pick_device(device), initial=init, resume=resume)
    _print_result(result, as_json, _flat_rows(result), title=str(out))


@app.command(
    "pack",
    epilog=_epilog("pgolf pack runs/first --out model.pgolf", "pgolf pack runs/first --out small.pgolf --cap 900000"),
)
def pack_command(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    out: Annotated[Path, typer.Option("--out", help="Artifact to write.")],
    cap: Annotated[
        int | None, typer.Option("--cap", min=1, help="Largest total in bytes; default: compress.cap.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Quantize and code the weights, read them back to verify, and count the bytes."""
    from pgolf.pipeline import pack_job

    report = pack_job(weights, out, cap, overrides or [])
    _print_result(report.to_json(), as_json, report.rows(), title=str(out))


@app.command(
    "eval",
    epilog=_epilog(
        "pgolf eval model.pgolf --data data/books --mode ttt --json",
        "pgolf eval runs/first --data data/books --mode sliding --stride 32 --limit-targets 100000",
    ),
)
def eval_command(
    weights: Annotated[Path, typer.Argument(help="Artifact, weights file or run folder.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    mode: Annotated[str, typer.Option("--mode", help="standard, sliding or ttt.")] = "sliding",
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="Targets scored per window.")] = None,
    limit: Annotated[int | None, typer.Option("--limit-targets", min=1, help="Score only the first targets.")] = None,
    overrides: Overrides = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Score weights in bits per byte on the validation split."""
    from pgolf.device import pick_device
    from pgolf.pipeline import eval_job

    result = eval_job(weights, data, tokenizer, mode, stride, limit, overrides or [], pick_device(device))
    shown = {key: value for key, value in result.items() if key != "chunks"}
    _print_result(result, as_json, _flat_rows(shown), title=f"{weights} ({mode})")


@app.command(
    "import",
    epilog=_epilog("pgolf import final_model.int6.ptz --recipe seed_644 --out imported.safetensors"),
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
    from pgolf.pipeline import import_job

    result = import_job(source, recipe, overrides or [], out, tokenizer)
    _print_result(result, as_json, _flat_rows(result), title=str(out))


@app.command("run", epilog=_epilog("pgolf run quickstart", "pgolf run seed_1232 --data data/fineweb-sp1024"))
def run_command(
    name: Annotated[str, typer.Argument(help="Recipe: a shipped name or a .toml file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/NAME.")] = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Do the whole job: data, training, packing, all evaluations, report. Continues what was interrupted."""
    from pgolf.device import pick_device
    from pgolf.pipeline import run_all
    from pgolf.recipe import load_recipe

    recipe = load_recipe(name, overrides or [])
    folder = out or Path("runs") / recipe.name
    result = run_all(recipe, data, tokenizer, folder, pick_device(device))
    if as_json:
        _print_json(result)
    else:
        _print_run(result, folder)


@app.command("recipes", epilog=_epilog("pgolf recipes", "pgolf recipes seed_1232 --set model.layers=9"))
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Print this one, resolved.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or print one with its parameters, bytes, FLOPs and memory."""
    from pgolf.estimate import estimate
    from pgolf.recipe import load_recipe, recipe_names

    if name is None:
        known = {entry: load_recipe(entry).description for entry in recipe_names()}
        _print_result(known, as_json, list(known.items()), title="recipes")
        return
    recipe = load_recipe(name, overrides or [])
    figures = estimate(recipe)
    if as_json:
        _print_json({"recipe": recipe.model_dump(mode="json"), "estimate": figures.to_json()})
        return
    stdout.print(recipe.to_toml(), markup=False)
    _print_table(figures.rows(), title=f"{recipe.name}: estimates before training")


@app.command(
    "bench",
    epilog=_epilog("pgolf bench train", "pgolf bench eval --recipe seed_1232 --repeats 3 --json"),
)
def bench_command(
    what: Annotated[str, typer.Argument(help="train, eval, ttt or pack.")],
    recipe: Annotated[str, typer.Option("--recipe", help="What to measure.")] = "quickstart",
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Measured repeats after the warm-up.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory beside the plainest loop that does the same work."""
    from pgolf.bench import run_bench
    from pgolf.device import pick_device
    from pgolf.files import write_json
    from pgolf.recipe import load_recipe

    result = run_bench(what, load_recipe(recipe, overrides or []), pick_device(device), repeats)
    if out is not None:
        write_json(out, result)
    _print_result(result, as_json, _flat_rows(result), title=f"bench {what}")


def main() -> None:
    """Entry point of the command: prints mistakes as one line and exits with status 2."""
    # Threads that spin while they wait make everything ten times slower as soon as another program wants a
    # core. OpenMP reads this when torch is first imported, which no line above has done.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        # Outside standalone mode click raises what it would print, and returns an exit status.
        status = app(args=repeat_list_options(sys.argv[1:]), standalone_mode=False)
    except PgolfError as error:
        _fail(str(error))
    except ClickException as error:
        _fail(error.format_message())
    except Interrupted as stop:
        print(f"pgolf: {stop}", file=sys.stderr)
        sys.exit(130)
    except (KeyboardInterrupt, typer.Abort):
        print("pgolf: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


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


def _fail(message: str) -> None:
    print(f"pgolf: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _print_json(value: Any) -> None:
    print(json.dumps(value))


def _print_result(value: Any, as_json: bool, rows: list[tuple[str, str]], title: str) -> None:
    if as_json:
        _print_json(value)
    else:
        _print_table(rows, title)


def _print_table(rows: list[tuple[str, str]], title: str) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    stdout.print(table)


def _flat_rows(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, entry in value.items():
        if entry in ({}, []):
            rows.append((f"{prefix}{key}", "none"))
        elif isinstance(entry, dict):
            rows += _flat_rows(entry, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(entry)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _split_rows(splits: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            name,
            f"{split['documents']:,} documents, {split['tokens']:,} tokens, {split['bytes_original']:,} bytes of text",
        )
        for name, split in splits.items()
    ]


def _times(result: dict[str, Any]) -> str:
    scoring = sum(evaluation["seconds"] for evaluation in result["evaluations"].values())
    return (
        f"training {result['train']['seconds']:.0f} s, packing {result['pack']['seconds']:.0f} s, "
        f"evaluation {scoring:.0f} s"
    )


def _print_run(result: dict[str, Any], folder: Path) -> None:
    evaluations, packed = result["evaluations"], result["pack"]
    rows = [
        ("float BPB", f"{evaluations['float']['val_bpb']:.4f}   averaged weights, standard windows"),
        ("packed BPB", f"{evaluations['packed']['val_bpb']:.4f}   the artifact, standard windows"),
        ("sliding BPB", f"{evaluations['sliding']['val_bpb']:.4f}   the artifact, sliding windows"),
        ("TTT BPB", f"{evaluations['ttt']['val_bpb']:.4f}   the artifact, legal test-time training"),
        ("artifact", f"{packed['total_bytes']:,} of {packed['cap']:,} bytes, code included"),
        ("time", _times(result)),
        ("report", str(folder / "report.md")),
        ("artifact file", str(folder / "artifact.pgolf")),
        ("curve", str(folder / "curve.png")),
    ]
    _print_table(rows, title=f"{result['recipe']}: bits per byte (BPB) on held-out text")


if __name__ == "__main__":
    main()
