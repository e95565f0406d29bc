"""Sequence log-probabilities of a causal LM without its logits; the one function that scoring and training share.

Shapes: B rows of a Pack, N tokens, K scored tokens, D hidden width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bco_ray.errors import ModelError, SpecError
from bco_ray.models.attention import use_packed_attention
from bco_ray.models.loading import CausalLM
from bco_ray.models.packing import LEAST_TOKENS, Pack, lay_out
from bco_ray.objective.logprobs import chunked_logps, completion_logps, sum_by_row

LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
"""Numbers in one chunk of logits: small enough to forget on a GPU, close to the caches of a CPU."""


class Policy(nn.Module):
    """Wraps a causal LM; `forward` gives log pi(completion | prompt) per row in float32.

    `head_chunk`: completion tokens projected onto the vocabulary at a time; 0: as many as LOGITS_AT_ONCE allows.
    Rows never see each other and are never padded, and both sides of the implicit reward take exactly this path.
    """

    def __init__(self, lm: CausalLM, *, head_chunk: int = 0) -> None:
        super().__init__()
        self.lm = lm
        self._head_chunk = head_chunk
        if not isinstance(self.head, nn.Linear) or hasattr(self.head, "base_layer"):
            raise SpecError("model.adapter.target_modules: the output head cannot carry an adapter; leave it out.")
        self.plain_attention = use_packed_attention(self.causal_lm)

    def forward(self, pack: Pack) -> Tensor:
        """Summed completion log-probability per row, shape (B,), float32."""
        return self._completion_logps(self._hidden(pack), pack)

    def score(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """From one forward: log-probabilities (B,) and the mean hidden state over each prompt (B, D), float32."""
        hidden_ND = self._hidden(pack)
        prompts = zip(torch.split(hidden_ND, list(pack.lengths)), pack.prompt_lengths, strict=False)
        embedding_BD = torch.stack([row_LD[:length].float().mean(0) for row_LD, length in prompts])
        return self._completion_logps(hidden_ND, pack), embedding_BD

    @torch.no_grad()
    def check(self) -> None:
        """Compare with the model's own logits on two short rows: an architecture may do what is unknown here.

        Raises ModelError on a difference beyond what the dtype explains: its head finishes the logits in a way of its
        own, or something in it lets packed rows see each other.
        """
        ids = [np.arange(3, 11), np.arange(5, 30)]
        ids = [row % self.head.weight.shape[0] for row in ids]
        ours_B = self(lay_out(ids, [np.ones(len(row), bool) for row in ids]).to(self.head.weight.device))
        theirs_B = torch.cat([self._plain_logps(torch.from_numpy(row)[None]) for row in ids])
        if not torch.allclose(ours_B, theirs_B, rtol=2e-2 if ours_B.dtype != self.head.weight.dtype else 1e-4):
            raise ModelError(
                f"{type(self.causal_lm).__name__}: its logits are not head(hidden state) as far as is known here, or "
                f"rows laid end to end see each other (log-probabilities {ours_B.tolist()} against "
                f"{theirs_B.tolist()}); it cannot be trained yet."
            )

    @property
    def causal_lm(self) -> CausalLM:
        """The transformers model, without peft's wrapping."""
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm

    @property
    def head(self) -> nn.Linear:
        """Hidden states to logits. Only its weight and bias are read here, in chunks; it is never called."""
        head: nn.Linear = self.causal_lm.get_output_embeddings()
        return head

    def _hidden(self, pack: Pack) -> Tensor:
        out = self.causal_lm.base_model(
            input_ids=pack.input_ids_N[None],
            position_ids=pack.position_ids_N[None],
            use_cache=False,
            row_lengths=pack.lengths,
            row_bounds=pack.bounds,
        )
        hidden_ND: Tensor = out.last_hidden_state[0]
        return hidden_ND

    def _completion_logps(self, hidden_ND: Tensor, pack: Pack) -> Tensor:
        config = self.causal_lm.config
        token_logps_K = chunked_logps(
            hidden_ND[pack.source_K],
            self.head.weight,
            pack.target_K,
            chunk_size=self._head_chunk or tokens_per_chunk(config.get_text_config().vocab_size, hidden_ND.device.type),
            head_bias_V=self.head.bias,
            logit_scale=_logit_scale(config),
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        return sum_by_row(token_logps_K, pack.row_of_token_K, pack.rows + 1)[: pack.rows]

    def _plain_logps(self, ids_1T: Tensor) -> Tensor:
        ids_1T = ids_1T.to(self.head.weight.device)
        self.causal_lm.set_attn_implementation(self.plain_attention)
        try:
            logits = self.lm(input_ids=ids_1T, use_cache=False).logits
        finally:
            use_packed_attention(self.causal_lm)
        return completion_logps(logits, ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))


def tokens_per_chunk(vocabulary: int, device: str) -> int:
    """How many tokens are projected onto the vocabulary at a time."""
    return max(LEAST_TOKENS, LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE["cuda"]) // vocabulary)


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits, Granite divides them."""
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(scale) if scale else 1.0 / float(divisor) if divisor else 1.0
