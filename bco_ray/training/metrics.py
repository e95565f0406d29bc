"""One optimizer step as the numbers people plot, and the file they are appended to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bco_ray.objective import LossSums
from bco_ray.storage import files


def step_metrics(sums: LossSums, *, beta: float) -> dict[str, float | None]:
    """Means per class and what follows from them; None for a class that was absent.

    `kl` estimates KL(reference || policy) as -mean(r) / beta over the window's rows (spec section 6), in nats.
    """
    chosen, rejected = float(sums.chosen_count), float(sums.rejected_count)
    reward_up = _mean(sums.chosen_reward_sum, chosen)
    reward_down = _mean(sums.rejected_reward_sum, rejected)
    return {
        "rewards/chosen": reward_up,
        "rewards/rejected": reward_down,
        "rewards/margins": None if reward_up is None or reward_down is None else reward_up - reward_down,
        "rewards/accuracies": _mean(sums.chosen_correct_count + sums.rejected_correct_count, chosen + rejected),
        "logps/chosen": _mean(sums.chosen_logps_sum, chosen),
        "logps/rejected": _mean(sums.rejected_logps_sum, rejected),
        "kl": _mean(-(sums.chosen_reward_sum + sums.rejected_reward_sum) / beta, chosen + rejected),
        "count/chosen": chosen,
        "count/rejected": rejected,
    }


class MetricsLog:
    """`metrics.jsonl`: one object per step, in step order, each step once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, next_step: int) -> None:
        """Forget steps from `next_step` on: a resumed run is about to do them again. A torn last line goes too."""
        kept = [row for row in self.read() if row["step"] < next_step]
        files.write_bytes(self.path, "".join(_line(row) for row in kept).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add one step; numbers that are not finite become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line({key: _finite(value) for key, value in row.items()}))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(total: Any, count: float) -> float | None:
    return float(total) / count if count else None
