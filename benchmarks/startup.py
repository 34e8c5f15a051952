"""How long commands take that compute nothing, or little: medians of several starts, clock and CPU time.

    python benchmarks/startup.py --folder /tmp/startup

The folder gets the data and the run of README.md's small example, a minute's work, unless they are there.
Each command is started once before, so that its files are in the system's cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "books.py"
PGOLF = (sys.executable, "-m", "pgolf")
ARTIFACT, LEDGER, DATA = "run/artifact.pgolf", "run/ledger.ttt.jsonl", "data"
# Command and the seconds that it may take.
COMMANDS: tuple[tuple[str, float], ...] = (
    ("recipes", 0.7),
    ("recipes tiny", 0.7),
    ("recipes quickstart", 0.7),
    ("runs .", 0.7),
    ("study", 0.7),
    (f"inspect {ARTIFACT}", 0.7),
    (f"data inspect {DATA}", 0.7),
    ("diff run run", 0.7),
    (f"verify-ledger {LEDGER} --data {DATA} --artifact {ARTIFACT}", 0.7),
    ("report run --no-score --out report.md", 0.7),
    ("report run --no-score --out report.html", 0.7),
    ("doctor --compile-seconds 0", 0.7),
    (f"eval {ARTIFACT} --data {DATA}", 3),
    (f"generate {ARTIFACT} --tokenizer {DATA}/tokenizer.model --prompt The --tokens 40", 3),
    (f"pack run --data {DATA} --out packed.pgolf", 3),
)


def prepare(folder: Path) -> None:
    """Make the data and the run, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DATA).is_dir():
        subprocess.run([sys.executable, EXAMPLE, "books"], cwd=folder, check=True)
        texts = sorted(str(path.relative_to(folder)) for path in (folder / "books").glob("*.txt"))
        settings = ["--val-fraction", "0.1", "--vocab-size", "512", "--out"]
        subprocess.run([*PGOLF, "data", "prepare", "--text", *texts, *settings, DATA], cwd=folder, check=True)
    if not (folder / "run" / "report.html").is_file():
        subprocess.run([*PGOLF, "run", "tiny", "--data", DATA, "--out", "run"], cwd=folder, check=True)


def measured(command: str, folder: Path) -> tuple[float, float]:
    """Seconds by the clock, and of CPU time."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([*PGOLF, *command.split()], cwd=folder, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prepare(options.folder)
    print(f"{'command':<76} {'goal':>4} {'clock':>6} {'CPU':>5}")
    for command, goal in COMMANDS:
        measured(command, options.folder)
        found = [measured(command, options.folder) for _ in range(options.repeats)]
        clock, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        print(
            f"{command:<76} {goal:4.1f} {clock:6.2f} {cpu:5.2f}{'  missed' if clock > goal else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
