"""pgolf's models in lm-evaluation-harness: importing this makes them known to it under the name "pgolf".

    python -m pgolf.export.harness --model pgolf --model_args path=runs/first --tasks my_task --include_path .

The command takes what `lm_eval` takes. A text is scored as one document after BOS, in the recipe's sliding
windows, on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer, without_memory
from pgolf.evaluate.protocol import Recorded
from pgolf.generate.model import Model

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    if __name__ != "__main__":
        raise
    remedy = 'pip install "pgolf[lm-eval]"'
    print(f"pgolf: error: the package {error.name} is not installed; {remedy}", file=sys.stderr)
    sys.exit(2)


@register_model("pgolf")
class PgolfLM(LM):
    """A run, artifact or weights file.

    Args:
        path: as for ``pgolf.load``.
        tokenizer: its file, where it is not found otherwise.
        mode: how ``loglikelihood_rolling`` scores a whole text: standard, sliding or ttt.
        memory: it mixes with the recipe's memory there; only in mode "ttt".
        device: the harness names one; this and the next two mean nothing here.
        batch_size: texts are scored one by one.
        max_batch_size: see there.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        mode: str | None = None,
        memory: bool = False,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        self.model = Model(Path(path), None if tokenizer is None else Path(tokenizer))
        self.mode, self.memory = mode, memory
        self.scorer = build_scorer(self.model.network, without_memory(self.model.recipe), "sliding")

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context, negative; and whether the model would write it."""
        return [self._continuation(*request.args) for request in tqdm(list(requests), disable=disable_tqdm)]

    def _continuation(self, context: str, text: str) -> tuple[float, bool]:
        # A token may begin with a space: one at the end of the context belongs to what follows.
        bare = context.rstrip()
        before = self.model.encode(bare)
        tokens = np.array(self.model.encode(context + text), dtype=np.uint16)
        targets = tokens[len(before) :]
        if not len(targets):
            return 0.0, True
        self.scorer.begin(int(tokens[0]), len(tokens) - 1)
        if len(before) > 1:
            self.scorer.receive(Recorded(0, tokens[1 : len(before)]))
        wanted = torch.from_numpy(targets.astype(np.int64))
        rows = self.scorer.distributions(wanted[:-1])
        nats = rows.gather(1, wanted[:, None]).double().sum()
        return float(nats), bool((rows.argmax(1) == wanted).all())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text, negative: what ``Model.score`` says of it."""
        return [self._text(*request.args) for request in tqdm(list(requests), disable=disable_tqdm)]

    def _text(self, text: str) -> float:
        if len(self.model.encode(text)) == 1:
            return 0.0
        scored = self.model.score(text, self.mode, memory=self.memory)
        return -scored.val_loss * scored.targets

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context: the likeliest tokens, without a temperature."""
        return [self._written(*request.args) for request in tqdm(list(requests), disable=disable_tqdm)]

    def _written(self, context: str, how: dict[str, Any]) -> str:
        until: str | Iterable[str] = how.get("until") or ()
        sampled = how.get("do_sample", how.get("temperature", 0) > 0)
        return self.model.generate(
            context,
            max_tokens=how.get("max_gen_toks", 256),
            temperature=how.get("temperature", 1.0) if sampled else 0.0,
            top_k=how.get("top_k"),
            top_p=how.get("top_p", 1.0),
            seed=0,
            stop=[stop for stop in ([until] if isinstance(until, str) else until) if stop],
        )


if __name__ == "__main__":
    try:
        cli_evaluate()
    except PgolfError as error:
        print(f"pgolf: error: {error}", file=sys.stderr)
        sys.exit(2)
