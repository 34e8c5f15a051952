"""A script of the usual shape, in short: a tiny model with ``forward_logits``, training, a sliding evaluation
loop.

    python examples/plain_script.py data/books plain.pt

It knows nothing of pgolf but the layout of the shards and of manifest.json; plain_script_plugin.py lets pgolf
audit it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH, STRIDE, WIDTH, STEPS, BATCH = 64, 32, 48, 60, 16


class PlainModel(nn.Module):
    """A transformer of one layer with one head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward_logits(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, V)."""
        x = self.embedding(input_ids) + self.place.weight[: input_ids.shape[1]]
        query, key, value = self.attention(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mlp(x)
        return F.linear(self.norm(x), self.embedding.weight)


def read_tokens(folder: Path, split: str) -> np.ndarray:
    """All tokens of a split: shards of 256 int32, then uint16 tokens."""
    return np.concatenate(
        [np.fromfile(path, "<u2", offset=1024) for path in sorted(folder.glob(f"*_{split}_[0-9]*.bin"))]
    )


def read_vocabulary(folder: Path) -> int:
    """Pieces of the tokenizer that the shards were made with."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return int(manifest["tokenizer"]["vocab_size"])


def train(tokens: np.ndarray, vocabulary: int) -> PlainModel:
    """A few steps of AdamW."""
    torch.manual_seed(0)
    model = PlainModel(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        starts = generator.integers(0, len(tokens) - LENGTH - 1, BATCH)
        span = torch.from_numpy(
            np.stack([tokens[start : start + LENGTH + 1] for start in starts]).astype(np.int64)
        )
        loss = F.cross_entropy(model.forward_logits(span[:, :-1]).flatten(0, 1), span[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def evaluate_sliding(model: PlainModel, tokens: np.ndarray, byte_counts: np.ndarray) -> tuple[float, Tensor]:
    """Bits per byte and the nats of every target; each window scores the targets that no window before it
    scored.
    """
    stream, scored, done = torch.from_numpy(tokens.astype(np.int64)), [], 0
    for start in range(0, len(tokens) - 1, STRIDE):
        end = min(start + LENGTH, len(tokens) - 1)
        if end > done:
            logits = model.forward_logits(stream[None, start:end])[0]
            scored.append(
                F.cross_entropy(logits, stream[start + 1 : end + 1], reduction="none")[done - start :]
            )
            done = end
    nats = torch.cat(scored).double()
    return float(nats.sum()) / math.log(2) / int(byte_counts.sum()), nats


def load(path: Path) -> PlainModel:
    """The model that ``main`` saved."""
    state = torch.load(path, weights_only=True)
    model = PlainModel(len(state["embedding.weight"]))
    model.load_state_dict(state)
    return model


def main() -> None:
    """Train on a data folder and save the weights."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    tokens = read_tokens(folder, "train")
    torch.save(train(tokens, read_vocabulary(folder)).state_dict(), out)


if __name__ == "__main__":
    main()
