"""Sequence log-probabilities of a causal LM without its logits; the one function that scoring and training share.

Shapes: B rows, T tokens (right-padded), D hidden width, N completion tokens of the micro-batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bco_ray.errors import ModelError, SpecError
from bco_ray.models.loading import CausalLM
from bco_ray.objective.logprobs import chunked_logps, completion_logps, scored_tokens, sum_by_row

HEAD_CHUNK = 1024
"""Completion tokens projected onto the vocabulary at a time; memory is this times the vocabulary."""


class Policy(nn.Module):
    """Wraps a causal LM; `forward` gives log pi(completion | prompt) per row in float32.

    Rows are right-padded and no attention mask is passed: under causal attention padding on the right cannot reach a
    real token, and both sides of the implicit reward take exactly this path.
    """

    def __init__(self, lm: CausalLM, *, head_chunk: int = HEAD_CHUNK) -> None:
        super().__init__()
        self.lm = lm
        self.head_chunk = head_chunk
        if type(self._head) is not nn.Linear:
            raise SpecError("model.adapter.target_modules: the output head cannot carry an adapter; leave it out.")

    def forward(self, input_ids_BT: Tensor, completion_mask_BT: Tensor) -> Tensor:
        """Summed completion log-probability per row, shape (B,), float32."""
        return self._completion_logps(self._hidden(input_ids_BT), input_ids_BT, completion_mask_BT)

    def score(self, input_ids_BT: Tensor, completion_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """From one forward: log-probabilities (B,) and the mean hidden state over each prompt (B, D), float32."""
        hidden_BTD = self._hidden(input_ids_BT)
        prompt_BT = (completion_mask_BT.cumsum(1) == 0).unsqueeze(-1)
        embedding_BD = (hidden_BTD.float() * prompt_BT).sum(1) / prompt_BT.sum(1).clamp(min=1)
        return self._completion_logps(hidden_BTD, input_ids_BT, completion_mask_BT), embedding_BD

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare with the model's own logits on a few tokens: an architecture may finish them in a way unknown here.

        Raises ModelError on a difference beyond what the dtype explains.
        """
        ids_BT = torch.arange(3, 11, device=self._head.weight.device)[None] % self._head.weight.shape[0]
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        ours_B = self(ids_BT, mask_BT)
        theirs_B = completion_logps(self.lm(input_ids=ids_BT, use_cache=False).logits, ids_BT, mask_BT)
        if not torch.allclose(ours_B, theirs_B, rtol=2e-2 if ours_B.dtype != self._head.weight.dtype else 1e-4):
            raise ModelError(
                f"{type(self._causal_lm).__name__}: its logits are not head(hidden state) as far as is known here "
                f"(log-probability {float(ours_B[0]):.4f} against {float(theirs_B[0]):.4f}); it cannot be trained yet."
            )

    @property
    def _causal_lm(self) -> CausalLM:
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm

    @property
    def _head(self) -> nn.Linear:
        head: nn.Linear = self._causal_lm.get_output_embeddings()
        return head

    def _hidden(self, input_ids_BT: Tensor) -> Tensor:
        hidden: Tensor = self._causal_lm.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        return hidden

    def _completion_logps(self, hidden_BTD: Tensor, input_ids_BT: Tensor, completion_mask_BT: Tensor) -> Tensor:
        hidden_ND, targets_N, row_of_token_N = scored_tokens(hidden_BTD, input_ids_BT, completion_mask_BT)
        head, config = self._head, self._causal_lm.config
        token_logps_N = chunked_logps(
            hidden_ND,
            head.weight,
            targets_N,
            chunk_size=self.head_chunk,
            head_bias_V=head.bias,
            logit_scale=_logit_scale(config),
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        return sum_by_row(token_logps_N, row_of_token_N, input_ids_BT.shape[0])


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits, Granite divides them."""
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(scale) if scale else 1.0 / float(divisor) if divisor else 1.0
