"""What was found out about a registered version: `models/<name>/evaluations/<version>/<n>/`, each written once.

Versions never change, and are judged again whenever there is something new to judge them by: so evaluations lie beside
them, numbered from 1, and the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bco_ray.errors import StorageError
from bco_ray.storage import disk, files
from bco_ray.storage.objects import ObjectPath

FILE = "evaluation.json"
ANSWERS = "answers.jsonl"
PAGE = "report.html"
CARD = "README.md"

FEWEST_PROMPTS = 30
"""With fewer behind it, a number has no interval: percentiles of a bootstrap are too narrow then, down to no width."""

FEWEST_DECIDED = 0.8
"""Share of the pairs that a judge must have decided; which it leaves open is not left to chance."""

FEWEST_OF_A_CLASS = 10
"""Prompts with a thumbs-up, and prompts with a thumbs-down, for what tells the two apart."""

FEWEST_VOTERS = 10
"""With fewer behind it, what is found out is told to be about them."""


class Part(BaseModel):
    """Of an evaluation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Estimate(Part):
    """A number and its interval; None where the votes do not say."""

    value: float | None
    low: float | None = None
    high: float | None = None


UNKNOWN = Estimate(value=None)

Metrics = dict[str, Estimate]


class ReliabilityBin(Part):
    """Rows whose chance of a thumbs-up was predicted to be in [low, high]: the mean prediction, and how it came."""

    rows: int
    low: float
    high: float
    predicted: float
    observed: float


class Group(Part):
    """Some of the votes."""

    rows: int
    ups: int
    prompts: int
    metrics: Metrics


class RewardBars(Part):
    """How many rows of each class have a reward between two `edges`."""

    edges: list[float]
    up: list[int]
    down: list[int]


class Votes(Group):
    """The held-out votes, judged by a model's implicit reward.

    `delta_from`: the run that trained the model, or (for want of one) these votes' own class means. `delta_by_source`:
    where sources were trained with deltas of their own; `delta` is then that of the log as a whole.
    """

    delta: float
    delta_from: Literal["run", "votes"]
    by_class: dict[str, Group]
    by_source: dict[str, Group]
    reliability: list[ReliabilityBin]
    bars: RewardBars
    delta_by_source: dict[str, float] = Field(default_factory=dict)


class WinRate(Part):
    """Pairs of answers; each was judged in both orders, and one that was judged differently is a tie.

    `swayed`: of the ties, those. `undecided`: the judge gave no verdict; they are in no rate. Where they are too many,
    the rate says nothing to a gate.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    swayed: int
    undecided: int
    rate: Estimate

    @property
    def decided(self) -> int:
        """Pairs with a verdict."""
        return self.wins + self.ties + self.losses

    @property
    def suffices(self) -> bool:
        """Whether enough pairs were decided."""
        return self.decided >= FEWEST_DECIDED * (self.decided + self.undecided)


Role = Literal["base", "live", "reference", "named"]


class Opponent(Part):
    """What the model was compared with. `difference`: the model's metrics less this one's, paired; of the reference
    there is none, as all its rewards are 0 by definition.
    """

    model: str
    role: Role
    is_reference: bool = False
    votes: Votes | None
    difference: Metrics
    answer_tokens: Estimate
    win_rate: WinRate | None


class RegressionCase(Part):
    """A prompt that must be answered well. `problems`: what the answer lacks or should not have; none: passed."""

    name: str
    problems: list[str]
    answer: str

    @property
    def passed(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


class Evaluation(Part):
    """One evaluation of one version. `gate`: the policy of the spec it was made with, if that has one.

    `files`: a digest of the version's files, so that it counts for no other weights (None: it was made before there was
    one). `settings`: the spec's section. `answers`: how many held-out prompts were answered. `kl_on_policy`:
    KL(model || reference) in nats per answer, from answers of its own. `leaks`: why the model may have been trained on
    these votes. `notes`: what to keep in mind.
    """

    format: Literal["evaluation/1"] = "evaluation/1"
    model: str
    at: int
    run: str | None
    files: str | None = None
    scored: str
    beta: float
    settings: dict[str, Any]
    votes: Votes | None
    answers: int
    answer_tokens: Estimate
    kl_on_policy: Estimate = UNKNOWN
    opponents: list[Opponent]
    regression: list[RegressionCase] | None
    gate: dict[str, Any] | None
    leaks: str | None = None
    notes: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    bco_ray: str

    def is_of(self, digest: str | None) -> bool:
        """Whether it was made of the files with this digest, as far as both are known."""
        return None in (self.files, digest) or self.files == digest


class Evaluations:
    """Those of one name; `directory` is the name's in the registry."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "evaluations"
        self._versions = directory

    def numbers(self, version: int) -> list[int]:
        """Ascending."""
        place = self.root / str(version)
        found = place.iterdir() if place.is_dir() else ()
        return sorted(int(d.name) for d in found if d.name.isdigit() and files.is_there(d) and (d / FILE).is_file())

    def place(self, version: int, number: int) -> Path:
        """The directory of one."""
        return self.root / str(version) / str(number)

    def places(self, version: int) -> list[Path]:
        """Those of all, oldest first."""
        return [self.place(version, number) for number in self.numbers(version)]

    def get(self, version: int, number: int) -> Evaluation:
        """Raises StorageError."""
        path = self.place(version, number) / FILE
        try:
            return Evaluation.model_validate(files.read_json(path))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise StorageError(f"{path}: not an evaluation as this version writes them ({where}: {problem['msg']}); "
                               "evaluate the version again.") from None  # fmt: skip

    def latest(self, version: int) -> Evaluation | None:
        """The one that counts. Raises StorageError."""
        found = self.last(version)
        return found[1] if found else None

    def last(self, version: int) -> tuple[int, Evaluation] | None:
        """The one that counts, and its number: the last of the files that are there now. A version that was deleted may
        have left its own to the next one of this number. Raises StorageError.
        """
        now = files_digest(self._versions / str(version))
        found = ((number, self.get(version, number)) for number in reversed(self.numbers(version)))
        return next((each for each in found if each[1].is_of(now)), None)

    def add(self, version: int, evaluation: Evaluation, more: Mapping[str, bytes]) -> Path:
        """Write the next one, with `more` files beside it; returns its directory."""
        with files.locked(self.root / ".lock"):
            number = (self.numbers(version) or [0])[-1] + 1
            final = self.place(version, number)
            files.remove_leftovers(final.parent)
            with files.new_directory(final) as scratch:
                for name, content in more.items():
                    files.write_bytes(scratch / name, content)
                files.write_json(scratch / FILE, evaluation.model_dump(mode="json"))
        return final

    def forget_words(self, version: int, number: int) -> None:
        """Remove the answers and the page that shows them; the numbers stay."""
        place = self.place(version, number)
        for name in (PAGE, ANSWERS):
            (place / name).unlink(missing_ok=True)
        if not isinstance(place, ObjectPath):
            disk.sync_directory(place)

    def copy_card(self, version: int, target: Path) -> None:
        """The card of the version's last evaluation, if there is one, as that of a model copied to `target`."""
        found = self.last(version)
        if found and (card := self.place(version, found[0]) / CARD).is_file():
            files.write_bytes(target / CARD, card.read_bytes())


def files_digest(version: Path) -> str | None:
    """Of a version's files, as they were registered; None for one that has no digests of them."""
    lineage = version / "lineage.json"
    listed = files.read_json(lineage).get("files") if lineage.is_file() else None
    return files.digest(listed) if listed else None
