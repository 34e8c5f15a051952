"""The sections of a recipe: every key with its type, range, default and unit.

The model's is in ``model/section.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from pgolf.model.section import ModelSection
from pgolf.runtime.section import Section


def _number_or_table(value: Any) -> str:
    return "table" if isinstance(value, (dict, Section)) else "number"


# A key that takes one number for all groups, or a table of them.
_EITHER = pydantic.Discriminator(_number_or_table)


class DataSection(Section):
    """The text: where it comes from when the command names no data folder, and what is done to it."""

    corpus: Literal["none", "python"] = "none"
    """Built-in corpus: "python" is the English prose of the running Python; "none" needs --data."""
    validation_fraction: float = pydantic.Field(0.02, gt=0, lt=1)
    """Part of the built-in corpus' documents held out for validation (0 to 1)."""
    transform: Literal["none", "caseops"] = "none"
    """"caseops": capitals as operators; other data than the built-in corpus must be prepared so."""


class TrainSection(Section):
    """How long to train, on which batches, with which schedule."""

    steps: int = pydantic.Field(20000, ge=0)
    """Optimizer steps."""
    warmdown_steps: int = pydantic.Field(3000, ge=0)
    """Last steps, over which the learning rate falls to lr_floor."""
    warmdown_fraction: float = pydantic.Field(0.0, ge=0, le=1)
    """The same as a part of training, of the steps or with wallclock_seconds of the time (#1855: 0.85)."""
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    """Shape of that fall."""
    lr_floor: float = pydantic.Field(0.0, ge=0, lt=1)
    """Part of the peak rate below which the fall does not go: max(fall, lr_floor) (#1855: 0.1)."""
    warmup_steps: int = pydantic.Field(20, ge=0)
    """Steps that only prime the kernels; weights, optimizer state and data position are then put back."""
    batch_tokens: int = pydantic.Field(786432, ge=1)
    """Targets per step, over all devices."""
    sequence_length: int = pydantic.Field(2048, ge=1)
    """Targets per training sequence; of length_schedule the longest."""
    length_schedule: tuple[tuple[int, float], ...] = ()
    """[length, part of training it lasts to] (#2014); the rate rises over 32 steps at changes; none: one."""
    micro_batches: int = pydantic.Field(8, ge=1)
    """Parts a step's batch is cut into, over all devices; the data order depends on it."""
    grad_clip: float = pydantic.Field(0.3, ge=0)
    """Largest global norm of the gradient; 0 does not clip."""
    seed: int = pydantic.Field(1337, ge=0)
    """Seed of the initial weights."""
    wallclock_seconds: float = pydantic.Field(0.0, ge=0)
    """Training time after which to stop, with the warmdown fitted into it; 0 trains all steps."""
    validate_every: int = pydantic.Field(1000, ge=0)
    """Steps between validations of the raw weights; 0 validates at the end only."""
    checkpoint_every: int = pydantic.Field(1000, ge=0)
    """Steps between checkpoints to resume from; 0 writes none."""
    compile: Literal[True, False, "max-autotune-no-cudagraphs"] = True
    """Compile the model on CUDA devices, never on the CPU; the name asks for torch's longer search."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard event files into the run's folder tensorboard."""
    wandb: bool = False
    """Also hand the metrics to Weights & Biases; WANDB_MODE=offline keeps them in the run's folder wandb."""

    @property
    def warmdown(self) -> float:
        """Steps of the warmdown, whichever key says so, where the number of steps decides."""
        return self.warmdown_fraction * self.steps or self.warmdown_steps

    @property
    def lengths(self) -> tuple[tuple[int, float], ...]:
        """Sequence lengths in the order of training, each with the part of it (0 to 1) that it lasts to."""
        return self.length_schedule or ((self.sequence_length, 1.0),)

    def length_at(self, progress: float) -> int:
        """Targets per sequence once this part of training (0 to 1) is done."""
        return next((length for length, end in self.lengths if progress <= end), self.lengths[-1][0])


class AdamDecay(Section):
    """Decoupled weight decay of what AdamW updates, by group."""

    embedding: float = pydantic.Field(0.04, ge=0)
    """What learns at embed_lr."""
    scalar: float = pydantic.Field(0.04, ge=0)
    """What learns at scalar_lr."""


_AdamDecay = Annotated[
    Annotated[float, pydantic.Field(ge=0), pydantic.Tag("number")]
    | Annotated[AdamDecay, pydantic.Tag("table")],
    _EITHER,
]


class OptimSection(Section):
    """Learning rates and the like; Muon on matrices, AdamW on the rest."""

    matrix_lr: float = pydantic.Field(0.025, ge=0)
    """Muon's learning rate."""
    embed_lr: float = pydantic.Field(0.035, ge=0)
    """AdamW's learning rate of the embedding tables."""
    scalar_lr: float = pydantic.Field(0.025, ge=0)
    """AdamW's learning rate of vectors and scalars."""
    decoder_lr_mult: float = pydantic.Field(1.0, ge=0)
    """Factor on the learning rate of the layers' parameters in the second (decoder) half."""
    muon_weight_decay: float = pydantic.Field(0.04, ge=0)
    """Decoupled weight decay of the matrices, times the scheduled learning rate."""
    muon_weight_decay_taper: float = pydantic.Field(1.0, ge=0, le=1)
    """Factor on it at the end of training, reached linearly (#1729: 0.5); 1 does not taper."""
    muon_weight_decay_taper_start: float = pydantic.Field(0.7, ge=0, lt=1)
    """Part of training (steps; of the time with wallclock_seconds) after which the taper begins."""
    adam_weight_decay: _AdamDecay = 0.04
    """Decoupled weight decay of everything AdamW updates, or by group: embedding, scalar."""
    muon_momentum: float = pydantic.Field(0.99, ge=0, lt=1)
    """Muon's momentum after its warm-up."""
    muon_momentum_start: float = pydantic.Field(0.92, ge=0, lt=1)
    """Muon's momentum at step 0."""
    muon_momentum_warmup_steps: int = pydantic.Field(1500, ge=0)
    """Steps over which the momentum rises linearly."""
    newton_schulz_steps: int = pydantic.Field(5, ge=1)
    """Iterations of the orthogonalisation."""
    newton_schulz: Literal["quintic", "polar_express"] = "quintic"
    """Their polynomials: one for all (Jordan et al. 2024), or one for each iteration (Amsel et al. 2025)."""
    muon_row_norm: Literal["none", "before", "after", "normuon"] = "none"
    """Rows of equal norm before Newton-Schulz (#1855), after it, or after it by NorMuon's running mean."""
    normuon_beta2: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay of NorMuon's mean of each row's squares (Li et al. 2025)."""
    muon_update_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format each orthogonalised update is rounded to before it is applied."""
    adam_beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    adam_eps: float = pydantic.Field(1e-8, gt=0)
    """AdamW's epsilon."""
    bigram_table_group: Literal["embedding", "scalar"] = "embedding"
    """Whether the bigram table learns at embed_lr or at scalar_lr."""
    train_bigram_scale: bool = True
    """Whether the bigram embedding's scalar is trained or stays at 0.05."""


class AverageSection(Section):
    """Which weights are kept after training."""

    kind: Literal["none", "ema", "swa", "swa_of_ema"] = "ema"
    """Last weights; exponential mean of every step; uniform mean of late ones; uniform mean of late EMAs."""
    decay: float = pydantic.Field(0.997, ge=0, lt=1)
    """EMA: weight of the past at each step."""
    window: float = pydantic.Field(0.0, ge=0, lt=1)
    """EMA: 1 / (1 - decay) as a part of train.steps, instead of decay (#2135: 0.06); 0 uses decay."""
    every: int = pydantic.Field(50, ge=1)
    """SWA: steps between snapshots."""
    start_scale: float = pydantic.Field(0.2, ge=0, le=1)
    """SWA: snapshots are taken while the learning-rate scale is below this."""


class QatSection(Section):
    """Fake quantization late in training: forward passes see rounded weights, updates the exact ones."""

    enabled: bool = False
    """Whether to use it."""
    grid: Literal["int6", "export"] = "int6"
    """Round matrices to int6 per row, as the references do; or every tensor to what compress stores."""
    threshold: float = pydantic.Field(0.1, ge=0, le=1)
    """It starts once the learning-rate scale is below this."""
    soft_round: bool = False
    """Round by a differentiable curve that sharpens (alpha 1 to 16), not straight-through."""
    delay_steps: int = pydantic.Field(0, ge=0, le=1)
    """1 starts it in the step after the crossing (as reference #456 does), 0 in the crossing step itself."""


class BitsSection(Section):
    """Width in bits of the codes of each group of tensors: 2 to 8, or 16 for plain fp16."""

    attention: int = 6
    """Query, key, value and output projections."""
    mlp: int = 6
    """Both matrices of the MLP."""
    embedding: int = 8
    """The token embedding, which is also the output layer."""
    bigram: int = 6
    """The bigram table and its projection."""
    other: int = 8
    """Value embedding, refiner and anything else large enough."""


class ClipStd(Section):
    """Range of a row in its standard deviations, by group of ``compress.bits``."""

    attention: float = pydantic.Field(12.85, gt=0)
    """Query, key, value and output projections."""
    mlp: float = pydantic.Field(12.85, gt=0)
    """Both matrices of the MLP."""
    embedding: float = pydantic.Field(12.85, gt=0)
    """The token embedding."""
    bigram: float = pydantic.Field(12.85, gt=0)
    """The bigram table and its projection."""
    other: float = pydantic.Field(12.85, gt=0)
    """Everything else."""


_ClipStd = Annotated[
    Annotated[float, pydantic.Field(gt=0), pydantic.Tag("number")]
    | Annotated[ClipStd, pydantic.Tag("table")],
    _EITHER,
]


class CompressSection(Section):
    """How the weights become bytes."""

    scheme: Literal["budget", "rowwise"] = "budget"
    """"budget": steps by rate and distortion, to use the whole cap; "rowwise": fixed widths."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """Round with error compensation by second moments of the inputs, or to the nearest code."""
    trellis: bool = True
    """Round on a trellis where the scheme is "budget", rounding "gptq" and the codec "range"."""
    calibration: Literal["train", "self", "none"] = "train"
    """Text for these moments: training text, or text the model writes itself; "none" does without."""
    calibration_tokens: int = pydantic.Field(8192, ge=1)
    """Tokens of it."""
    damping: float = pydantic.Field(0.01, gt=0)
    """Added to the moments' diagonal, as a part of its mean."""
    low_rank: int = pydantic.Field(0, ge=0, le=256)
    """Rank of an 8-bit correction added to every quantized matrix; 0 adds none."""
    effort: int = pydantic.Field(0, ge=0)
    """"budget": round module after module, and tune the rest by so many steps on training text after each."""
    slack: float = pydantic.Field(0.0015, gt=0, lt=1)
    """"budget": how far under the cap is near enough, as a part of the cap."""
    bits: BitsSection = BitsSection()
    clip: Literal["absmax", "percentiles", "row_percentiles", "std"] = "absmax"
    """Range of a row: largest magnitude; best of 15 percentiles per tensor, or 5 per row; clip_std."""
    clip_std: _ClipStd = 12.85
    """"std": range of a row in its standard deviations (#1394), or by group (#1855: mlp 11.5, ...)."""
    int8_percentile: float = pydantic.Field(1.0, gt=0, le=1)
    """Where an 8-bit row clips unless by "std": a quantile of its magnitudes; 1 is the largest."""
    scale_floor: float = pydantic.Field(0.0, ge=0)
    """Smallest range of a row; the references' 1.0 gives smaller rows the same coarse step. 0: none."""
    int8_scale_floor: float = pydantic.Field(0.0, ge=0)
    """The same floor for 8-bit rows."""
    round_with: Literal["stored", "exact"] = "stored"
    """Round codes with the fp16 step size that is stored, or with the float32 one before rounding it."""
    keep_below: int = pydantic.Field(8192, ge=0)
    """Tensors of at most this many entries are not quantized."""
    keep_fp16: tuple[str, ...] = ()
    """Names of further tensors to store as fp16."""
    control_dtype: Literal["float16", "float32"] = "float16"
    """Format of the vectors, gates and scales that are not quantized."""
    prune: float = pydantic.Field(0.0, ge=0, lt=1)
    """Part of the entries, the smallest ones, set to 0 first in matrices of more than 65,536 entries."""
    fallback: Literal["none", "int5_middle_out"] = "int5_middle_out"
    """When over the cap: fail, or code layers with 5 bits, from the middle outward, until it fits."""
    codec: Literal["range", "zstd", "lzma", "none"] = "range"
    """Coder of the sections: the entropy coder, a compressor of bytes, or none."""
    level: tuple[int, ...] = (22,)
    """Level of the compressor, or several to try in order; the first that fits the cap is used."""
    cap: int = pydantic.Field(16_000_000, ge=1)
    """Largest total size in bytes, code included."""

    def deviations(self, group: str) -> float:
        """Standard deviations that "std" clips the rows of a quantizer group at."""
        value = self.clip_std
        return float(getattr(value, group)) if isinstance(value, ClipStd) else value

    @pydantic.field_validator("level", mode="before")
    @classmethod
    def _one_level(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_former_keys(cls, tree: Any) -> Any:
        # Checkpoints, weights and run folders of before hold the whole recipe.
        former = {"vector_mantissa": 10, "prune_above": 65536}.items()
        return {k: v for k, v in tree.items() if (k, v) not in former} if isinstance(tree, dict) else tree


class EvaluateSection(Section):
    """Windows of the evaluation."""

    stride: int = pydantic.Field(64, ge=1)
    """Targets scored per sliding window after the first."""
    batch: int = pydantic.Field(32, ge=0)
    """Windows per forward pass; 0 takes what suits the device's free memory; the ledger records it."""
    compile: Literal[True, False, "reduce-overhead"] = True
    """Compile the passes of long evaluations on CUDA; the name also replays them as CUDA graphs."""
    sequence_length: int = pydantic.Field(0, ge=0)
    """Targets per window; 0 takes train.sequence_length."""


LoraTarget = Literal[
    "query",
    "key",
    "value",
    "output",
    "up",
    "down",
    "beside_attention",
    "beside_mlp",
    "head",
    "vectors",
]


class LoraSection(Section):
    """Low-rank adapters W + alpha / rank * up @ down (Hu et al. 2021), trained by AdamW (docs/ttt.md)."""

    rank: int = pydantic.Field(16, ge=1)
    """Rows of down and columns of up."""
    alpha: float = pydantic.Field(32.0, gt=0)
    """Strength of the adapters; what they add is multiplied by alpha / rank."""
    targets: tuple[LoraTarget, ...] = ("query", "key", "value", "output", "up", "down")
    """Matrices that get one: of each block; past its attention or MLP; the head. And its vectors, whole."""
    per_pass: bool = False
    """Where a loop or shared cores use a matrix several times, each time has an adapter of its own."""
    lr: float = pydantic.Field(0.01, ge=0)
    """Learning rate; ttt.schedule applies to adapters that last, not to those of a document."""
    weight_decay: float = pydantic.Field(0.0, ge=0)
    """Decoupled weight decay of the adapters."""
    beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """AdamW's memory of the gradient; 0 has none."""
    beta2: float = pydantic.Field(0.999, ge=0, lt=1)
    """AdamW's memory of its square."""
    eps: float = pydantic.Field(1e-8, gt=0)
    """Added to the root of AdamW's mean square."""
    epochs: int = pydantic.Field(1, ge=0)
    """Passes over each scored chunk."""
    chunk_tokens: int = pydantic.Field(64, ge=1)
    """Targets between updates, from the stream's start; trained on with a window of context."""
    chunk_schedule: tuple[tuple[int, int], ...] = ()
    """In place of that: [targets, position in the document up to which chunks begin]; the last one's is 0."""
    gradient: Literal["lesson", "scoring"] = "lesson"
    """Learn a chunk in a pass of its own, or by the pass that scored it (half the passes, its context)."""


class PhasedSection(Section):
    """When the base weights under a document's adapters are trained."""

    phases: int = pydantic.Field(3, ge=1)
    """Equal parts of the stream; the base weights train at the end of each if targets are left."""
    share: float = pydantic.Field(1.0, gt=0, le=1)
    """Part of the stream that the phases divide; after it the base weights stay (0 to 1)."""
    text: Literal["all", "phase"] = "all"
    """Train on all text scored so far, or on that of the phase that ends."""


class TttSection(Section):
    """Legal test-time training: each chunk is scored before the weights learn from it."""

    method: Literal["full", "lora", "lora_document", "phased"] = "full"
    """What learns: all weights; lasting adapters; one document's; these, and the base between phases."""
    only: Literal["all", "vectors"] = "all"
    """Of the weights that learn: all; or the control numbers alone, that is scales, mixes, gains."""
    lora: LoraSection = LoraSection()
    phased: PhasedSection = PhasedSection()
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer; its state lives through all chunks."""
    lr: float = pydantic.Field(0.002, ge=0)
    """Highest learning rate."""
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = pydantic.Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    epochs: int = pydantic.Field(10, ge=0)
    """Passes over each scored chunk."""
    chunk_tokens: int = pydantic.Field(32768, ge=1)
    """Targets per chunk."""
    frozen_blocks: int = pydantic.Field(2, ge=0)
    """First layers whose weights (and cores) do not adapt."""
    grad_clip: float = pydantic.Field(1.0, ge=0)
    """Largest global norm of the gradient; 0 does not clip."""
    batch_sequences: int = pydantic.Field(32, ge=1)
    """Sequences per update."""
    schedule: Literal["cosine", "warmup_cosine", "constant"] = "warmup_cosine"
    """Learning rate over the chunks; the warm-up takes the first twentieth of them."""


Expert = Literal["word", "skip", "document", "match"]


class MemorySection(Section):
    """Counts of what followed each context so far, mixed with the model's predictions (docs/memory.md)."""

    enabled: bool = False
    """Mix counts with the model in evaluations with test-time training."""
    order: int = pydantic.Field(6, ge=1, le=24)
    """Tokens of the longest context that is counted; so are all shorter ones."""
    mixing: Literal["logistic", "linear"] = "logistic"
    """Mix log odds bit by bit over a binary tree of the vocabulary, or distributions by a weighted mean."""
    experts: tuple[Expert, ...] = ("word", "skip", "document", "match")
    """Contexts of words, without the last token, within the document; the longest match (logistic only)."""
    stored: Literal["none", "train", "counts", "both"] = "none"
    """What the artifact holds of training text: nothing, text, counts of n-grams, or counts and text."""
    stored_bytes: int = pydantic.Field(0, ge=0)
    """Bytes of the artifact for it; 0 chooses by the loss on held-out training text."""
    max_bytes: int = pydantic.Field(3_600_000_000, ge=32_000_000)
    """Main memory for text and counts; where it is full, contexts that were seen least make room."""


class Sections(Section):
    """All of them: what a recipe holds."""

    name: str = ""
    """Name of the recipe (the file's name without .toml)."""
    description: str = ""
    """What it is, in one line."""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    average: AverageSection = AverageSection()
    qat: QatSection = QatSection()
    compress: CompressSection = CompressSection()
    evaluate: EvaluateSection = EvaluateSection()
    ttt: TttSection = TttSection()
    memory: MemorySection = MemorySection()

    @property
    def evaluation_length(self) -> int:
        """Targets per evaluation window."""
        return self.evaluate.sequence_length or self.train.sequence_length
