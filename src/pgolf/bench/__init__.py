"""Benchmarks: speed and memory, each beside the plainest loop that does the same work; and fuzzing."""

from pgolf.bench.harness import run_bench

__all__ = ["run_bench"]
