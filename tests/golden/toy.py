"""The toy-sized recipes that the references' golden numbers were computed with."""

from __future__ import annotations

from pgolf.recipe.recipe import Recipe, load_recipe

_SHAPE = [
    "model.layers=4",
    "model.width=64",
    "model.heads=4",
    "model.kv_heads=2",
    "model.mlp_hidden=192",
    "model.bigram.buckets=256",
]
_SPECIFIC = {
    "456": ["model.xsa_last=2"],
    "644": [
        "model.rope_dims=8",
        "model.xsa_last=2",
        "model.value_embedding.layers=[2, 3]",
        "model.value_embedding.width=32",
    ],
    "1232": ["model.rope_dims=8", "model.xsa_last=4"],
}
_VARIANT = {
    "shared": ["model.unique_layers=3"],
    "xor": ['model.bigram.hash="xor"'],
    "noxor": ['model.bigram.hash="additive"'],
    "flow": ['model.refiner="flow"'],
    "xsa2": ["model.xsa_last=2"],
}
# Names of the golden logits files and the variants they stand for.
LOGITS = {
    "456": {"base": (), "shared": ("shared",)},
    "644": {"base": ("xor",), "noxor": ("noxor",)},
    "1232": {"base": (), "flow": ("flow",), "xsa2": ("xsa2",)},
}


def logits_recipe(number: str, variant: str) -> Recipe:
    """The recipe behind ``prN/logits_VARIANT``: trained length 1,024, bigram width 32."""
    settings = [*_SHAPE, *_SPECIFIC[number], "model.bigram.width=32"]
    if number != "456":
        settings.append("model.rope_train_length=1024")
    for name in LOGITS[number][variant]:
        settings += _VARIANT[name]
    return load_recipe(f"seed_{number}", settings)


def trajectory_recipe(number: str) -> Recipe:
    """The recipe behind ``prN/trajectory.json``: 20 steps of 8,192 tokens at length 128."""
    return load_recipe(f"seed_{number}", trajectory_settings(number))


def trajectory_settings(number: str) -> list[str]:
    """What that recipe changes in the shipped one."""
    settings = [
        *_SHAPE,
        *_SPECIFIC[number],
        "model.bigram.width=64",
        "train.sequence_length=128",
        "train.batch_tokens=8192",
        "train.steps=20",
        "train.warmdown_steps=12",
        "train.warmup_steps=0",
        "train.validate_every=5",
        "train.seed=1337",
        "evaluate.stride=32",
        "ttt.chunk_tokens=2048",
        "ttt.batch_sequences=4",
    ]
    if number == "456":
        settings += ["average.every=1", "average.start_scale=0.5", "qat.threshold=0.3", "ttt.epochs=1"]
    else:
        settings += ["average.decay=0.8", "ttt.epochs=2"]
    if number == "644":
        # The run set the trained length of the rotary embedding to its own, so it never rescales.
        settings.append("model.rope_train_length=128")
    return settings
