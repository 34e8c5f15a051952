"""The machine: `pgolf doctor`, and the verbs of `pgolf bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from pgolf.cli.app import AsJson, DataFolder, DeviceName, JsonFile, Overrides, TokenizerFile, group, verb
from pgolf.cli.model import ModelFile, ModelTokenizer, Threads, Ttt, WithMemory
from pgolf.cli.tables import (
    formatted,
    lines,
    noted,
    print_columns,
    print_comparison,
    print_json,
    print_result,
    print_table,
)


@verb("doctor", "pgolf doctor", "pgolf doctor --data data/web --json")
def doctor_verb(
    data: Annotated[Path | None, Option(help="A data folder to check as well.")] = None,
    tokenizer: TokenizerFile = None,
    compile_seconds: Annotated[
        int, Option(min=0, help="How long torch.compile may take; 0: try nothing that needs torch.")
    ] = 180,
    as_json: AsJson = False,
) -> None:
    """Check this machine: device, torch, attention, memory, disk, compiler, threads, data, packages.

    The exit status is 1 if something essential is broken; a warning says what could be better. With
    --compile-seconds 0 the answer comes at once, without what needs torch, and says what was not tried.
    """
    from pgolf.data.inspect import examine_data
    from pgolf.runtime.doctor import NOT_TRIED, examine, is_usable

    more = {} if data is None else {"data": lambda: examine_data(data, tokenizer)}
    checks = examine(more, compile_seconds)
    usable = is_usable(checks)
    if as_json:
        print_json({"usable": usable, "checks": [asdict(check) for check in checks]})
    else:
        header = ("check", "state", "found", "what to do")
        rows = [(check.name, check.state, check.found, check.remedy) for check in checks]
        title = "this machine is fit for pgolf" if usable else "something essential is broken"
        if usable and any(check.state == NOT_TRIED for check in checks):
            title = "nothing essential is broken, as far as it was tried"
        print_columns(header, rows, title=title, left=header, fold=header[2:])
    if not usable:
        raise typer.Exit(1)


bench = group(
    "bench",
    "Measure speed and memory beside the plainest code that does the same work, and coders beside each "
    "other.",
    "pgolf bench train",
    "pgolf bench eval --recipe seed_1232 --repeats 3 --json",
    "pgolf bench compare before.json after.json",
    "pgolf bench coders model.safetensors --bits 6",
)


def _as_json_only(result: Any, out: Path | None, as_json: bool) -> bool:
    """Write and print the JSON that is asked for; whether it was asked for instead of a table."""
    from pgolf.runtime.writing import write_json

    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
    return as_json


_SPEED = {
    "work": "{scope}, {repeats} times",
    "pgolf": "{milliseconds:,.1f} ms",
    "plain loop": "{milliseconds_plain:,.1f} ms",
    "ratio": "{ratio:.2f} times as fast ({ratio_range[0]:.2f} to {ratio_range[1]:.2f}), "
    "by CPU time {cpu_ratio:.2f}",
    "speed": "{tokens_per_second:,.0f} tokens per second, plain {tokens_per_second_plain:,.0f}",
    "arithmetic": "{tflops_per_second:.3g} TFLOP/s",
    "utilisation": "{mfu:.3f} of the device's peak (MFU)",
    "computed": "{figure:.6g}, plain {figure_plain:.6g}",
    "peak memory": "{peak_memory:,.0f} MiB, plain {peak_memory_plain:,.0f} MiB",
    "machine": "{environment[cpu]}, {environment[threads]} of {environment[cpu_cores]} cores, "
    "torch {environment[torch]}",
    "device": "{environment[device_name]}, driver {environment[driver]}",
}


def _add_speed_verb(what: str, text: str) -> None:
    def speed_verb(
        recipe: Annotated[str, Option(help="What to measure.")] = "quickstart",
        overrides: Overrides = None,
        repeats: Annotated[int, Option(min=1, help="Measured repeats after the warm-up.")] = 5,
        out: JsonFile = None,
        device: DeviceName = None,
        as_json: AsJson = False,
    ) -> None:
        from pgolf.bench.harness import run_bench
        from pgolf.recipe.recipe import load_recipe
        from pgolf.runtime.device import pick_device

        result = run_bench(what, load_recipe(recipe, overrides or []), pick_device(device), repeats)
        if not _as_json_only(result, out, as_json):
            peaks = {name: result[name] / 2**20 for name in ("peak_memory", "peak_memory_plain")}
            print_table(lines(result | peaks, _SPEED), title=f"bench {what}, {result['recipe']}")

    speed_verb.__doc__ = text
    verb(what, f"pgolf bench {what} --recipe quickstart --repeats 3", of=bench)(speed_verb)


_add_speed_verb("train", "One optimizer step.")
_add_speed_verb("eval", "Evaluation in sliding windows.")
_add_speed_verb("ttt", "Test-time training.")
_add_speed_verb("pack", "Quantizing, coding and verifying.")


@verb(
    "compare",
    "pgolf bench compare before.json after.json",
    "pgolf bench compare before.json after.json --json",
    of=bench,
)
def compare_verb(
    first: Annotated[Path, Argument(help="Written by `pgolf bench train|eval|ttt|pack --out`.")],
    second: Annotated[Path, Argument(help="The same work measured again.")],
    as_json: AsJson = False,
) -> None:
    """Say whether the second measurement is faster than the first, as far as their repeats can show."""
    from pgolf.bench.compare import compare_benches

    found = compare_benches(first, second)
    print_result(asdict(found), as_json, found.rows(), title=f"{first} and {second}")


@verb(
    "coders",
    "pgolf bench coders model.safetensors",
    "pgolf bench coders model.safetensors --bits 4 --json",
    of=bench,
)
def coders_verb(
    file: Annotated[Path, Argument(help="Any .safetensors file; the model need not be pgolf's.")],
    bits: Annotated[int, Option(min=2, max=8, help="Width of the codes.")] = 6,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a file's large matrices row by row and compare every coder on the same codes."""
    from pgolf.bench.packing import bench_coders
    from pgolf.runtime.progress import counting

    with counting("comparing coders") as progress:
        result = bench_coders(file, bits, progress)
    if not _as_json_only(result, out, as_json):
        print_comparison(result["coders"], title=f"bench coders: {result['scope']}")


@verb(
    "quantizers",
    "pgolf bench quantizers runs/first",
    "pgolf bench quantizers runs/first --bits 4 --bits 2.5 --json",
    of=bench,
)
def quantizers_verb(
    weights: Annotated[Path, Argument(help="Run folder or weights file.")],
    bits: Annotated[
        list[float] | None,
        Option(min=0.5, max=8, help="Bytes of the file, as bits for each parameter; default: 6 to 1.5."),
    ] = None,
    limit_targets: Annotated[int | None, Option(min=1, help="Score only the first ones.")] = None,
    effort: Annotated[int, Option(min=0, help="Pack a fifth time with this compress.effort.")] = 0,
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare what four ways to quantize cost at the same number of bytes: steps by a row's largest
    magnitude, by its standard deviation, the same with GPTQ, and pgolf's.
    """
    from pgolf.bench.quantizers import BITS, bench_quantizers
    from pgolf.compress.weights import load_weights
    from pgolf.runs.pipeline import training_text
    from pgolf.runtime.progress import working

    loaded = load_weights(weights)
    dataset = training_text(weights, loaded.recipe, data, tokenizer)
    with working("comparing quantizers") as note:
        result = bench_quantizers(loaded, dataset, tuple(bits or BITS), limit_targets, effort, note)
    if _as_json_only(result, out, as_json):
        return
    forms = {"bits": "{:g}", "way": "{}", "bytes": "{:,}", "gap": "{:+.5f}", "share_gap": "{:.2f}"}
    forms |= {"kl": "{:.5f}", "share_kl": "{:.2f}", "seconds": "{:.1f} s"}
    header = ("bits", "steps by", "bytes", "gap (BPB)", "share", "divergence\n(BPB)", "share", "packing")
    title = f"{result['recipe']}: packed minus float BPB (float {result['float_bpb']:.4f})"
    print_columns(header, [formatted(row, forms) for row in result["rows"]], title, drop=("packing", "bytes"))


@verb(
    "memory",
    "pgolf bench memory --data data/web",
    "pgolf bench memory --data data/web --targets 62000000 --json",
    of=bench,
)
def memory_verb(
    data: Annotated[Path, Option(help="Prepared folder; its training text is counted.")],
    tokenizer: TokenizerFile = None,
    targets: Annotated[int, Option(min=10, help="How many to score.")] = 5_000_000,
    extrapolate: Annotated[int, Option(min=10, help="Tell seconds and bytes for so many.")] = 62_000_000,
    block: Annotated[int, Option(min=1, help="Targets scored at a time.")] = 1024,
    order: Annotated[int, Option(min=1, max=24, help="Tokens of the longest context.")] = 6,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a memory costs beside a model: microseconds per target and bytes, linear and strongest."""
    from pgolf.bench.memory import bench_memory
    from pgolf.data.dataset import open_dataset
    from pgolf.runtime.progress import counting

    dataset = open_dataset(data, tokenizer)
    with counting("counting") as progress:
        result = bench_memory(dataset, targets, extrapolate, block, order, progress)
    if _as_json_only(result, out, as_json):
        return
    forms = {"stage": "{}", "cpu_microseconds": "{:.2f}", "microseconds": "{:.2f}"}
    forms |= {"microseconds_per_doubling": "{:+.2f}", "bytes_per_million": "{:,.0f}"}
    forms |= {"extrapolated_seconds": "{:,.0f} s", "extrapolated_bytes": "{:,}"}
    times, sizes = ("CPU us", "wall us", "more when doubled"), ("bytes per million",)
    header = ("stage", *times, *sizes, f"{extrapolate:,} targets", "bytes")
    rows = [formatted(row, forms) for row in result["rows"]]
    print_columns(header, rows, f"V {result['vocab_size']:,}, order {order}: {result['scope']}")


@verb(
    "yardstick",
    "pgolf bench yardstick runs/quickstart",
    "pgolf bench yardstick runs/web --cap 1000000 --json",
    of=bench,
)
def yardstick_verb(
    run: Annotated[Path, Argument(help="A finished run, for its scores and its data.")],
    data: DataFolder = None,
    tokenizer: TokenizerFile = None,
    cap: Annotated[
        int | None, Option(min=1, help="Cut the training text to what a compressor packs into so many bytes.")
    ] = None,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's scores beside PPMd, xz and bzip2, alone and after the training text."""
    from pgolf.bench.yardstick import yardstick
    from pgolf.runtime.progress import counting

    with counting("compressing") as progress:
        result = yardstick(run, data, tokenizer, cap, progress)
    if _as_json_only(result, out, as_json):
        return
    name = result["recipe"]
    scores = [(f"{name}, {score}", f"{bpb:.4f}", "-", "-") for score, bpb in result["scores"].items()]
    forms = {"alone_bpb": "{:.4f}", "primed_bpb": "{:.4f}", "training_packed": "{:,}"}
    rows = [(row["compressor"], *formatted(row, forms)) for row in result["rows"]]
    header = ("", "bits per byte", "after training text", "which it packs into")
    title = f"{result['bytes']:,} bytes of held-out text"
    print_columns(header, [*rows, *scores], title)


@verb("fuzz", "pgolf bench fuzz --cases 2000", "pgolf bench fuzz --cases 1 --seed 7", of=bench)
def fuzz_verb(
    cases: Annotated[int, Option(min=1, help="Files to read.")] = 100_000,
    seed: Annotated[int, Option(min=0, help="Seed of the first file; the next has the next.")] = 0,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Read damaged and hostile artifacts: each must be refused, or give the tensors it declares."""
    from pgolf.bench.fuzz import OUTCOMES, run_fuzz
    from pgolf.runtime.progress import counting

    with counting("fuzzing") as progress:
        result = run_fuzz(cases, seed, progress)
    if _as_json_only(result, out, as_json):
        return
    forms = dict.fromkeys(OUTCOMES, "{:,}")
    rows = [(kind, *formatted(found, forms)) for kind, found in result["outcomes"].items()]
    times = f"{result['seconds']:.0f} s, slowest read {result['slowest_milliseconds']:.0f} ms"
    title = f"{cases:,} {result['scope']}: none failed ({times})"
    print_columns(("change", *OUTCOMES), rows, title, drop=OUTCOMES)


@verb(
    "compressors",
    "pgolf bench compressors book.txt --model model.pgolf --tokenizer tokenizer.model",
    "pgolf bench compressors *.txt --model runs/first/artifact.pgolf --ttt --memory --json",
    of=bench,
)
def compressors_verb(
    files: Annotated[list[Path], Argument(help="Files to compress.")],
    model: ModelFile,
    tokenizer: ModelTokenizer = None,
    ttt: Ttt = False,
    memory: WithMemory = False,
    threads: Threads = 1,
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Compress files with general compressors at their strongest and with a model, and unpack them again.

    With --memory the model is used without and with it.
    """
    from pgolf.codec.compare import compare_files
    from pgolf.runtime.progress import counting

    with counting("compressing") as progress:
        found = compare_files(
            files, model, tokenizer, ttt=ttt, memory=memory, threads=threads, progress=progress
        )
    if _as_json_only(found, out, as_json):
        return
    header = ("compressor", "bytes", "with model", "bits per byte", "encode", "decode")
    forms = {"bytes": "{:,}", "bytes_with_model": "{:,}", "bits_per_byte": "{:.3f}"}
    forms |= {"encode_seconds": "{:.2f} s", "decode_seconds": "{:.2f} s"}
    for entry in found:
        rows = [(noted(row, "compressor"), *formatted(row, forms)) for row in entry["compressors"]]
        title = f"{entry['file']}: {entry['bytes']:,} bytes"
        print_columns(header, rows, title, drop=("encode", "decode", "bits per byte", "with model"))
