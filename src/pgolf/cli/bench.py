"""The commands of `pgolf bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli.common import (
    AsJson,
    DataFolder,
    DeviceName,
    Overrides,
    TokenizerFile,
    epilog,
    flat_rows,
    print_comparison,
    print_json,
    print_result,
)
from pgolf.cli.help import Verbs
from pgolf.cli.tables import print_columns

Out = Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")]

bench_app = typer.Typer(
    help="Measure speed and memory beside the plainest code that does the same work, and coders beside each other.",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog(
        "pgolf bench train",
        "pgolf bench eval --recipe seed_1232 --repeats 3 --json",
        "pgolf bench compare before.json after.json",
        "pgolf bench coders model.safetensors --bits 6",
    ),
)


def _add_speed_command(what: str, text: str) -> None:
    @bench_app.command(what, help=text, epilog=epilog(f"pgolf bench {what} --recipe quickstart --repeats 3"))
    def command(
        recipe: Annotated[str, typer.Option("--recipe", help="What to measure.")] = "quickstart",
        overrides: Overrides = None,
        repeats: Annotated[
            int, typer.Option("--repeats", min=1, help="Measured repeats after the warm-up.")
        ] = 5,
        out: Out = None,
        device: DeviceName = None,
        as_json: AsJson = False,
    ) -> None:
        from pgolf.bench import run_bench
        from pgolf.recipe.recipe import load_recipe
        from pgolf.runtime.device import pick_device

        result = run_bench(what, load_recipe(recipe, overrides or []), pick_device(device), repeats)
        _write(result, out)
        shown = {
            key: value for key, value in result.items() if key not in ("settings", "milliseconds_repeats")
        }
        print_result(result, as_json, flat_rows(shown), title=f"bench {what}")


_add_speed_command("train", "One optimizer step.")
_add_speed_command("eval", "Evaluation in sliding windows.")
_add_speed_command("ttt", "Test-time training.")
_add_speed_command("pack", "Quantizing, coding and verifying.")


@bench_app.command(
    "compare",
    epilog=epilog(
        "pgolf bench compare before.json after.json", "pgolf bench compare before.json after.json --json"
    ),
)
def bench_compare_command(
    first: Annotated[Path, typer.Argument(help="Written by `pgolf bench train|eval|ttt|pack --out`.")],
    second: Annotated[Path, typer.Argument(help="The same work measured again.")],
    as_json: AsJson = False,
) -> None:
    """Say whether the second measurement is faster than the first, as far as their repeats can show."""
    from pgolf.bench.compare import compare_benches

    found = compare_benches(first, second)
    print_result(found.to_json(), as_json, found.rows(), title=f"{first} and {second}")


@bench_app.command(
    "coders",
    epilog=epilog(
        "pgolf bench coders model.safetensors", "pgolf bench coders model.safetensors --bits 4 --json"
    ),
)
def bench_coders_command(
    file: Annotated[Path, typer.Argument(help="Any .safetensors file; the model need not be pgolf's.")],
    bits: Annotated[int, typer.Option("--bits", min=2, max=8, help="Width of the codes.")] = 6,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a file's large matrices row by row and compare every coder on the same codes."""
    from pgolf.bench.coders import bench_coders
    from pgolf.runtime.progress import counting

    with counting("comparing coders") as progress:
        result = bench_coders(file, bits, progress)
    _write(result, out)
    if as_json:
        print_json(result)
    else:
        print_comparison(result["coders"], title=f"bench coders: {result['scope']}")


@bench_app.command(
    "quantizers",
    epilog=epilog(
        "pgolf bench quantizers runs/first", "pgolf bench quantizers runs/first --bits 4 --bits 3 --json"
    ),
)
def bench_quantizers_command(
    weights: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    bits: Annotated[
        list[int] | None,
        typer.Option("--bits", min=2, max=8, help="Width of the reference's codes; default: 6, 5, 4."),
    ] = None,
    limit_targets: Annotated[
        int | None, typer.Option("--limit-targets", min=1, help="Score only the first ones.")
    ] = None,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare what packing costs with the references' quantizer and with pgolf's, at the same number of
    bytes.
    """
    from pgolf.bench.quantizers import bench_quantizers
    from pgolf.compress.weights import load_weights
    from pgolf.runs.pipeline import training_text
    from pgolf.runtime.progress import working

    loaded = load_weights(weights)
    dataset = training_text(weights, loaded.recipe, data, tokenizer)
    with working("comparing quantizers") as note:
        result = bench_quantizers(loaded, dataset, tuple(bits or (6, 5, 4)), limit_targets, note)
    _write(result, out)
    if as_json:
        print_json(result)
        return
    rows = [
        (
            str(row["bits"]),
            f"{row['bytes_reference']:,}",
            f"{row['gap_reference']:+.5f}",
            f"{row['bytes']:,}",
            f"{row['gap']:+.5f}",
            f"{row['share']:.2f}",
            f"{row['seconds']:.0f} s",
        )
        for row in result["rows"]
    ]
    header = (
        *("bits", "reference\nbytes", "reference\ngap (BPB)", "pgolf\nbytes", "pgolf\ngap (BPB)"),
        *("share", "packing"),
    )
    title = f"{result['recipe']}: packed minus float BPB (float {result['float_bpb']:.4f})"
    print_columns(header, rows, title, drop=("packing", "share", "reference\nbytes", "pgolf\nbytes"))


@bench_app.command(
    "fuzz", epilog=epilog("pgolf bench fuzz --cases 2000", "pgolf bench fuzz --cases 1 --seed 7")
)
def bench_fuzz_command(
    cases: Annotated[int, typer.Option("--cases", min=1, help="Files to read.")] = 100_000,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the first file; the next has the next.")
    ] = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Read damaged and hostile artifacts: each must be refused, or give the tensors it declares."""
    from pgolf.bench.fuzz import OUTCOMES, run_fuzz
    from pgolf.runtime.progress import counting

    with counting("fuzzing") as progress:
        result = run_fuzz(cases, seed, progress)
    _write(result, out)
    if as_json:
        print_json(result)
    else:
        rows = [
            (kind, *(f"{found[name]:,}" for name in OUTCOMES)) for kind, found in result["outcomes"].items()
        ]
        times = f"{result['seconds']:.0f} s, slowest read {result['slowest_milliseconds']:.0f} ms"
        title = f"{cases:,} {result['scope']}: none failed ({times})"
        print_columns(("change", *OUTCOMES), rows, title, drop=OUTCOMES)


def _write(result: dict[str, Any], out: Path | None) -> None:
    from pgolf.runtime.writing import write_json

    if out is not None:
        write_json(out, result)
