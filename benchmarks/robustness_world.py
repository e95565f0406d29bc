"""What `robustness.py` adds to `alignment_world`: answers that have lengths, and people who vote more than others.

Shapes as there.
"""

from __future__ import annotations

import torch
from alignment_world import SPREAD, A, D, Votes, World
from scipy.stats import spearmanr
from torch import Tensor

USUAL_TOKENS, LENGTH_SPREAD = 100, 0.6
LIGHT_USERS, HEAVY_USERS, HEAVY_VOTES = 800, 10, 480
LIGHT_VOTES = 4
"""On average, of a light user: 3,200 votes of theirs beside 4,800 of ten people."""


class LongWorld(World):
    """Each answer has a length, which its value goes with by `correlation` (0: not at all)."""

    def __init__(self, seed: int, correlation: float = 0.0) -> None:
        super().__init__(seed)
        random = torch.Generator().manual_seed(seed + 5)
        self._long = torch.randn(D, A, generator=random) / D**0.5
        self._usual = torch.randn(A, generator=random)
        self._correlation = correlation

    def longness(self, prompt_ND: Tensor) -> Tensor:
        """(N, A), standard deviation 1: the logarithm of the length, less its mean, by its spread."""
        usual_A = self._usual - self._usual.mean()
        own_NA = (prompt_ND @ self._long + usual_A) / (1 + usual_A.var(unbiased=False)) ** 0.5
        of_value = self._correlation
        return of_value * self.value(prompt_ND) / SPREAD + (1 - of_value**2) ** 0.5 * own_NA

    def tokens(self, prompt_ND: Tensor) -> Tensor:
        """(N, A), whole numbers."""
        return (USUAL_TOKENS * torch.exp(LENGTH_SPREAD * self.longness(prompt_ND))).round().clamp(min=1).long()

    def pulled_votes(self, count: int, seed: int, pull: float) -> Votes:
        """Thumbs-up with probability sigmoid(r* + pull * longness)."""
        random = torch.Generator().manual_seed(seed)
        prompt_ND = torch.randn(count, D, generator=random)
        answer_N = torch.multinomial(self.reference_logps(prompt_ND).exp(), 1, generator=random)[:, 0]
        liked_NA = self.value(prompt_ND) + pull * self.longness(prompt_ND)
        chance_N = torch.sigmoid(liked_NA.gather(1, answer_N[:, None])[:, 0])
        return Votes(prompt_ND, answer_N, torch.rand(count, generator=random) < chance_N)

    def length_correlation(self, logps_NA: Tensor, prompt_ND: Tensor) -> float:
        """Of reward and length, by rank, over answers of the reference: as `bco evaluate` measures it."""
        reference_NA = self.reference_logps(prompt_ND)
        answer_N1 = torch.multinomial(reference_NA.exp(), 1, generator=torch.Generator().manual_seed(0))
        reward_N1 = (logps_NA - reference_NA).gather(1, answer_N1)
        return float(spearmanr(reward_N1[:, 0], self.tokens(prompt_ND).gather(1, answer_N1)[:, 0]).statistic)

    def mean_tokens(self, logps_NA: Tensor, prompt_ND: Tensor) -> float:
        """Of the policy's answers, over that of the reference's."""
        tokens_NA, reference_NA = self.tokens(prompt_ND), self.reference_logps(prompt_ND)
        return float((logps_NA.exp() * tokens_NA).sum(1).mean() / (reference_NA.exp() * tokens_NA).sum(1).mean())


def few_voters(world: World, other: World, seed: int) -> tuple[Votes, Tensor]:
    """A log in which HEAVY_USERS cast three votes of five, by the taste of `other`; and who cast which vote, (N,)."""
    random = torch.Generator().manual_seed(seed)
    light_N = torch.randint(LIGHT_USERS, (LIGHT_USERS * LIGHT_VOTES,), generator=random)
    heavy_N = LIGHT_USERS + torch.arange(HEAVY_USERS).repeat_interleave(HEAVY_VOTES)
    user_N = torch.cat([light_N, heavy_N])
    user_N = user_N[torch.randperm(len(user_N), generator=random)]
    prompt_ND = torch.randn(len(user_N), D, generator=random)
    answer_N = torch.multinomial(world.reference_logps(prompt_ND).exp(), 1, generator=random)[:, 0]
    liked_NA = torch.where(user_N[:, None] < LIGHT_USERS, world.value(prompt_ND), other.value(prompt_ND))
    chance_N = torch.sigmoid(liked_NA.gather(1, answer_N[:, None])[:, 0])
    return Votes(prompt_ND, answer_N, torch.rand(len(user_N), generator=random) < chance_N), user_N


def capped(votes: Votes, user_N: Tensor, most: int | None) -> Votes:
    """The newest (last) so many votes of each user, as `data.max_votes_per_user` keeps them."""
    if most is None:
        return votes
    order = torch.sort(user_N.flip(0), stable=True).indices
    ordered_N = user_N.flip(0)[order]
    first_N = torch.searchsorted(ordered_N, ordered_N)
    kept_N = (len(user_N) - 1 - order)[torch.arange(len(order)) - first_N < most].sort().values
    return Votes(votes.prompt_ND[kept_N], votes.answer_N[kept_N], votes.label_N[kept_N])
