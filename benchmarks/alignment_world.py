"""A world whose best policy is known, for `alignment.py`: prompts, eight answers to each, what they are worth.

Shapes: N rows (or prompts), D what a prompt says, A answers. The value r*(x, a) is a fixed random function; the policy
that KL-regularised reinforcement learning would find, pi* ~ pi_ref exp(r* / beta), follows from it exactly, and so does
how much of what pi* gains another policy gains (`share_of_best`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

D, A, HIDDEN = 6, 8, 32
BETA = 1.0
SPREAD = 1.5
"""Standard deviation of r* over prompts and answers, in nats: a good and a bad answer get 82 and 18 % thumbs-up."""

TEST_PROMPTS = 4000


@dataclass(frozen=True)
class Votes:
    """Rows of a log: prompts (N, D), the answer (N,), label (N,). Pairs: rows 2 i and 2 i + 1 are an up and a down."""

    prompt_ND: Tensor
    answer_N: Tensor
    label_N: Tensor
    paired: bool = False

    def __len__(self) -> int:
        return len(self.label_N)


class World:
    """One seed's truth and reference."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self._in = torch.randn(D, HIDDEN, generator=random) / D**0.5
        self._out = torch.randn(HIDDEN, A, generator=random)
        self._reference = 0.5 * torch.randn(D, A, generator=random) / D**0.5
        raw_NA = torch.tanh(1.5 * self.prompts(TEST_PROMPTS, seed) @ self._in) @ self._out
        self._mean, self._scale = raw_NA.mean(), raw_NA.std()

    def prompts(self, count: int, seed: int) -> Tensor:
        """(N, D), standard normal."""
        return torch.randn(count, D, generator=torch.Generator().manual_seed(seed + 77))

    def value(self, prompt_ND: Tensor) -> Tensor:
        """r*(x, a), (N, A): mean 0 and standard deviation SPREAD over all prompts."""
        raw_NA = torch.tanh(1.5 * prompt_ND @ self._in) @ self._out
        return SPREAD * (raw_NA - self._mean) / self._scale

    def reference_logps(self, prompt_ND: Tensor) -> Tensor:
        """log pi_ref(a given x), (N, A)."""
        return torch.log_softmax(prompt_ND @ self._reference, dim=1)

    def best_logps(self, prompt_ND: Tensor) -> Tensor:
        """log pi*(a given x), (N, A)."""
        return torch.log_softmax(self.reference_logps(prompt_ND) + self.value(prompt_ND) / BETA, dim=1)

    def share_of_best(self, logps_NA: Tensor, prompt_ND: Tensor) -> float:
        """(J(pi) - J(pi_ref)) / (J(pi*) - J(pi_ref)) with J = E[r* - beta KL]: 0 the reference, 1 the best."""
        return (self._gain(logps_NA, prompt_ND) / self._gain(self.best_logps(prompt_ND), prompt_ND)).item()

    def _gain(self, logps_NA: Tensor, prompt_ND: Tensor) -> Tensor:
        reference_NA, value_NA = self.reference_logps(prompt_ND), self.value(prompt_ND)
        regularised_NA = value_NA - BETA * (logps_NA - reference_NA)
        return (logps_NA.exp() * regularised_NA - reference_NA.exp() * value_NA).sum(1).mean()

    def pairs(self, count: int, seed: int, *, noise: float = 0.0) -> Votes:
        """`count` prompts with two answers of the reference each, the better one chosen as Bradley and Terry say."""
        random = torch.Generator().manual_seed(seed)
        prompt_ND = torch.randn(count, D, generator=random)
        answers_N2 = torch.multinomial(self.reference_logps(prompt_ND).exp(), 2, generator=random)
        value_N2 = self.value(prompt_ND).gather(1, answers_N2)
        first_wins = torch.rand(count, generator=random) < torch.sigmoid(value_N2[:, 0] - value_N2[:, 1])
        first_wins ^= torch.rand(count, generator=random) < noise
        winner_first = torch.where(first_wins[:, None], answers_N2, answers_N2.flip(1))
        label_N = torch.tensor([True, False]).repeat(count)
        return Votes(prompt_ND.repeat_interleave(2, 0), winner_first.flatten(), label_N, paired=True)

    def votes(
        self, count: int, seed: int, *, noise: float = 0.0, up_share: float | None = None, selection: float = 0.0
    ) -> Votes:
        """Single votes on answers of the reference: thumbs-up with probability sigmoid(r*), flipped with `noise`.

        `up_share`: rows of each class are left out until so many are thumbs-up. `selection`: who likes what they got
        votes with probability sigmoid(s x_0), who does not with sigmoid(-s x_0): ups and downs are on other prompts.
        """
        random = torch.Generator().manual_seed(seed)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        wanted = None if up_share is None else {True: round(count * up_share), False: count - round(count * up_share)}
        while not _enough(found, count, wanted):
            prompt_ND = torch.randn(4 * count, D, generator=random)
            answer_N = torch.multinomial(self.reference_logps(prompt_ND).exp(), 1, generator=random)[:, 0]
            value_N = self.value(prompt_ND).gather(1, answer_N[:, None])[:, 0]
            label_N = torch.rand(len(value_N), generator=random) < torch.sigmoid(value_N)
            label_N ^= torch.rand(len(value_N), generator=random) < noise
            towards_N = torch.where(label_N, prompt_ND[:, 0], -prompt_ND[:, 0])
            cast_N = torch.rand(len(value_N), generator=random) < torch.sigmoid(selection * towards_N)
            found.append((prompt_ND[cast_N], answer_N[cast_N], label_N[cast_N]))
        prompt_ND, answer_N, label_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        rows_N = _rows(label_N, count, wanted)
        return Votes(prompt_ND[rows_N], answer_N[rows_N], label_N[rows_N])


def true_ratio(prompt_ND: Tensor, votes: Votes, world: World, selection: float) -> Tensor:
    """p(x given up) / p(x given down), known: (N,), up to a constant."""
    chances_NA = torch.sigmoid(world.value(prompt_ND))
    up_N = (world.reference_logps(prompt_ND).exp() * chances_NA).sum(1) * torch.sigmoid(selection * prompt_ND[:, 0])
    down_N = (world.reference_logps(prompt_ND).exp() * (1 - chances_NA)).sum(1)
    return up_N / (down_N * torch.sigmoid(-selection * prompt_ND[:, 0]))


def _enough(found: list[tuple[Tensor, Tensor, Tensor]], count: int, wanted: dict[bool, int] | None) -> bool:
    labels = torch.cat([label_N for *_, label_N in found]) if found else torch.zeros(0, dtype=torch.bool)
    if wanted is None:
        return len(labels) >= count
    return all(int((labels == label).sum()) >= rows for label, rows in wanted.items())


def _rows(label_N: Tensor, count: int, wanted: dict[bool, int] | None) -> Tensor:
    if wanted is None:
        return torch.arange(count)
    return torch.cat([torch.nonzero(label_N == label)[:rows, 0] for label, rows in wanted.items()]).sort().values
