"""What BCO computes, and nothing about where: torch and numpy, no ranks, no processes, no files.

Here the symbols of the paper (arXiv 2404.04656, v2 = ACL 2025 unless marked v1) and our names meet, once:

| paper | here | what it is |
|---|---|---|
| x, y, c | prompt, completion, `labels_B` | one vote; label 1 = thumbs-up, 0 = thumbs-down |
| D+, D- | `chosen_*`, `rejected_*` | the rows with label 1, with label 0 |
| log pi_theta(y given x) | `policy_logps_B` | nats, **sum** over the completion's tokens, from `completion_logps` |
| log pi_ref(y given x) | `reference_logps_B` | the same under the frozen reference; no gradient |
| beta | `beta` | strength of the tie to the reference |
| r_theta(x, y) | `rewards_B` (`implicit_rewards`) | beta * (log pi_theta - log pi_ref) |
| delta, eq. 7 | `delta`, made by `RewardShift` | half the sum of the two class means of r; a constant in the gradient |
| log p+(s) / p-(s) of a source s (ours) | `SourceOffsets` | what a source's delta lies below delta, where asked for |
| r - delta, -(r - delta) | margins, inside `bco_row_losses` | positive = on the side its label says |
| -log sigma(margin) | `bco_row_losses` | loss of one row |
| E_D+[.] + E_D-[.], eq. 8 | `LossSums`, then `window_loss` | sums and counts first, two means last, half of each |
| w(x) = p+(x) / p-(x) (v1) | `density_ratio` -> `weights_B` | moves the thumbs-down prompts onto the thumbs-up ones |
| P(f=1 given x) (v1) | `LogisticModel`, by `fit_logistic` | is this prompt from the thumbs-up set? |
| lambda_D, lambda_U (KTO) | `desirable_weight`, `undesirable_weight` | gain of each class; 0.5 and 0.5 start at log 2 |
| z_0 (KTO) | `z_ref` (`kto_reference_point`) | in units of log-ratio, never below 0 |
| e^-(r_w - delta) + e^(r_l - delta), thm. 3 | `error_term` | what separates BCE from DPO; least at `exact_shift` |
"""

from bco_ray.objective.baselines import apo_zero_unpaired, bce, bco_pair, dpo, kto, kto_reference_point
from bco_ray.objective.density import (
    ClassWeights,
    WeightSums,
    auc,
    auc_standard_error,
    class_weights,
    density_ratio,
    density_ratio_from_logits,
    effective_sample_size,
    mixture_weights,
)
from bco_ray.objective.logistic import LogisticModel, fit_logistic, mean_log_loss
from bco_ray.objective.logprobs import chunked_logps, completion_logps, scored_tokens, sum_by_row, token_logps
from bco_ray.objective.loss import LossSums, bco_loss, bco_row_losses, implicit_rewards, unpaired_loss, window_loss
from bco_ray.objective.losses import LOSSES, Loss, Units, loss_sums
from bco_ray.objective.shift import RewardShift, ShiftSums, decay_per_window, error_term, exact_shift
from bco_ray.objective.shift_tensor import ShiftTensor
from bco_ray.objective.source_offsets import SourceOffsets, source_offsets

__all__ = [
    "LOSSES",
    "ClassWeights",
    "LogisticModel",
    "Loss",
    "LossSums",
    "RewardShift",
    "ShiftSums",
    "ShiftTensor",
    "SourceOffsets",
    "Units",
    "WeightSums",
    "apo_zero_unpaired",
    "auc",
    "auc_standard_error",
    "bce",
    "bco_loss",
    "bco_pair",
    "bco_row_losses",
    "chunked_logps",
    "class_weights",
    "completion_logps",
    "decay_per_window",
    "density_ratio",
    "density_ratio_from_logits",
    "dpo",
    "effective_sample_size",
    "error_term",
    "exact_shift",
    "fit_logistic",
    "implicit_rewards",
    "kto",
    "kto_reference_point",
    "loss_sums",
    "mean_log_loss",
    "mixture_weights",
    "scored_tokens",
    "source_offsets",
    "sum_by_row",
    "token_logps",
    "unpaired_loss",
    "window_loss",
]
