"""A model as ``transformers`` wants it. An exported folder has this with all that it uses, in one file.

Every token of a call is read anew: there is no cache of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from pgolf.generate.sampling import window_start
from pgolf.model.gpt import GPT
from pgolf.model.section import ModelSection


class PgolfConfig(PretrainedConfig):
    """``architecture`` is the recipe's model section, ``max_position_embeddings`` the tokens of a window."""

    model_type = "pgolf"


class PgolfForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits of every next token, of at most a window of tokens."""

    config_class = PgolfConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.window: int = config.max_position_embeddings
        self.network = GPT(ModelSection.model_validate(config.architecture))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> Any:
        """Logits (B, T, V) float32, or of the last positions; with ``labels`` the mean loss.

        Args:
            input_ids: (B, T) int64; a document begins with BOS.
            attention_mask: 0 where a row has padding, at its beginning or end; logits there mean nothing.
            labels: (B, T), the ``input_ids`` again; -100 where nothing is to be learned.
            logits_to_keep: of so many last positions; 0 for all.
        """
        batch, length = input_ids.shape
        if length > self.window:
            raise ValueError(f"{length} tokens: the model reads at most {self.window} at once")
        kept = length if labels is not None else min(int(logits_to_keep), length) or length
        if attention_mask is None or bool(attention_mask.all()):
            logits = self.network.project(self.network.hidden(input_ids, self.window, kept))
        else:
            # Row by row without the padding: features look at the tokens before, which it must not be.
            size = self.network.config.vocab_size
            logits = torch.zeros(batch, length, size, device=input_ids.device)
            for row, mask in enumerate(attention_mask.bool()):
                hidden = self.network.hidden(input_ids[row, mask][None], self.window)
                logits[row, mask] = self.network.project(hidden)[0]
            logits = logits[:, length - kept :]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """All tokens so far; past the window, the last ones, as `pgolf generate` takes them."""
        begin = window_start(input_ids.size(1), self.window)
        mask = None if attention_mask is None else attention_mask[:, begin:]
        return {"input_ids": input_ids[:, begin:], "attention_mask": mask, "logits_to_keep": 1}

    def get_input_embeddings(self) -> nn.Embedding:
        """The tokens' embedding, which makes the logits as well."""
        return self.network.token_embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: ``GPT`` sets its weights when it is made."""
