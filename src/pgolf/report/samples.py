"""A few texts that the model writes, always the same for the same weights."""

from __future__ import annotations

import numpy as np
import torch

from pgolf.data.tokenizer import Tokenizer
from pgolf.model.gpt import GPT
from pgolf.report.text_analysis import visible

SAMPLES, TOKENS, TEMPERATURE, SEED = 3, 120, 0.8, 0


def sample_texts(network: GPT, tokenizer: Tokenizer, length: int) -> list[str]:
    """Texts from the beginning of a document on, of at most ``TOKENS`` tokens or one window of ``length``.

    Args:
        network: in evaluation mode.
        tokenizer: of its tokens.
        length: tokens of a window.
    """
    return [_sample(network, tokenizer, min(length, TOKENS), SEED + index) for index in range(SAMPLES)]


def _sample(network: GPT, tokenizer: Tokenizer, length: int, seed: int) -> str:
    dice = np.random.default_rng(seed)
    cache = network.cache(1, length)
    device = network.token_embedding.weight.device
    written = [tokenizer.bos_id]
    while len(written) <= length:
        newest = torch.tensor([written[-1:]], device=device)
        with torch.inference_mode():
            logits = network.project(network.extend(newest, cache)[0, -1]).double().cpu().numpy()
        chances = np.exp((logits - logits.max()) / TEMPERATURE)
        # By the cumulative distribution: a difference in rounding moves no other choice than one on an edge.
        token = int(np.searchsorted(np.cumsum(chances), dice.random() * chances.sum()))
        token = min(token, len(chances) - 1)
        if token == tokenizer.bos_id:
            break
        written.append(token)
    return visible(tokenizer.decode(written[1:]))
