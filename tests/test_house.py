"""The tree is what docs/architecture.md says: rungs, doors, no cycles, light config, every shipped YAML parses."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bco_ray.config import load_spec
from bco_ray.service.args import ServiceArgs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bco_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

RUNG = {
    "schema": 0, "config": 0, "errors": 0, "telemetry": 0,
    "objective": 1, "text": 1, "storage": 1,
    "models": 2, "web": 2, "testing": 3,
    "feedback": 3, "scoring": 3, "training": 3, "evaluation": 3, "serving": 3, "control": 3,
    "nodes": 3, "console": 3,
    "pipeline": 4, "service": 4, "demo": 5, "cli": 6,
}  # fmt: skip

DOORS = {
    "ray.data": {
        "feedback/lines",
        "feedback/records",
        "scoring/score",
        "evaluation/heldout",
        "evaluation/answering",
        "evaluation/divergence",
        "pipeline/cluster",
    },
    "ray.train": {"training/launch"},
    "ray.serve": {"serving/app", "serving/server", "serving/model", "serving/fleet", "serving/remote", "service/app"},
    "ray.job_submission": {"control/ray_jobs"},
    "ray.util": {"telemetry/meters", "training/room"},
    "opentelemetry": {"telemetry/traces"},
    "prometheus_client": {"serving/metrics"},
    "alembic": {
        "storage/database",
        "storage/migrations/env",
        "storage/migrations/versions/0001_feedback_log",
        "storage/migrations/versions/0002_job_service",
        "storage/migrations/versions/0003_leases",
        "storage/migrations/versions/0004_canary_answers",
    },
    "vllm": {"serving/engines/vllm/door"},
    "httpx": {"serving/engines/upstream/engine", "control/outgoing", "cli/job_client"},
    "deepspeed": {"training/deepspeed_engine"},
    "torch.distributed": {"training/gang", "training/alone"},
    "peft": {"models/loading"},
    "tensorboardX": {"training/trackers"},
    "wandb": {"training/trackers"},
    "mlflow": {"training/trackers"},
    "transformers": {
        "text",
        "models/attention",
        "models/loading",
        "models/embedder",
        "models/generate",
        "testing/tiny",
        "demo/base",
        "serving/engines/batching/kv_cache",
        "serving/engines/batching/network",
    },
    "fastapi": {
        "console/routes",
        "control/http/estimate_routes",
        "control/http/audit_routes",
        "control/http/data_routes",
        "control/http/files_routes",
        "control/http/job_routes",
        "control/http/schema_routes",
        "control/http/trail_routes",
        "control/http/webhook_routes",
        "serving/app",
        "serving/http/api",
        "serving/http/registry_routes",
        "serving/http/evaluation_routes",
        "serving/http/chat",
        "serving/http/feedback",
        "web/errors",
        "web/openapi",
    },
    "sqlalchemy": {
        "storage/database",
        "storage/tables",
        "storage/job_tables",
        "control/jobs",
        "control/keys",
        "control/lease",
        "control/audit",
        "control/files",
        "control/quotas",
        "control/webhooks",
        "service/app",
        "storage/migrations/versions/0001_feedback_log",
        "storage/migrations/versions/0002_job_service",
        "storage/migrations/versions/0003_leases",
        "storage/migrations/versions/0004_canary_answers",
        "storage/feedback_log",
        "storage/thumbs",
        "storage/trials",
        "storage/casting",
        "storage/retention",
        "storage/log_erasure",
        "storage/export",
    },
}


def name_of(path: Path) -> str:
    """`training/gang` for bco_ray/training/gang.py."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def part_of(path: Path) -> str:
    return name_of(path).split("/")[0]


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports anywhere; `from a import b` gives both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("bco_ray.")} & set(RUNG)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    higher = {other for other in own_parts(path) if other != part and RUNG[other] >= RUNG[part]}
    if RUNG[part] == 0:
        higher = {other for other in higher if RUNG[other] > 0}  # rung 0 is one small family
    assert not higher, f"{part} (rung {RUNG[part]}) imports {higher}"


@pytest.mark.parametrize("package", DOORS)
def test_heavy_packages_have_few_doors(package: str) -> None:
    users = {
        name_of(path)
        for path in FILES
        if any(name == package or name.startswith(package + ".") for name in imports(path))
    }
    assert users <= DOORS[package], f"{package} is imported by {users - DOORS[package]}"


def test_no_cycles_between_modules() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    names = {"bco_ray." + name_of(p).replace("/", ".").removesuffix(".__init__"): p for p in FILES}
    for name, path in names.items():
        edges[name] = {other for other in imports(path) if other in names and other != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(edges[name]):
                if names[other].name != "__init__.py":
                    visit(other, (*trail, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


def test_every_part_has_a_rung() -> None:
    assert {part_of(p) for p in FILES} - {"__init__"} <= set(RUNG)


@pytest.mark.parametrize("module", ["bco_ray.config", "bco_ray.cli", "bco_ray.schema", "bco_ray.storage.registry"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = ("torch", "ray", "transformers", "fastapi", "opentelemetry")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_help_is_quick_enough_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: a shared machine is no stopwatch."""
    code = "import time; t = time.perf_counter(); import bco_ray.cli; print(round(time.perf_counter() - t, 3))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    with capsys.disabled():
        print(f" import bco_ray.cli: {out.stdout.strip()} s ", end="")  # noqa: T201


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_specs_parse(path: Path) -> None:
    load_spec(path)


@pytest.mark.parametrize("path", sorted((ROOT / "serve").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_serve_configs_fit_their_builder(path: Path) -> None:
    for application in yaml.safe_load(path.read_text())["applications"]:
        assert application["import_path"] == "bco_ray.service.app:build"
        ServiceArgs.model_validate(application["args"])


def test_every_shipped_yaml_has_a_test() -> None:
    """Specs and Serve configs here; manifests, compose file and clusters in tests/deploy."""
    tested = {*(ROOT / "jobs").glob("*.yaml"), *(ROOT / "serve").glob("*.yaml"), ROOT / "serve/docker/compose.yaml"}
    tested |= {*(ROOT / "jobs/kubernetes").iterdir(), *(ROOT / "serve/kubernetes").iterdir()}
    tested |= {ROOT / "cluster.yaml", ROOT / "docs/cluster-gcp.yaml"}
    tested |= {ROOT / "docs/prometheus.yml", ROOT / "docs/alerts.yml"}  # tests/test_operations.py
    shipped = [p for folder in ("jobs", "serve", "docs") for p in (ROOT / folder).rglob("*.y*ml")]
    assert {*shipped, *ROOT.glob("*.y*ml")} <= tested


def test_no_module_is_called_utils() -> None:
    assert not [p for p in FILES if p.stem in {"utils", "helpers", "common", "misc"}]


def test_jobs_and_serve_are_no_packages() -> None:
    assert not [p for d in ("jobs", "serve", "tests") for p in (ROOT / d).rglob("__init__.py")]
