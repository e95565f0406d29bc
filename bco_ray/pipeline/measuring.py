"""The held-out votes of a job, judged by each contender."""

from __future__ import annotations

from collections.abc import Sequence

from bco_ray.errors import StorageError
from bco_ray.evaluation.heldout import Machine, judge_held_out
from bco_ray.evaluation.votes import JudgedVotes, Measured, Settings, measure
from bco_ray.pipeline.contenders import Contender
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases


def machine_of(job: ResolvedJob) -> Machine:
    """What the job's spec has models run on."""
    return Machine(
        max_tokens=job.scoring_tokens,
        dtype=job.dtype,
        quantization=job.spec.model.quantization,
        device=job.device,
        threads=job.threads,
        num_workers=job.spec.scoring.workers[1],
        num_gpus=job.gpus_per_worker,
    )


def measure_votes(job: ResolvedJob, scored: ScoredManifest, who: Sequence[Contender], phases: Phases) -> list[Measured]:
    """Of each contender, on the same draws. The reference needs no pass: its rewards are 0.

    Raises StorageError if the shards changed meanwhile.
    """
    beta = job.spec.objective.beta
    asked = [contender for contender in who if not contender.is_reference] or [who[0]]
    with phases.phase("votes") as advance:
        judged = judge_held_out(
            job.scored_directory,
            scored,
            [contender.directory for contender in asked],
            beta=beta,
            machine=machine_of(job),
            progress=advance,
        )
    if not all(judged[0].same_rows(votes) for votes in judged):
        raise StorageError(f"{job.scored_directory}: its rows changed while they were judged. Evaluate again.")
    by_name = {contender.name: votes for contender, votes in zip(asked, judged, strict=True)}
    with phases.phase("intervals") as advance:
        found = []
        for place, contender in enumerate(who):
            advance(place, len(who), contender.name)
            votes = judged[0].at_reference(beta) if contender.is_reference else by_name[contender.name]
            found.append(_measured(job, contender, votes))
        return found


def _measured(job: ResolvedJob, contender: Contender, votes: JudgedVotes) -> Measured:
    spec = job.spec.evaluation
    settings = Settings(job.spec.objective.beta, spec.confidence, spec.resamples, spec.bins, spec.seed)
    if contender.delta is None:
        return measure(votes, votes.own_delta, "votes", settings)
    return measure(votes, contender.delta, "run", settings, contender.offsets)
