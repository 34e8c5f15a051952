"""The model's section of a recipe: of every feature what is said of it without torch.

A feature is a class here, with its keys, what is wrong with them, and the groups of its parameters; and a
file in ``features/`` that computes it. Reading or checking a recipe imports none of these files, nor torch.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import pydantic

from pgolf.model.shape import Shape
from pgolf.runtime.section import Section

OptimizerGroup = Literal["matrix", "embedding", "scalar", "bigram_table", "bigram_scale"]
QuantizerGroup = Literal["attention", "mlp", "embedding", "bigram", "other", "control"]
# With the plain order before, and fake quantization on and off, as many graphs as the compiler keeps: 8.
_MOST_STAGES = 3


class Row(NamedTuple):
    """The groups of some parameters."""

    pattern: str
    """Regular expression for their whole names."""
    optimizer: OptimizerGroup
    quantizer: QuantizerGroup
    exact: bool = False
    """Kept as float32 where ``compress.control_dtype`` says so, whatever the quantizer group."""
    half: bool = False
    """Matrices are held as bfloat16 on CUDA, as tables are."""


Rows = tuple[Row, ...]


class LoopKeys(Shape):
    """The loop, whose keys are in ``shape.py``."""

    rows: ClassVar[Rows] = (Row(r"loop\.vectors", "scalar", "control"),)

    def problems(self) -> list[str]:
        loop, problems = self.loop, super().problems()
        if not 0 <= loop.first <= loop.last < self.layers:
            problems.append(
                f"model.loop.first {loop.first} to model.loop.last {loop.last} must be a stretch of the "
                f"layers 0 to {self.layers - 1}"
            )
        if loop.passes < 1:
            problems.append(f"model.loop.passes {loop.passes} must be at least 1")
        if not 0 <= loop.start_fraction <= 1:
            problems.append(f"model.loop.start_fraction {loop.start_fraction} must be 0 to 1")
        if loop.curriculum and loop.curriculum[-1] != loop.passes:
            problems.append(
                f"model.loop.curriculum {list(loop.curriculum)} must end at model.loop.passes {loop.passes}"
            )
        if any(not 1 <= passes <= loop.passes for passes in loop.curriculum):
            problems.append(
                f"model.loop.curriculum {list(loop.curriculum)} must name passes from 1 to model.loop.passes"
            )
        if len(loop.curriculum) > _MOST_STAGES:
            problems.append(
                f"model.loop.curriculum must have at most {_MOST_STAGES} entries: each is compiled by itself"
            )
        return problems


class ExclusiveKeys(Shape):
    """Keys of exclusive self-attention."""

    xsa_last: int = pydantic.Field(0, ge=0)
    """Exclusive self-attention in this many of the last (unique) layers."""

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.xsa_last > self.cores:
            problems.append(f"model.xsa_last {self.xsa_last} exceeds the {self.cores} (unique) layers")
        return problems


class SmearKeys(Shape):
    """Keys of the smear."""

    smear: bool = True
    """Blend each position's embedding with the previous one by a learned gate per channel."""

    rows: ClassVar[Rows] = (Row(r"smear\.gate", "scalar", "control"),)


class WindowSmearSection(Section):
    """Share of the previous position's embedding, decided by a window of the position's own."""

    width: int = pydantic.Field(0, ge=0)
    """Channels of the embedding that decide, the first ones; 0 leaves it out."""


class WindowSmearKeys(Shape):
    """Keys of the windowed smear."""

    window_smear: WindowSmearSection = WindowSmearSection()

    rows: ClassVar[Rows] = (Row(r"window_smear\.(gate\.weight|share)", "scalar", "control"),)

    def problems(self) -> list[str]:
        width, problems = self.window_smear.width, super().problems()
        if width > self.width:
            problems.append(f"model.window_smear.width {width} exceeds model.width {self.width}")
        return problems


class BigramSection(Section):
    """Hashed embedding of (previous, current) token pairs."""

    buckets: int = pydantic.Field(0, ge=0)
    """Rows of the hashed table; 0 leaves the bigram embedding out."""
    width: int = pydantic.Field(128, ge=1)
    """Columns of the table, projected to the model width."""
    hash: Literal["xor", "additive"] = "xor"
    """"xor": (36313*cur ^ 27191*prev) mod (buckets-1), scaled; "additive": (1009*prev + cur) mod buckets."""
    always_project: bool = False
    """Keep the projection even where the table is as wide as the model."""


class BigramKeys(Shape):
    """Keys of the bigram embedding."""

    bigram: BigramSection = BigramSection()

    rows: ClassVar[Rows] = (
        Row(r"bigram\.table\.weight", "bigram_table", "bigram", exact=True),
        Row(r"bigram\.project\.weight", "matrix", "bigram", exact=True),
        Row(r"bigram\.scale", "bigram_scale", "control"),
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.bigram.buckets == 1:
            problems.append("model.bigram.buckets must be 0 (none) or at least 2")
        return problems


class ValueEmbeddingSection(Section):
    """Token identity added to the attention values of some layers."""

    layers: tuple[int, ...] = ()
    """0-based layers that receive it; empty leaves it out."""
    width: int = pydantic.Field(128, ge=1)
    """Columns of the shared table, projected to the width of the values where they differ."""


class ValueEmbeddingKeys(Shape):
    """Keys of the value embedding."""

    value_embedding: ValueEmbeddingSection = ValueEmbeddingSection()

    rows: ClassVar[Rows] = (
        Row(r"value_embedding\.(table|project)\.weight", "scalar", "other", exact=True),
        Row(r"value_embedding\.(scale|layer_scales)", "scalar", "control"),
    )

    def problems(self) -> list[str]:
        layers, problems = self.value_embedding.layers, super().problems()
        if outside := [layer for layer in layers if not 0 <= layer < self.layers]:
            problems.append(f"model.value_embedding.layers {outside} are outside 0 to {self.layers - 1}")
        if len(set(layers)) != len(layers):
            problems.append("model.value_embedding.layers names a layer twice")
        return problems


class ValueResidualKeys(Shape):
    """Keys of the value residual."""

    value_residual: bool = False
    """Mix the first layer's values into those of every later layer."""

    rows: ClassVar[Rows] = (Row(r"cores\.\d+\.attention\.value_mix", "scalar", "control"),)


class GatedAttentionKeys(Shape):
    """Keys of gated attention."""

    gated_attention: bool = False
    """Multiply each head's output by a sigmoid gate computed from the layer's input."""

    rows: ClassVar[Rows] = (Row(r"cores\.\d+\.attention\.gate\.(weight|bias)", "scalar", "control"),)


class SkipKeys(Shape):
    """Keys of the skips."""

    skip: Literal["none", "add", "gated"] = "add"
    """U-Net skips: off; x + w*skip; g*x + (1-g)*w*skip with a learned gate."""

    rows: ClassVar[Rows] = (Row(r"skips\.(weight|gate)", "scalar", "control"),)


class DenseSection(Section):
    """Dense cross-layer mixing: earlier outputs come back, each position deciding how much of each."""

    every: int = pydantic.Field(0, ge=0)
    """A mixture stands before each layer whose index is a multiple of this, from this on; 0 leaves it out."""
    window: int = pydantic.Field(4, ge=2)
    """Streams that are mixed: the beginning and the newest outputs of layers."""


class DenseKeys(Shape):
    """Keys of the dense cross-layer mixing."""

    dense: DenseSection = DenseSection()

    rows: ClassVar[Rows] = (
        Row(r"dense\.mixtures\.\d+\.hidden\.weight", "scalar", "other"),
        Row(r"dense\.mixtures\.\d+\.shares\.(weight|bias)", "scalar", "control"),
    )

    def problems(self) -> list[str]:
        every, problems = self.dense.every, super().problems()
        if every >= self.layers:
            problems.append(
                f"model.dense.every {every} is not less than model.layers {self.layers}: nothing is mixed"
            )
        return problems


class LanesSection(Section):
    """Attention and MLP of the last layers read and write side by side, not one after the other."""

    mode: Literal["none", "one", "two"] = "none"
    """One after the other; side by side in one stream; side by side with a lane for each of them."""
    start: int = pydantic.Field(0, ge=0)
    """First layer of them, 0-based."""
    init: Literal["equal", "split"] = "equal"
    """"two": both write 1 into both lanes at first; or 1.3 into their own and 0.7 into the other."""
    output: Literal["mean", "mlp"] = "mean"
    """"two": what goes on behind the last layer, the mean of the lanes or the MLP's."""


class LanesKeys(Shape):
    """Keys of the lanes."""

    lanes: LanesSection = LanesSection()

    rows: ClassVar[Rows] = (Row(r"lanes\.(keep|shares)", "scalar", "control"),)

    def problems(self) -> list[str]:
        lanes, loop, problems = self.lanes, self.loop, super().problems()
        if lanes.mode != "none" and lanes.start >= self.layers:
            problems.append(
                f"model.lanes.start {lanes.start} is not one of the layers 0 to {self.layers - 1}"
            )
        elif lanes.mode == "two" and loop.passes > 1 and lanes.start <= loop.last:
            problems.append(
                f"model.lanes.start {lanes.start} must come after model.loop.last {loop.last}: two lanes do "
                "not become one again"
            )
        return problems


class RefinerKeys(Shape):
    """Keys of the refiner."""

    refiner: Literal["none", "flow"] = "none"
    """Refinement of the final hidden states; "flow" is the FlowRefiner of reference #1232."""
    refiner_latent: int = pydantic.Field(64, ge=1)
    """Width of the refiner's latent space."""
    refiner_hidden: int = pydantic.Field(256, ge=1)
    """Width of the hidden layer of the refiner's velocity network."""

    rows: ClassVar[Rows] = (
        Row(r"refiner\.(down|hidden|velocity|up)\.weight", "scalar", "other", half=True),
        Row(r"refiner\.(gate|hidden\.bias|velocity\.bias)", "scalar", "control"),
    )


class AsymmetricCapKeys(Shape):
    """Keys of the learned softcaps."""

    asymmetric_softcap: bool = False
    """Learn a softcap of its own for positive and for negative logits; both begin at softcap."""

    rows: ClassVar[Rows] = (Row(r"cap\.offset", "scalar", "control"),)


class WindowGateSection(Section):
    """Gate of each head's output, computed from a window of the layer's input."""

    width: int = pydantic.Field(0, ge=0)
    """Channels of the input that it reads, the first ones; 0 leaves it out."""
    alpha: float = pydantic.Field(0.5, gt=0)
    """Factor inside: gain * sigmoid(alpha * W u)."""
    gain: float = pydantic.Field(1.0, gt=0)
    """Factor outside: W begins at 0, so heads begin at half of it; 2 lets everything through at first."""


class WindowGateKeys(GatedAttentionKeys):
    """Keys of the windowed attention gate."""

    window_gate: WindowGateSection = WindowGateSection()

    rows: ClassVar[Rows] = (Row(r"cores\.\d+\.attention\.window_gate\.weight", "scalar", "other"),)

    def problems(self) -> list[str]:
        width, problems = self.window_gate.width, super().problems()
        if width > self.width:
            problems.append(f"model.window_gate.width {width} exceeds model.width {self.width}")
        if width and self.gated_attention:
            problems.append(
                "model.window_gate and model.gated_attention gate the same outputs; leave one out"
            )
        return problems


class ModelSection(  # pydantic lists the keys of the last base first.
    WindowGateKeys,
    AsymmetricCapKeys,
    RefinerKeys,
    LanesKeys,
    DenseKeys,
    SkipKeys,
    GatedAttentionKeys,
    ValueResidualKeys,
    ValueEmbeddingKeys,
    BigramKeys,
    WindowSmearKeys,
    SmearKeys,
    ExclusiveKeys,
    LoopKeys,
):
    """The architecture."""

    qk_gain: float = pydantic.Field(1.5, gt=0)
    """Initial value of the per-head gain on the normalised queries."""
    softcap: float = pydantic.Field(30.0, gt=0)
    """Logits are softcap * tanh(z / softcap)."""
    document_mask: bool = False
    """A document (BOS begins one) sees nothing of those before it, in training and in every evaluation."""
    embedding_init_std: float = pydantic.Field(0.005, gt=0)
    """Standard deviation of the initial token embedding."""


FEATURE_ROWS: Rows = tuple(row for keys in ModelSection.__mro__ for row in vars(keys).get("rows", ()))
