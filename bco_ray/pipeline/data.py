"""What `bco data` does: check a log, import it, report on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bco_ray.config import DataSpec
from bco_ray.feedback.identity import bucket_of
from bco_ray.feedback.records import copy_records
from bco_ray.feedback.sketches import Histogram
from bco_ray.feedback.statistics import QUANTILES
from bco_ray.objective import LOSSES
from bco_ray.objective.density import class_weights
from bco_ray.pipeline.checking import check_result
from bco_ray.pipeline.cluster import cluster
from bco_ray.pipeline.log import ResolvedLog, read_log, resolve_log
from bco_ray.pipeline.report import CheckResult, DataReport, write_report
from bco_ray.pipeline.resolved import ResolvedJob
from bco_ray.pipeline.run import score_job
from bco_ray.storage import files, parquet
from bco_ray.storage.records import RecordsManifest, load_records
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Phases

WEIGHT_EDGES = np.geomspace(0.05, 20, 27)
CHECK_WORKERS = 2
OBJECT_STORE_BYTES = 500_000_000
"""For reading alone on one machine: rows pass through in blocks, shuffles go through the disk."""


def check_log(data: DataSpec, storage: Path, phases: Phases, *, ups_suffice: bool = False) -> CheckResult:
    """Read and settle a log below `storage`, and judge it. `ups_suffice`: for a loss that takes thumbs-up alone."""
    log = resolve_log(data, files.storage_directory(str(storage)), demonstrations=ups_suffice)
    with cluster(workers=CHECK_WORKERS, object_store_bytes=OBJECT_STORE_BYTES):
        return check_result(log, read_log(log, phases), ups_suffice=ups_suffice)


def import_log(data: DataSpec, storage: Path, out: str, phases: Phases) -> dict[str, Any]:
    """Settle a log and write it to `out` as a canonical one; says how much of it and what comes next."""
    log = resolve_log(data, files.storage_directory(str(storage)))
    with cluster(workers=CHECK_WORKERS, object_store_bytes=OBJECT_STORE_BYTES):
        read_log(log, phases)
        with phases.phase("write") as advance:
            facts = copy_records(log.directory, out.rstrip("/"), advance)
    counts = {name: facts[name] for name in ("read", "kept", "drops", "answers")}
    return {**counts, "files": len(facts["files"]), "out": out, "quarantine": str(log.directory / "quarantine"),
            "next": f"data: {{feedback: {out.rstrip('/')}/*.parquet}}"}  # fmt: skip


def report_log(job: ResolvedJob, phases: Phases) -> tuple[DataReport, dict[str, Path]]:
    """Score what a spec names, on the connected cluster, and write what the model says of it beside the shards."""
    scored = score_job(job, phases)
    with phases.phase("report"):
        records = load_records(job.log.directory)
        lengths, weights = _shard_histograms([job.scored_directory / shard.file for shard in scored.shards])
        check = check_result(
            job.log, records, ups_suffice=LOSSES[job.spec.objective.loss].ups_suffice, more_drops=scored.drops,
            quarantine=job.scored_directory / "quarantine",
        )  # fmt: skip
        report = DataReport(
            check=check,
            matching=scored.matching,
            lengths=scored.lengths,
            look_alikes=look_alikes(job.log, records, scored.matching),
            token_length=lengths,
            weight_bars=weights if scored.matching["applied"] or scored.lengths["applied"] else (),
            mixture=scored.mixture,
            class_weights=_class_weights(scored),
        )
        return report, write_report(report, job.scored_directory / "report")


def look_alikes(log: ResolvedLog, records: RecordsManifest, matching: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompts that the classifier finds most (and least) like those of the other class, with their text."""
    found = []
    for row in [row for row in matching.get("prompts_most_like_other") or [] if row["log_ratio"]]:
        text = prompt_text(log.directory, records, row["prompt_hash"])
        found.append({**{k: v for k, v in row.items() if k != "prompt_hash"}, "prompt": text})
    return found


def prompt_text(directory: Path, records: RecordsManifest, prompt_hash: int) -> str:
    """The prompt column of the rows with that hash; only the parts of its bucket are read."""
    bucket = bucket_of(prompt_hash, records.bits)
    for part in (part for part in records.parts if part.bucket == bucket):
        of_prompt = [("prompt_hash", "=", prompt_hash)]
        rows = parquet.read_table(directory / part.file, columns=["prompt"], filters=of_prompt)
        if rows.num_rows:
            return str(rows["prompt"][0].as_py())
    return ""


def _shard_histograms(shards: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], list[tuple[float, int]]]:
    """Token lengths by label, and how often the thumbs-down rows' weights fall where; three columns of each shard."""
    lengths = {"up": Histogram(), "down": Histogram()}
    counts = np.zeros(len(WEIGHT_EDGES) + 1, dtype=np.int64)
    for path in shards:
        rows = parquet.read_table(path, columns=["label", "n_tokens", "weight"])
        up_N = rows["label"].to_numpy(zero_copy_only=False).astype(bool)
        tokens_N, weight_N = rows["n_tokens"].to_numpy(), rows["weight"].to_numpy()
        for name, mask_N in (("up", up_N), ("down", ~up_N)):
            lengths[name] = lengths[name].merge(Histogram.of(tokens_N[mask_N].tolist()))
        counts += np.bincount(np.searchsorted(WEIGHT_EDGES, weight_N[~up_N], side="right"), minlength=len(counts))
    quantiles = {name: {key: h.quantile(q) for key, q in QUANTILES.items()} for name, h in lengths.items()}
    edges = [0.0, *WEIGHT_EDGES.tolist()]
    return quantiles, [(edge, int(count)) for edge, count in zip(edges, counts, strict=True) if count]


def _class_weights(scored: ScoredManifest) -> dict[str, Any]:
    """Nothing where a class is absent."""
    chosen, rejected = scored.count("train_chosen"), scored.count("train_rejected")
    if not (chosen and rejected):
        return {}
    weights = class_weights(chosen, rejected)
    return {"chosen": weights.chosen, "rejected": weights.rejected, "capped": weights.capped}
