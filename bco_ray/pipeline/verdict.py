"""Is a log good for training? What makes it unusable, what is worth a look, and for each the way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_UNKNOWN_LABELS = 0.10
FEW_OF_A_CLASS = 100
EXTREME_RATE = 0.02
ONE_USER, ONE_PROMPT = 0.50, 0.20
FEW_PROMPTS = 50
MANY_DROPPED = 0.10
TELLTALE = 0.98
LENGTH_RATIO = 2.0
PAIRS_TO_JUDGE = 50

_WAYS_OUT = {
    "missing_label": "If the vote has another name in your log, map it: data.format: {map: {label: ...}}.",
    "too_long": "Raise training.max_length if the model and its memory allow it.",
    "no_response": "Give the files with the answers too, a vote needs both halves.",
    "unreadable_rest": "A file breaks off there and what follows it is lost: export or copy it again.",
    "line_too_long": "Such rows are mostly attachments: leave them out of the export.",
    "invalid_json": "Check that the file is what its suffix says, and export it again.",
    "not_a_thumb": "Only thumbs are read; a scale can be mapped: data.format: {map: ...} and data.label_map.",
    "over_user_cap": "That is data.max_votes_per_user at work; raise it to keep more.",
}  # fmt: skip
_EXPECTED_DROPS = {"unknown_label", "no_vote", "neutral", "superseded", "duplicate", "erased", "outvoted", "not_drawn"}


@dataclass(frozen=True)
class Verdict:
    """`problems` make a log unusable, `hints` do not; each is one paragraph that ends with the way out."""

    problems: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return {"usable": self.usable, "problems": list(self.problems), "hints": list(self.hints)}


def judge(
    read: int,
    kept: int,
    drops: Mapping[str, int],
    examples: Mapping[str, Sequence[Any]],
    statistics: Mapping[str, Any],
    *,
    ups_suffice: bool = False,
) -> Verdict:
    """`statistics`: LogSums.summary(); `examples`: dropped rows by reason, with their `detail`.

    `ups_suffice`: it is for a loss that trains on thumbs-up alone, so nothing is asked of the others.
    """
    problems = [*_unusable(read, kept, drops), *_unknown_labels(read, drops, examples)]
    if not kept:
        return Verdict(tuple(problems), ())
    problems[:0] = _no_ups(kept, statistics) if ups_suffice else _one_class(kept, statistics)
    compared = [] if ups_suffice else _telltales(statistics)
    hints = [*_classes(statistics, ups_suffice), *_people(statistics), *_prompts(statistics), *compared]
    return Verdict(tuple(problems), (*hints, *_dropped(read, drops)))


def _unusable(read: int, kept: int, drops: Mapping[str, int]) -> Iterator[str]:
    if not read:
        yield "There is no vote in these files. Check the paths, and data.format if the files are not empty."
    elif not kept:
        reason = max(sorted(drops), key=lambda name: drops[name])
        yield (
            f"None of the {read:,} votes can be used; the most frequent reason is {reason} ({drops[reason]:,}). "
            f"{_way_out(reason)}"
        )


def _one_class(kept: int, found: Mapping[str, Any]) -> Iterator[str]:
    if found["ups"] and found["downs"]:
        return
    side, other = ("up", "down") if found["ups"] else ("down", "up")
    alone = " On thumbs-up alone trains objective.loss: sft (of a job: method supervised)." if found["ups"] else ""
    yield (
        f"All {kept:,} votes are thumbs-{side}, and training needs both kinds. If your product spells "
        f"thumbs-{other} differently, add it to data.label_map; if it logs them elsewhere, give those files too.{alone}"
    )


def _no_ups(kept: int, found: Mapping[str, Any]) -> Iterator[str]:
    if not found["ups"]:
        yield (
            f"All {kept:,} votes are thumbs-down, and objective.loss: sft trains on thumbs-up alone. Check "
            "data.label_map, or train with another loss on votes of both kinds."
        )


def _unknown_labels(read: int, drops: Mapping[str, int], examples: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    unknown = drops.get("unknown_label", 0)
    if read and unknown > MOST_UNKNOWN_LABELS * read:
        first = next((example["detail"] for example in examples.get("unknown_label", [])), "")
        yield (
            f"{unknown:,} of {read:,} votes ({unknown / read:.0%}) have a label that nobody knows"
            f"{f' ({first[:160]})' if first else ''}. Say what each spelling means: data.label_map, with true, false "
            "or null (neutral)."
        )


def _classes(found: Mapping[str, Any], ups_suffice: bool) -> Iterator[str]:
    if not (found["ups"] and (found["downs"] or ups_suffice)):
        return
    for name, count in (("up", found["ups"]), ("down", found["downs"])):
        if count < FEW_OF_A_CLASS and not (ups_suffice and name == "down"):
            yield (
                f"Only {count:,} thumbs-{name}: what is learned from so few is mostly noise. "
                f"Collect at least {FEW_OF_A_CLASS}; several hundred are better."
            )
    if not (ups_suffice or EXTREME_RATE <= found["up_rate"] <= 1 - EXTREME_RATE):
        yield (
            f"{found['up_rate']:.1%} of the votes are thumbs-up. The rarer kind is weighted up, but only to a limit: "
            "make it easier to leave, or give files of a longer time."
        )


def _people(found: Mapping[str, Any]) -> Iterator[str]:
    top = found["users"]["top_share"].get("1") or 0.0
    if not found["rows_with"]["user"]:
        yield (
            "No vote names a user, so a changed mind counts twice and one busy person is not noticed. "
            "If your log has user ids, map them: data.format: {map: {user: ...}}."
        )
    elif found["users"]["distinct"] == 1 or top > ONE_USER:
        yield (
            f"One user cast {top:.0%} of the votes: the model will learn this person's taste. "
            "Limit it: data.max_votes_per_user, for example 100."
        )
    agreement = found["agreement"]
    if agreement["pairs"] >= PAIRS_TO_JUDGE and agreement["rate"] < agreement["chance"] + 0.05:
        yield (
            f"Users who voted on the same answer agree in {agreement['rate']:.0%} of pairs, by chance it would be "
            f"{agreement['chance']:.0%}: the votes say little. data.conflicts: majority keeps what most of them said."
        )


def _prompts(found: Mapping[str, Any]) -> Iterator[str]:
    distinct, most = found["prompts"]["distinct"], found["prompts"]["most_votes_on_one"]
    if distinct < FEW_PROMPTS:
        yield (
            f"Only {distinct:,} different prompts: held-out numbers will say little about new ones. "
            "Check that the mapped prompt is what people asked, and collect more."
        )
    if most > ONE_PROMPT * found["rows"] and distinct > 1:
        yield (
            f"One prompt has {most / found['rows']:.0%} of all votes ({most:,}): a button or a test, perhaps. "
            "Leave such rows out of the export if they are not what you want to improve."
        )


def _telltales(found: Mapping[str, Any]) -> Iterator[str]:
    """What would let a model tell the label without reading the answer."""
    mixed = 0.05 <= (found["up_rate"] or 0.0) <= 0.95
    for name in ("source", "model"):
        groups = found[f"by_{name}"]
        guessed = sum(max(group["ups"], group["downs"]) for group in groups) / max(found["rows"], 1)
        if mixed and guessed >= TELLTALE:
            yield (
                f"The {name} alone tells the label in {guessed:.0%} of votes: the model may learn the {name}'s "
                f"manner, not what people like. Give votes of both kinds from each {name}."
            )
    up, down = (found["length"]["completion"][side]["p50"] for side in ("up", "down"))
    if up and down and max(up, down) >= LENGTH_RATIO * min(up, down):
        longer, ratio = ("Liked", up / down) if up > down else ("Disliked", down / up)
        yield (
            f"{longer} answers are {ratio:.1f} times as long as the others (median): the model may learn length. "
            "Compare lengths before and after training, and look at a few of both kinds."
        )


def _dropped(read: int, drops: Mapping[str, int]) -> Iterator[str]:
    for reason, count in sorted(drops.items(), key=lambda item: (-item[1], item[0])):
        many = count > MANY_DROPPED * read and reason not in _EXPECTED_DROPS
        if many or reason == "unreadable_rest":
            rows = "row was" if count == 1 else "rows were"
            share = f"{count / read:.1%}" if count > read / 1000 else "under 0.1%"
            yield f"{count:,} {rows} dropped as {reason} ({share} of what was read). {_way_out(reason)}"


def _way_out(reason: str) -> str:
    return _WAYS_OUT.get(
        reason,
        "The examples say what is wrong; all of them are in the quarantine directory (check: --storage DIR).",
    )
