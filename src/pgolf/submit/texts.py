"""The texts of a submission: README.md, submission.json, requirements.txt, recipe.toml, training logs."""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, StrictUndefined

from pgolf.report.markdown import table
from pgolf.runtime.terminal import plain
from pgolf.runtime.writing import write_bytes, write_json
from pgolf.submit.bundle import Bundle
from pgolf.submit.checklist import TRACKS, Item
from pgolf.submit.evidence import Candidate

Runs = Sequence[Candidate]
NON_COMPLIANT = "NON-COMPLIANT"
_PARTS = {"raw": "last weights", "float": "averaged weights", "packed": "quantized"}
_PARTS |= {"sliding": "sliding windows", "ttt": "test-time training", "memory": "memory"}


def training_log(run: Candidate) -> str:
    """A run's training and evaluation as lines."""
    steps, made = run.recipe.train.steps, run.provenance
    lines = [
        f"recipe:{run.recipe.name} seed:{run.seed} {run.machine}",
        f"started:{made['started']} code_sha256:{made['environment']['code_sha256']}",
        f"data:{made['data']['fingerprint']} tokenizer_sha256:{made['data']['tokenizer_sha256']}",
    ]
    for entry in run.record.metrics:
        if "val_bpb" in entry:
            found = f"val_loss:{entry['val_loss']:.6f} val_bpb:{entry['val_bpb']:.6f}"
        else:
            speed = f"tokens_per_second:{entry['tokens_per_second']:.0f}"
            found = f"train_loss:{entry['train_loss']:.6f} lr_scale:{entry['lr_scale']:.4f} {speed}"
        lines.append(f"step:{entry['step']}/{steps} {found}")
    lines.append(f"trained steps:{run.trained['steps']} train_time:{run.trained['seconds']:.1f}s")
    lines.append(f"packed bytes:{run.model_bytes} pack_time:{run.packing_seconds:.1f}s")
    for name, score in run.scores.items():
        scores = f"val_loss:{score['val_loss']:.8f} val_bpb:{score['val_bpb']:.8f}"
        counts = f"targets:{score['targets']} bytes:{score['bytes']} eval_time:{score['seconds']:.1f}s"
        lines.append(f"{name} {scores} {counts}")
    return "\n".join(lines) + "\n"


def summary(runs: Runs) -> dict[str, float]:
    """Mean and standard deviation (n - 1) over the seeds; the deviation of one run is 0."""
    found: dict[str, float] = {}
    for key in ("val_bpb", "val_loss"):
        values = [run.score[key] for run in runs]
        found[key] = statistics.fmean(values)
        found[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def write_texts(
    folder: Path, runs: Runs, made: Bundle, items: Sequence[Item], about: Mapping[str, str], track: str
) -> None:
    """Write all texts; ``about`` has author, github_id, name and blurb."""
    broken = [item for item in items if not item.ok]
    write_bytes(folder / "README.md", plain(_readme(runs, made, items, about, track), keep="\n\t").encode())
    submission = _submission(runs, len(made.packed), about, track)
    submission |= {"compliant": not broken, "compliance": {item.rule: item.ok for item in items}}
    if broken:
        violations = [f"{item.rule}: {item.evidence}" for item in broken]
        submission |= {"status": NON_COMPLIANT, "violations": violations}
    write_json(folder / "submission.json", submission)
    # In the versions that are installed.
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in made.requirements}
    needed = "".join(f"{name}=={version}\n" for name, version in versions.items())
    write_bytes(folder / "requirements.txt", needed.encode())
    write_bytes(folder / "recipe.toml", runs[0].recipe.to_toml().encode())
    for run in runs:
        write_bytes(folder / f"train_seed{run.seed}.log", plain(training_log(run), keep="\n\t").encode())


def _submission(runs: Runs, code: int, about: Mapping[str, str], track: str) -> dict[str, Any]:
    return {
        **about,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "track": TRACKS[track].removeprefix("track_"),
        **summary(runs),
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): _seed_result(run, code) for run in runs},
        "bytes_total": code + max(run.model_bytes for run in runs),
        "bytes_code": code,
        "hardware": runs[0].machine,
        "pytorch_version": runs[0].provenance["environment"]["torch"],
    }


def _seed_result(run: Candidate, code: int) -> dict[str, Any]:
    return {
        "val_bpb": run.score["val_bpb"],
        "val_loss": run.score["val_loss"],
        "sliding_val_bpb": run.scores["sliding"]["val_bpb"],
        "artifact_bytes": run.model_bytes,
        "bytes_total": run.model_bytes + code,
        "steps": run.trained["steps"],
        "train_time_s": round(run.train_seconds, 1),
        "eval_time_s": round(run.score["seconds"], 1),
    }


def _readme(runs: Runs, made: Bundle, items: Sequence[Item], about: Mapping[str, str], track: str) -> str:
    # What was scored after the evaluation that counts is no part of it.
    names = list(_PARTS)[: list(_PARTS).index(runs[0].counts) + 1]
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.undefined = StrictUndefined
    template = resources.files("pgolf.submit").joinpath("readme.md").read_text("utf-8")
    rules = [("ok" if item.ok else "**no**", item.rule, item.evidence) for item in items]
    return environment.from_string(template).render(
        runs=runs,
        made=made,
        about=about,
        broken=sum(not item.ok for item in items),
        non_compliant=NON_COMPLIANT,
        figures=summary(runs),
        track=TRACKS[track],
        parts={name: _PARTS[name] for name in names if all(name in run.scores for run in runs)},
        changes=tomli_w.dumps(runs[0].recipe.model_dump(mode="json", exclude_defaults=True)),
        rules=table(("", "rule", "evidence"), rules),
    )
