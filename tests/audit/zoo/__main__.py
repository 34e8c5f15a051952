"""Audit the whole zoo over many seeds, and print what was named; as a module, with ``--seeds 20 --full``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from pgolf.audit.runs import Settings
from tests.audit.zoo import INVALID, VALID
from tests.audit.zoo.toys import FEW, audited


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.audit.zoo")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="as many experiments as `pgolf audit` makes")
    parser.add_argument("--evidence", action="store_true", help="print what was found with the first seed")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings() if arguments.full else FEW
    wrong, audits, started = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for animal in [*VALID, *INVALID]:
            if arguments.names and animal.name not in arguments.names:
                continue
            begun, named = time.perf_counter(), Counter[str]()
            for seed in range(arguments.seeds):
                report = audited(animal, seed, Path(folder), settings)
                if arguments.evidence and seed == 0:
                    for finding in report.findings:
                        if not finding.passed:
                            print(f"  {finding.condition:10} {finding.test:26} {finding.evidence}")
                named[", ".join(report.violated) or "nothing"] += 1
                if not animal.is_named_right(report.violated):
                    wrong += 1
                    print(f"WRONG: {animal}, seed {seed}", [f for f in report.findings if not f.passed])
            audits += arguments.seeds
            each = (time.perf_counter() - begun) / arguments.seeds
            found = "; ".join(f"{what} ({times}x)" for what, times in named.items())
            expected = animal.condition or "nothing"
            print(f"{animal.name:28} expected {expected:10} named {found:40} {each:.2f} s each")
    print(f"{wrong} of {audits} audits wrong, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
