"""The README.md of a registered model: what it is, what it was trained on, how it did."""

from __future__ import annotations

from typing import Any

from bco_ray.config import JobSpec, dump_spec


def model_card(spec: JobSpec, lineage: dict[str, Any], matching: dict[str, Any]) -> str:
    """Markdown; every number comes from the run's own files."""
    votes = lineage["votes"]
    drops = "".join(f"\n- {count} dropped: {reason}" for reason, count in votes["drops"].items())
    scores = "".join(
        f"\n| {name} | {'-' if value is None else round(value, 4)} |" for name, value in lineage["evaluation"].items()
    )
    return f"""# {spec.registry_name}

Trained by bco-ray with {spec.objective.loss.upper()} from `{lineage["parent"]}` on {votes["kept"]} votes
(run `{lineage["run"]}`).

## Votes
- {votes["read"]} read, {votes["kept"]} kept{drops}{_mixture(lineage.get("mixture") or {})}
- distribution matching: {"applied" if matching["applied"] else "not applied"} ({matching["reason"]})

## Held-out votes

| metric | value |
|---|---|{scores}

## Spec

```yaml
{dump_spec(spec)}```
"""


def _mixture(found: dict[str, Any]) -> str:
    """Whose answers they are on, where that is known."""
    off = found.get("off_policy")
    if not off:
        return ""
    older = f", {found['older_votes']} of them from earlier rounds" if found["older_votes"] else ""
    share = f"{off['rows']:.1%} off-policy ({off['weight']:.1%} of the weight)"
    return f"\n- {share}: not on answers of `{found['policy']}`{older}"
