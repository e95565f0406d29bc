"""Every Serve config we ship says only what Serve and the application know: Serve itself takes typos without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve._private.build_app import build_app
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from bco_ray.service.app import build
from bco_ray.service.args import ServiceArgs

ROOT = Path(__file__).parents[2]
CONFIGS = {path.name: path.read_text() for path in sorted((ROOT / "serve").glob("*.yaml"))} | {
    "rayservice.yaml": yaml.safe_load((ROOT / "serve/kubernetes/rayservice.yaml").read_text())["spec"]["serveConfigV2"]
}
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}


def read(text: str) -> list[ServiceArgs]:
    """The arguments of its applications. Raises ValueError, ValidationError."""
    values = yaml.safe_load(text)
    require_known(values, ServeDeploySchema)
    require_known(values.get("http_options", {}), HTTPOptionsSchema)
    for application in values["applications"]:
        require_known(application, ServeApplicationSchema)
        for deployment in application.get("deployments", []):
            require_known(deployment, DeploymentSchema)
    config = ServeDeploySchema.model_validate(values)
    return [ServiceArgs.model_validate(application.args) for application in config.applications]


def require_known(values: dict[str, Any], schema: type[BaseModel]) -> None:
    if unknown := values.keys() - schema.model_fields.keys():
        raise ValueError(f"{schema.__name__} does not know {sorted(unknown)}")


@pytest.mark.parametrize("name", CONFIGS)
def test_it_says_what_serve_and_the_application_know(name: str) -> None:
    read(CONFIGS[name])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("proxy_location:", "proxy_locaton:"),
        ("  host:", "  hots:"),
        ("route_prefix:", "root_prefix:"),
        ("ray_actor_options:", "actor_options:"),
        ("idle_seconds:", "idle_second:"),
        ("min_replicas: 0", "min_replicas: 5"),
    ],
)
def test_a_broken_copy_is_noticed(right: str, wrong: str) -> None:
    assert right in CONFIGS["gpu.yaml"]
    with pytest.raises((ValueError, ValidationError)):
        read(CONFIGS["gpu.yaml"].replace(right, wrong, 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_has_the_database_open_is_on_one_machine(name: str, tmp_path: Path) -> None:
    """SQLite's log is no file for two machines. A name that the application does not have, Serve would refuse."""
    built = build_app(build(ServiceArgs(storage=tmp_path, model_id="bot/1", model_dir=tmp_path)), name="bco")
    ours = {deployment.name for deployment in built.deployments}
    for application in yaml.safe_load(CONFIGS[name])["applications"]:
        pinned = {one["name"]: one["ray_actor_options"] for one in application.get("deployments", [])}
        on_a_cluster = application["args"].get("num_gpus", 0) > 0
        assert pinned == (dict.fromkeys(ours, ON_HEAD) if on_a_cluster else {})
