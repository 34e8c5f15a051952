"""The texts of a submission, written from its numbers: README.md, submission.json, training logs,
requirements.txt.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import tomli_w
from jinja2 import Environment, StrictUndefined

from pgolf.report.markdown import table
from pgolf.submit.bundle import Bundle
from pgolf.submit.checklist import TRACKS, Item
from pgolf.submit.evidence import Candidate

NON_COMPLIANT = "NON-COMPLIANT"
_PARTS = {"raw": "last weights", "float": "averaged weights", "packed": "quantized"}
_PARTS |= {"sliding": "sliding windows", "ttt": "test-time training"}


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


def summary(runs: Sequence[Candidate]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) over the seeds; the deviation of one run is 0."""
    found: dict[str, float] = {}
    for key in ("val_bpb", "val_loss"):
        values = [run.score[key] for run in runs]
        found[key] = statistics.fmean(values)
        found[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


@dataclass(frozen=True)
class Texts:
    """What is written of a submission, if ``about`` names it: author, github_id, name and blurb."""

    runs: Sequence[Candidate]
    made: Bundle
    items: Sequence[Item]
    about: Mapping[str, str]
    track: str

    def requirements(self) -> str:
        """The distributions that the script imports, in the versions that are installed."""
        names = self.made.requirements
        return "".join(f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in names)

    def submission(self) -> dict[str, Any]:
        """What goes into submission.json."""
        runs, code = self.runs, len(self.made.packed)
        broken = [f"{item.rule}: {item.evidence}" for item in self.items if not item.ok]
        return {
            **self.about,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "track": TRACKS[self.track].removeprefix("track_"),
            **summary(runs),
            "seeds": [run.seed for run in runs],
            "seed_results": {str(run.seed): _seed_result(run, code) for run in runs},
            "bytes_total": code + max(run.model_bytes for run in runs),
            "bytes_code": code,
            "hardware": runs[0].machine,
            "pytorch_version": runs[0].provenance["environment"]["torch"],
            "compliant": not broken,
            "compliance": {item.rule: item.ok for item in self.items},
            **({"status": NON_COMPLIANT, "violations": broken} if broken else {}),
        }

    def readme(self) -> str:
        """What goes into README.md, by the template ``readme.md``."""
        runs, figures = self.runs, summary(self.runs)
        spread = f"mean of {len(runs)} seeds, standard deviation {figures['val_bpb_std']:.5f}"
        rules = [("ok" if item.ok else "**no**", item.rule, item.evidence) for item in self.items]
        environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
        environment.undefined = StrictUndefined
        template = resources.files("pgolf.submit").joinpath("readme.md").read_text("utf-8")
        return environment.from_string(template).render(
            about=self.about,
            bad=sum(not item.ok for item in self.items),
            non_compliant=NON_COMPLIANT,
            figures=figures,
            seeds=spread if len(runs) > 1 else "one seed",
            track=TRACKS[self.track],
            results=_results(runs, len(self.made.packed)),
            parts=_decomposition(runs),
            changes=tomli_w.dumps(runs[0].recipe.model_dump(mode="json", exclude_defaults=True)),
            every_seed=[run.seed for run in runs],
            made=self.made,
            rules=table(("", "rule", "evidence"), rules),
        )


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


def _results(runs: Sequence[Candidate], code: int) -> str:
    head = ("seed", "bits per byte", "nats per token", "steps", "training (s)", "evaluation (s)", "bytes")
    rows = []
    for run in runs:
        scores = (f"{run.score['val_bpb']:.5f}", f"{run.score['val_loss']:.5f}", f"{run.trained['steps']:,}")
        times = (f"{run.train_seconds:.1f}", f"{run.score['seconds']:.1f}", f"{run.model_bytes + code:,}")
        rows.append((str(run.seed), *scores, *times))
    figures = summary(runs)
    for name, ending in (("mean", ""), ("std", "_std")) if len(runs) > 1 else ():
        both = (f"{figures[f'val_bpb{ending}']:.5f}", f"{figures[f'val_loss{ending}']:.5f}")
        rows.append((name, *both, "", "", "", ""))
    return table(head, rows)


def _decomposition(runs: Sequence[Candidate]) -> str:
    # What was scored after the evaluation that counts is no part of it.
    names = list(_PARTS)[: list(_PARTS).index(runs[0].mode) + 1]
    known = [name for name in names if all(name in run.scores for run in runs)]
    rows = [(str(run.seed), *(f"{run.scores[name]['val_bpb']:.5f}" for name in known)) for run in runs]
    return table(("seed", *(_PARTS[name] for name in known)), rows)
