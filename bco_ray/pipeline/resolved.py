"""A job whose spec is resolved: what follows from it, and the addresses of what it makes.

An address is a digest of what its content depends on, and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bco_ray.config import JobSpec
from bco_ray.models import loading
from bco_ray.objective import LOSSES
from bco_ray.pipeline.log import ResolvedLog
from bco_ray.pipeline.rounds import identity_of, mixing_of
from bco_ray.scoring.mixing import Mixing
from bco_ray.storage import files
from bco_ray.training.setup import ReferenceKind

SCORED_AT_ONCE = 4096
"""Tokens of one forward of the reference pass where the spec leaves the micro-batch open."""

_NOT_IN_WEIGHTS = {
    "num_workers", "resources_per_worker", "max_failures", "hang_seconds", "checkpoint", "learning_rate_multiplier",
}  # fmt: skip
"""Of `training`: what does not change the weights, or only through another field."""

SCORING_FORMAT = 4
"""Part of every scored directory's address: raised when the same rows would come out as other tokens or numbers."""


@dataclass(frozen=True)
class ResolvedJob:
    """A spec with every `auto` and alias replaced, and the facts it was replaced by."""

    spec: JobSpec
    storage: Path
    model_directory: str
    model_fingerprint: str
    reference_directory: str
    reference_fingerprint: str
    log: ResolvedLog
    bf16: bool

    @property
    def gpus_per_worker(self) -> float:
        """0 on a CPU cluster."""
        return self.spec.training.resources_per_worker.get("GPU", 0)

    @property
    def device(self) -> str:
        """Where the model runs: on GPUs exactly if a worker is given one."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def dtype(self) -> str:
        """torch's name of the compute type."""
        return "bfloat16" if self.bf16 else "float32"

    @property
    def threads(self) -> int:
        """torch threads per worker: the CPUs it is given."""
        return max(1, int(self.spec.training.resources_per_worker.get("CPU", 1)))

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one micro-batch in training; 0: found by a dry run."""
        asked = self.spec.training.max_tokens_per_micro_batch
        return 0 if asked == "auto" else asked

    @property
    def scoring_tokens(self) -> int:
        """Tokens of one forward without gradients."""
        return self.micro_batch_tokens or max(SCORED_AT_ONCE, self.spec.training.max_length)

    @property
    def reference(self) -> ReferenceKind:
        """Where training takes the reference's log-probabilities from."""
        asked = self.spec.objective.reference
        if asked != "auto":
            return asked
        if not LOSSES[self.spec.objective.loss].mismatched:
            return "precomputed"
        on_reference = loading.base_of(self.model_directory) == self.reference_directory
        return "adapter_off" if self.spec.model.adapter is not None and on_reference else "live"

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        asked = self.spec.training.gradient_checkpointing
        return asked if asked != "auto" else self.device == "cuda" and self.spec.model.adapter is None

    @property
    def scored_directory(self) -> Path:
        """Content-addressed: the same rows, model and settings are scored once."""
        return self.storage / "scored" / files.digest(self.scoring_identity)

    @property
    def scoring_identity(self) -> dict[str, object]:
        """Everything that scored shards depend on."""
        return {
            "format": SCORING_FORMAT,
            "records": self.log.directory.name,
            "validation": self.spec.data.validation,
            "scoring": self._weights_wanted,
            "classifier": self._classifier_digest,
            "max_length": self.spec.training.max_length,
            **identity_of(self.mixing),
            **self.reference_identity,
        }

    @property
    def _weights_wanted(self) -> dict[str, object]:
        scoring = self.spec.scoring.model_dump(exclude={"num_workers", "classifier"})
        if scoring["length_matching"] == "off":  # as before there was any
            del scoring["length_matching"]
        return scoring

    @property
    def policy(self) -> str | None:
        """What votes on the base's answers call it: its exact name in the registry; None if it has none."""
        return None if self.spec.model.base == self.model_directory else self.spec.model.base

    @cached_property
    def mixing(self) -> Mixing:
        """How the votes of the log are mixed."""
        return mixing_of(self.spec.rounds, self.log, self.policy)

    @property
    def _classifier_digest(self) -> str | None:
        named = self.spec.scoring.classifier
        return files.sha256(files.path_of(named)) if named else None

    @property
    def reference_identity(self) -> dict[str, object]:
        """Everything that the reference pass makes of a row's tokens depends on."""
        tokens = {} if self.reference_fingerprint == self.model_fingerprint else {"tokenizer": self.model_fingerprint}
        return {**self.weights_identity, **tokens, "embedding": self.embedding_fingerprint}

    @property
    def weights_identity(self) -> dict[str, object]:
        """What the reference's log-probabilities of given tokens depend on."""
        quantized = {} if self.spec.model.quantization == "none" else {"quantization": self.spec.model.quantization}
        return {"model": self.reference_fingerprint, "bf16": self.bf16, **quantized}

    @cached_property
    def embedding_fingerprint(self) -> str:
        """Of the named embedding model; `reference` for the reference model's own states."""
        named = self.spec.scoring.embedding
        return named if named == "reference" else loading.fingerprint(named)

    @property
    def run_identity(self) -> dict[str, object]:
        """Everything that the trained weights depend on, but how many workers compute them."""
        training = self.spec.training.model_dump(exclude=_NOT_IN_WEIGHTS)
        if training["start"] is None:
            del training["start"]
        return {
            "scored": self.scored_directory.name,
            "model": self.model_fingerprint,
            "reference": self.reference_fingerprint,
            "adapter": self.spec.model.adapter.model_dump() if self.spec.model.adapter else None,
            "objective": self._objective_identity,
            "training": training,
        }

    @property
    def _objective_identity(self) -> dict[str, object]:
        """Without what is newer and not asked for: runs keep their names."""
        objective = self.spec.objective.model_dump()
        if not objective["label_noise"]:
            del objective["label_noise"]
        if objective["shift"]["by_source"] is None:
            del objective["shift"]["by_source"]
        return objective

    @property
    def run_directory(self) -> Path:
        """`runs/<name>-<digest>`: an equal spec on equal data finds its own run again, another one never does."""
        return self.storage / "runs" / f"{self.spec.name}-{files.digest(self.run_identity)[:8]}"

    @property
    def checkpoint_place(self) -> str:
        """Where the run's checkpoints are: a directory or URI of its own, even where many runs share a storage."""
        place = self.spec.training.checkpoint.storage
        if place is None:
            return str(self.run_directory / "checkpoints")
        place = place if "://" in place else str(Path(place).expanduser().resolve())
        return f"{place.rstrip('/')}/{self.run_directory.name}"

    @property
    def checkpoint_identity(self) -> dict[str, str]:
        """What a checkpoint belongs to."""
        return {"run": self.run_directory.name}
