"""What a log says in numbers: sums over settled votes that merge, in constant memory however large the log.

All votes on a prompt are in one bucket, so what is counted per prompt or per answer within a bucket adds up exactly.
The rest: counts are exact; sources, models and months are exact up to KEYS_KEPT different ones (`HeavyKeys`), users
up to USERS_SAMPLED (`KeySample`); quantiles lie within 3 %. Only beyond KEYS_KEPT does the order of merging matter.
Days are told of logs of up to DAYS_KEPT.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from bco_ray.feedback.identity import response_key
from bco_ray.feedback.over_time import NONE, closer_than_months, days
from bco_ray.feedback.sketches import HeavyKeys, Histogram, KeySample, Sketch, Votes
from bco_ray.schema import SETTLED

KEYS_KEPT = 1024
KEYS_SHOWN = 200
DAYS_KEPT = 400
USERS_KEPT = 512
USERS_SAMPLED = 4096
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
TOP_USERS = (1, 2, 5, 10, 20, 50, 100, 200)
OTHER = "(other)"

_KEY_CHARACTERS = 200
_IDENTITY = ("prompt_hash", "response_id", "conversation_id", "prompt", "completion", "user", "label")


def _keys(limit: int) -> Any:
    return Field(default_factory=lambda: HeavyKeys(limit=limit))


class LogSums(Sketch):
    """Sums over votes. `pairs`: of two users' votes on one answer; `agreeing` ones are both up or both down."""

    ups: int = 0
    downs: int = 0
    with_comment: int = 0
    with_correction: int = 0
    with_siblings: int = 0
    prompts: int = 0
    prompts_with_both: int = 0
    most_on_a_prompt: int = 0
    responses: int = 0
    shared_responses: int = 0
    shared_ups: int = 0
    shared_votes: int = 0
    pairs: int = 0
    agreeing: int = 0
    by_source: HeavyKeys = _keys(KEYS_KEPT)
    by_model: HeavyKeys = _keys(KEYS_KEPT)
    by_month: HeavyKeys = _keys(KEYS_KEPT)
    by_day: HeavyKeys = _keys(DAYS_KEPT)
    by_user: HeavyKeys = _keys(USERS_KEPT)
    users: KeySample = KeySample(limit=USERS_SAMPLED)
    prompt_up: Histogram = Histogram()
    prompt_down: Histogram = Histogram()
    completion_up: Histogram = Histogram()
    completion_down: Histogram = Histogram()
    dropped: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def of(cls, kept: pa.Table | Sequence[Mapping[str, Any]], dropped: Mapping[str, int] | None = None) -> LogSums:
        """Sums over whole buckets of schema.SETTLED; `dropped` are the votes that did not get here, by reason."""
        rows = kept if isinstance(kept, pa.Table) else pa.Table.from_pylist([dict(row) for row in kept], schema=SETTLED)
        labels = rows["label"].to_pylist()
        users = _by_key(*_named(rows["user"].to_pylist(), labels))
        dates = days(pc.coalesce(rows["updated_at"], rows["created_at"]))
        return cls(
            ups=sum(labels),
            downs=len(labels) - sum(labels),
            with_comment=_true(pc.greater(pc.utf8_length(rows["comment"]), 0)),
            with_correction=_true(pc.greater(pc.utf8_length(rows["correction"]), 0)),
            with_siblings=_true(pc.greater(pc.list_value_length(rows["siblings"]), 0)),
            by_source=HeavyKeys.of(_by_key(_short(rows["source"]), labels), KEYS_KEPT),
            by_model=HeavyKeys.of(_by_key(_short(rows["model"]), labels), KEYS_KEPT),
            by_month=HeavyKeys.of(_by_key([day and day[: len("2025-03")] for day in dates], labels), KEYS_KEPT),
            by_day=HeavyKeys.of(_by_key(dates, labels), DAYS_KEPT),
            by_user=HeavyKeys.of(users, USERS_KEPT),
            users=KeySample.of({user: sum(votes) for user, votes in users.items()}, USERS_SAMPLED),
            dropped=dict(dropped or {}),
            **_per_prompt(rows),
            **_lengths(rows),
        )

    def merge(self, other: LogSums) -> LogSums:
        return LogSums(
            **{name: _merged(name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields}
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_state` gives the same sums back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LogSums:
        return cls.model_validate(state)

    @property
    def rows(self) -> int:
        """Votes that count."""
        return self.ups + self.downs

    def summary(self) -> dict[str, Any]:
        """What a person or a script reads, as plain JSON; None where there is nothing to measure."""
        return {
            "rows": self.rows,
            "ups": self.ups,
            "downs": self.downs,
            "up_rate": _share(self.ups, self.rows),
            "by_source": _rates(self.by_source),
            "by_model": _rates(self.by_model),
            "by_month": self._by_month(),
            "over_time": self._over_time(),
            "length": {
                "prompt": {"up": _quantiles(self.prompt_up), "down": _quantiles(self.prompt_down)},
                "completion": {"up": _quantiles(self.completion_up), "down": _quantiles(self.completion_down)},
            },
            "prompts": {
                "distinct": self.prompts,
                "with_both_labels": self.prompts_with_both,
                "most_votes_on_one": self.most_on_a_prompt,
            },
            "responses": {"distinct": self.responses},
            "users": self._users(),
            "agreement": self._agreement(),
            "rows_with": {
                "user": sum(self.by_user.all_votes),
                "comment": self.with_comment,
                "correction": self.with_correction,
                "siblings": self.with_siblings,
            },
            "dropped": dict(sorted(self.dropped.items())),
        }

    def _over_time(self) -> dict[str, Any]:
        """By day, by week or by month, so that a short log has more than one point and a long one not too many."""
        if (closely := closer_than_months(self.by_day, (self.ups, self.downs))) is None:
            return {"unit": "month", "rates": self._by_month()}
        unit, votes = closely
        return {"unit": unit, "rates": [_rate(key, *votes[key]) for key in sorted(votes)]}

    def _by_month(self) -> list[dict[str, Any]]:
        return sorted(_rates(self.by_month), key=lambda row: str(row["key"]))

    def _users(self) -> dict[str, Any]:
        """Shares are of the votes that name a user. `exact`: the number of users was counted, not estimated."""
        named = sum(self.by_user.all_votes)
        votes = sorted(self.users.votes.values(), reverse=True)
        if self.users.overflown:
            votes = [sum(mine) for _, mine in self.by_user.heaviest()]
        spread = self.users.spread()
        return {
            "distinct": self.users.distinct(),
            "exact": not self.users.overflown,
            "votes_per_user": {name: spread.quantile(q) for name, q in QUANTILES.items()},
            "top_share": {str(count): _share(sum(votes[:count]), named) for count in TOP_USERS} if named else {},
        }

    def _agreement(self) -> dict[str, Any]:
        """`chance` is how often two votes on these answers would agree if they were drawn blindly."""
        up = _share(self.shared_ups, self.shared_votes)
        return {
            "responses": self.shared_responses,
            "pairs": self.pairs,
            "rate": _share(self.agreeing, self.pairs),
            "chance": None if up is None else up**2 + (1 - up) ** 2,
        }


def characters(messages: str) -> int:
    """Length of the text in a JSON list of messages; parts that are no text count nothing."""
    return sum(_content_length(message.get("content")) for message in json.loads(messages))


def _content_length(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else []
    return sum(len(part["text"]) for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _short(names: pa.ChunkedArray) -> list[str | None]:
    """Names come from the log, and nobody promised that they are short."""
    return [name and name[:_KEY_CHARACTERS] for name in names.to_pylist()]


def _named(users: Sequence[str | None], labels: Sequence[bool]) -> tuple[list[str], list[bool]]:
    pairs = [(user, label) for user, label in zip(users, labels, strict=True) if user is not None]
    return [user for user, _ in pairs], [label for _, label in pairs]


def _by_key(keys: Iterable[str | None], labels: Iterable[bool]) -> dict[str, Votes]:
    counts: dict[str, list[int]] = {}
    for key, label in zip(keys, labels, strict=True):
        counts.setdefault(NONE if key is None else key, [0, 0])[not label] += 1
    return {key: (ups, downs) for key, (ups, downs) in counts.items()}


def _per_prompt(rows: pa.Table) -> dict[str, int]:
    """What is counted per prompt and per answer; pairs are of two users, each with a last vote."""
    votes = rows.select(_IDENTITY).to_pylist()
    answers = [response_key(vote) for vote in votes]
    prompts = _by_key([str(vote["prompt_hash"]) for vote in votes], [vote["label"] for vote in votes])
    named = {(key, vote["user"]): vote["label"] for key, vote in zip(answers, votes, strict=True) if vote["user"]}
    by_answer = _by_key([key for key, _ in named], named.values())
    shared = [(ups, downs) for ups, downs in by_answer.values() if ups + downs > 1]
    return {
        "prompts": len(prompts),
        "prompts_with_both": sum(min(counts) > 0 for counts in prompts.values()),
        "most_on_a_prompt": max((sum(counts) for counts in prompts.values()), default=0),
        "responses": len(set(answers)),
        "shared_responses": len(shared),
        "shared_ups": sum(ups for ups, _ in shared),
        "shared_votes": sum(ups + downs for ups, downs in shared),
        "pairs": sum(_pairs(ups + downs) for ups, downs in shared),
        "agreeing": sum(_pairs(ups) + _pairs(downs) for ups, downs in shared),
    }


def _lengths(rows: pa.Table) -> dict[str, Histogram]:
    found = {}
    for name in ("prompt", "completion"):
        for label, side in ((True, "up"), (False, "down")):
            texts = rows.filter(pc.equal(rows["label"], label))[name].to_pylist()
            found[f"{name}_{side}"] = Histogram.of(characters(text) for text in texts)
    return found


def _merged(name: str, mine: Any, others: Any) -> Any:
    if name == "most_on_a_prompt":
        return max(mine, others)
    if isinstance(mine, int):
        return mine + others
    return dict(sorted((Counter(mine) + Counter(others)).items())) if isinstance(mine, dict) else mine.merge(others)


def _rates(keys: HeavyKeys) -> list[dict[str, Any]]:
    """Most votes first; what is not shown is summed as OTHER at the end."""
    shown = keys.heaviest(KEYS_SHOWN)
    ups = keys.all_votes[0] - sum(votes[0] for _, votes in shown)
    downs = keys.all_votes[1] - sum(votes[1] for _, votes in shown)
    if ups + downs:
        shown.append((OTHER, (ups, downs)))
    return [_rate(key, *votes) for key, votes in shown]


def _rate(key: str, up: int, down: int) -> dict[str, Any]:
    return {"key": key, "ups": up, "downs": down, "up_rate": _share(up, up + down)}


def _quantiles(lengths: Histogram) -> dict[str, Any]:
    found: dict[str, Any] = {name: lengths.quantile(q) for name, q in QUANTILES.items()}
    return {"mean": lengths.mean, **found, "most": lengths.greatest, "bars": [list(bar) for bar in lengths.bars()]}


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _true(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
