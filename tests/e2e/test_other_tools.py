"""Models that leave for other tools, and models that come from them, as a user types it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pgolf as library
from tests.e2e.conftest import pgolf, pgolf_json, sentences

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
pytestmark = pytest.mark.usefixtures("code_of_folders")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random GPT-2 and data in its tokens."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "text.txt").write_text("\n\n".join(sentences(200)))
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(sentences(200), trainer)
    save(folder / "gpt", own, gpt(own.get_vocab_size() + 4))
    pgolf(
        *("data", "prepare", "--text", "text.txt", "--split", "blank-lines", "--val-fraction", "0.2"),
        *("--tokenizer", "gpt/tokenizer.json", "--out", "data"),
        cwd=folder,
    )
    return folder


def gpt(size: int) -> Any:
    """A GPT-2 whose output has four rows more than there are tokens."""
    torch.manual_seed(0)
    how = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=size, bos_token_id=0, eos_token_id=0, **how)
    )


def save(folder: Path, tokenizer: Any, model: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_an_exported_run_gives_its_score_by_way_of_transformers(workshop: Path) -> None:
    made = pgolf_json("export", "run", "-o", "exported", cwd=workshop)
    assert made["files"]["model.safetensors"] > 4 * made["parameters"] and "config.json" in made["files"]
    ours = pgolf_json("eval", "run", "--data", "data", "--mode", "sliding", cwd=workshop)
    command = ("eval", "exported", "--data", "data", "--stride", "8", "--trust-remote-code")
    theirs = pgolf_json(*command, cwd=workshop)
    assert theirs["val_bpb"] == pytest.approx(ours["val_bpb"], rel=1e-6)
    assert (theirs["targets"], theirs["bytes"]) == (ours["targets"], ours["bytes"])
    done = pgolf("eval", "exported", "--data", "data", cwd=workshop, check=2)
    assert "brings code of its own, which is not run unless --trust-remote-code says so" in done.stderr
    done = pgolf("export", "run", "-o", "exported", cwd=workshop, check=2)
    assert "exported: already exists" in done.stderr


def test_a_foreign_model_is_scored_proved_and_audited(place: Path) -> None:
    scored = pgolf_json("eval", "gpt", "--data", "data", "--ledger", "ledger.jsonl", cwd=place)
    verified = pgolf_json("verify-ledger", "ledger.jsonl", "--data", "data", "--artifact", "gpt", cwd=place)
    assert verified["problem"] is None and verified["val_bpb"] == scored["val_bpb"]
    # By hand, of the first window.
    first = library.evaluate(place / "gpt", place / "data", limit_targets=64)
    tokens = torch.from_numpy(_validation(place).astype("int64"))
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "gpt").eval()
    with torch.inference_mode():
        logits = model(tokens[None, :64]).logits[0, :, :300]
    wanted = torch.nn.functional.cross_entropy(logits, tokens[1:65])
    assert first.val_loss == pytest.approx(float(wanted), rel=1e-5)
    strict = pgolf_json(
        "eval", "gpt", "--data", "data", "--mode", "standard", "--limit-targets", "70", "--strict", cwd=place
    )
    block = library.evaluate(place / "gpt", place / "data", mode="standard", limit_targets=70)
    assert strict["val_bpb"] == pytest.approx(block.val_bpb, rel=1e-6) != first.val_bpb
    found = pgolf_json("audit", "gpt", "--data", "data", "--targets", "200", cwd=place)
    assert found["violated"] == [] and found["subject"] == "GPT2LMHeadModel sliding"
    assert (
        found["audited"]["artifact_sha256"]
        == json.loads((place / "ledger.jsonl").read_text().splitlines()[0])["artifact"]
    )
    proved = pgolf_json("audit", "gpt", "--data", "data", "--targets", "70", "--by-decoding", cwd=place)
    assert proved["ok"]


def _validation(place: Path) -> Any:
    from pgolf.data.dataset import open_dataset

    return open_dataset(place / "data").validation_text(64).tokens


def test_what_is_no_causal_model_of_this_data_is_one_line(place: Path, tmp_path: Path) -> None:
    own = tokenizers.Tokenizer.from_file(str(place / "gpt" / "tokenizer.json"))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=300, max_position_embeddings=64, **sizes)
    save(tmp_path / "bert", own, transformers.BertForMaskedLM(bert))
    save(tmp_path / "headless", own, transformers.BertModel(bert))
    save(tmp_path / "small", own, gpt(299))
    other = tokenizers.Tokenizer.from_str(own.to_str().replace("<|endoftext|>", "<|bos|>"))
    save(tmp_path / "other", other, gpt(300))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "t5", "architectures": ["Unknown"]}')
    own.save(str(tmp_path / "strange" / "tokenizer.json"))
    save(tmp_path / "cut", own, gpt(300))
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    save(tmp_path / "unknown", own, gpt(300))
    (tmp_path / "unknown" / "tokenizer.json").unlink()
    for name, value in (("nothing", 0), ("words", "128")):
        save(tmp_path / name, own, gpt(300))
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"n_positions": value}))
    save(tmp_path / "unfit", own, gpt(300))
    config = json.loads((tmp_path / "unfit" / "config.json").read_text())
    (tmp_path / "unfit" / "config.json").write_text(json.dumps(config | {"n_positions": 48}))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    for name, words in {
        "bert": "is no causal model: its predictions depend on the tokens that follow",
        "headless": "is no whole causal model: tensor",
        "small": "predicts 299 tokens, but",
        "other": "has another tokenizer (SHA-256",
        "strange": "transformers opens no causal model there",
        "cut": "transformers opens no causal model there (SafetensorError",
        "unknown": "holds no tokenizer.json",
        "nothing": "is 0, no number of tokens",
        "words": "transformers opens no causal model there",
        "unfit": "tensor transformer.wpe.weight is 64x",
        "none": "names no causal model (architectures)",
    }.items():
        for command in ("eval", "audit"):
            done = pgolf(command, tmp_path / name, "--data", place / "data", cwd=tmp_path, check=2)
            assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    for option, words in {
        ("--mode", "ttt"): "--mode ttt: gpt is scored as it is; use standard or sliding",
        ("--set", "evaluate.sequence_length=65"): "gpt reads at most 64 tokens at once",
        ("--set", "ttt.epochs=1"): "only keys of evaluate can be changed here",
    }.items():
        done = pgolf("eval", "gpt", "--data", "data", *option, cwd=place, check=2)
        assert words in done.stderr
    done = pgolf("eval", "gpt", cwd=place, check=2)
    assert "pass --data DIR, made by `pgolf data prepare` with --tokenizer gpt/tokenizer.json" in done.stderr


def test_an_absent_package_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = pgolf("eval", "gpt", "--data", "data", cwd=place, check=2)
    wanted = 'gpt: needs the package transformers, which is not installed; pip install "pgolf[export]"'
    assert wanted in done.stderr


TASKS = {
    "whole": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "The cat",
        "doc_to_choice": ["sees a quiet river", "qqqq zzzz xxxx"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{text[:9]}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_lm_evaluation_harness_scores_as_pgolf_does(workshop: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from pgolf.export import harness

    texts = sentences(6, seed=5)
    (tmp_path / "texts.json").write_text(json.dumps([{"text": text} for text in texts]))
    for name, about in TASKS.items():
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.json")}},
        }
        task = {"task": name, "test_split": "test", **data, **about}
        if name == "whole":
            task["metric_list"] = [{"metric": "bits_per_byte"}]
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    found = simple_evaluate(
        model="pgolf",
        model_args={
            "path": str(workshop / "model.pgolf"),
            "tokenizer": str(workshop / "data/tokenizer.model"),
        },
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    model = library.load(workshop / "model.pgolf", workshop / "data/tokenizer.model")
    scores = [model.score(text) for text in texts]
    bits = sum(score.val_loss * score.targets for score in scores) / math.log(2)
    results = found["results"]
    assert results["whole"]["bits_per_byte,none"] == pytest.approx(bits / sum(len(t.encode()) for t in texts))
    assert results["choice"]["acc,none"] == 1.0
    sample = found["samples"]["written"][0]
    assert sample["resps"][0][0] == model.generate(texts[0][:9], max_tokens=8, temperature=0, stop="\n")
    # A continuation costs what it adds to the text, wherever the windows lie.
    own = harness.PgolfLM(str(workshop / "model.pgolf"), str(workshop / "data/tokenizer.model"))
    context, text = " ".join(texts[:3]), " " + texts[3]
    (nats, likely), *_ = own.loglikelihood([_Request(context + " ", text[1:])], disable_tqdm=True)
    whole, before = model.score(context + text), model.score(context)
    assert nats == pytest.approx(before.val_loss * before.targets - whole.val_loss * whole.targets, rel=1e-4)
    assert not likely and own.loglikelihood([_Request("a", "")], disable_tqdm=True) == [(0.0, True)]


class _Request:
    def __init__(self, *arguments: str) -> None:
        self.args = arguments
