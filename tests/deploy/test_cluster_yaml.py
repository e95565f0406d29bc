"""cluster.yaml and its Google twin: what Ray validates, and what it lets pass. Every check is shown a broken copy.

Nothing here asks a cloud. AWS' own schema of a machine comes with botocore; of Compute Engine's we list what we use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore import session
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray._private.label_utils import validate_label_key
from ray.autoscaler._private.util import prepare_config, validate_config

import bco_ray

ROOT = Path(__file__).parents[2]
FILES = {"aws": ROOT / "cluster.yaml", "gcp": ROOT / "docs" / "cluster-gcp.yaml"}

PROVIDER_KEYS = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"},
    "gcp": {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "project_id"},
}
GCP_MACHINE_KEYS = {
    "machineType", "serviceAccounts", "networkInterfaces", "disks", "scheduling", "guestAccelerators", "metadata",
    "minCpuPlatform", "tags", "labels",
}  # fmt: skip
GPU_MACHINES = re.compile(r"^(g\d\w*|p\d\w*|a\d-\w+-\d+g)[.-]")
"""EC2's g and p families, Compute Engine's g2, a2, a3, ...: machines that come with GPUs."""


def problems(text: str) -> list[str]:
    """What is wrong with a cluster configuration: what Ray says, else what we do."""
    config = yaml.safe_load(text)
    try:
        validate_config(prepare_config(config))
    except (ValidationError, ValueError, AssertionError) as error:
        return [f"ray: {getattr(error, 'message', error)}"]
    checks = (
        provider, node_types, machines, idle_head, workers, labels, token, loopback, shared_memory, versions, notices,
    )  # fmt: skip
    return [problem for check in checks for problem in check(config)] + list(comments(text))


def provider(config: dict[str, Any]) -> Iterator[str]:
    said = config["provider"]
    for key in sorted(said.keys() - PROVIDER_KEYS[said["type"]]):
        yield f"provider.{key}: unknown"
    for key in sorted({"region", "availability_zone"} - said.keys()):
        yield f"provider.{key}: missing"


def node_types(config: dict[str, Any]) -> Iterator[str]:
    for name, kind in config["available_node_types"].items():
        if kind.get("min_workers", 0) > kind["max_workers"]:
            yield f"{name}: min_workers > max_workers"
        if not kind["resources"]:
            yield f"{name}: resources are left to be guessed"
        machine = kind["node_config"].get("InstanceType") or kind["node_config"].get("machineType", "")
        if bool(GPU_MACHINES.match(machine)) != bool(kind["resources"].get("GPU")):
            yield f"{name}: {machine} and resources.GPU do not fit"
        if kind["resources"].get("GPU") and kind.get("min_workers", 0):
            yield f"{name}: GPUs that nobody asked for"


def machines(config: dict[str, Any]) -> Iterator[str]:
    for name, kind in config["available_node_types"].items():
        if config["provider"]["type"] == "gcp":
            yield from (f"{name}: {key}: unknown" for key in sorted(kind["node_config"].keys() - GCP_MACHINE_KEYS))
        else:
            yield from (f"{name}: {line}" for line in _run_instances(kind["node_config"]))


def _run_instances(machine: dict[str, Any]) -> list[str]:
    """By AWS' own schema; `SubnetIds` is Ray's, who tries one after the other."""
    wanted = {key: value for key, value in machine.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    return str(ParamValidator().validate(wanted, _shape()).generate_report()).splitlines()


@cache
def _shape() -> Any:
    return session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def idle_head(config: dict[str, Any]) -> Iterator[str]:
    head = config["available_node_types"][config["head_node_type"]]
    start = _start(config, "head")
    if any(head["resources"].values()) or "--num-cpus=0" not in start or "--num-gpus=0" not in start:
        yield "head: takes work"
    if head["max_workers"] != 0:
        yield "head: could be started as a worker"
    if "--autoscaling-config=" not in start:
        yield "head: nobody would scale"


def workers(config: dict[str, Any]) -> Iterator[str]:
    kinds = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    if not any(kind.get("min_workers", 0) and not kind["resources"].get("GPU") for kind in kinds.values()):
        yield "no CPU worker: Ray Data would wait for ever where training takes every CPU"
    markets = {_market(kind["node_config"]) for kind in kinds.values() if kind["resources"].get("GPU")}
    if markets != {"spot", "on-demand"}:
        yield f"GPUs are to be had as {sorted(markets)} only"
    for name, kind in kinds.items():
        said = kind.get("labels", {}).get("bco/market", "on-demand")
        if said != _market(kind["node_config"]):
            yield f"{name}: its label says {said}"


def labels(config: dict[str, Any]) -> Iterator[str]:
    """By Ray's rules; what begins with ray.io/ is its own."""
    for name, kind in config["available_node_types"].items():
        for key in kind.get("labels", {}):
            if validate_label_key(key) or key.startswith("ray.io/"):
                yield f"{name}: {key}: no label of ours"


def _market(machine: dict[str, Any]) -> str:
    spot = machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return "spot" if spot or machine.get("scheduling", {}).get("provisioningModel") == "SPOT" else "on-demand"


def token(config: dict[str, Any]) -> Iterator[str]:
    options = config["docker"].get("run_options", [])
    if "--env RAY_AUTH_MODE=token" not in options:
        yield "RAY_AUTH_MODE: anybody who reaches a port may run anything"
    path = next((o.partition("RAY_AUTH_TOKEN_PATH=")[2] for o in options if "RAY_AUTH_TOKEN_PATH=" in o), "")
    if not path or str(Path(path).parent) not in config["file_mounts"]:
        yield "RAY_AUTH_TOKEN_PATH: no file that is mounted"
    if not any(f"chmod 600 {path}" in command for command in config["setup_commands"]):
        yield "the token's file may be read by others"
    if re.search(r"RAY_AUTH_TOKEN=|PASSWORD=|SECRET\w*=|PEPPER=", yaml.safe_dump(config, width=1000)):
        yield "a secret in clear text"


def loopback(config: dict[str, Any]) -> Iterator[str]:
    if "--dashboard-host=127.0.0.1" not in _start(config, "head"):
        yield "the dashboard, and with it the Jobs API, listens to the network"
    if "SecurityGroupIds" not in str(config) and config["provider"]["type"] == "aws":
        yield "Ray's own security group opens SSH to the internet"


def shared_memory(config: dict[str, Any]) -> Iterator[str]:
    for who in ("head", "worker"):
        options = config["docker"].get("run_options", []) + config["docker"].get(f"{who}_run_options", [])
        if not any(option.startswith("--shm-size=") for option in options):
            yield f"{who}: --shm-size is missing"


def notices(config: dict[str, Any]) -> Iterator[str]:
    """On every worker, beside Ray and outliving the command that starts it."""
    if not re.search(r"setsid --fork .* bco node watch .*</dev/null$", config["worker_start_ray_commands"][-1]):
        yield "nobody hears the cloud's notice: a spot machine would go without a checkpoint"


def versions(config: dict[str, Any]) -> Iterator[str]:
    """The image's tag says what is in it, so it can be compared."""
    tag = re.search(r":(?P<own>[\d.]+\w*)-ray(?P<ray>[\d.]+)-py(?P<python>[\d.]+)-\w+$", config["docker"]["image"])
    if not tag:
        yield "docker.image: name versions in its tag, <bco-ray>-ray<ray>-py<python>-<variant>"
        return
    for part, right in pinned().items():
        if tag[part] != right:
            yield f"docker.image: {part} {tag[part]}, but it is built with {right}"


def pinned() -> dict[str, str]:
    """What the image is built from."""
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    python = re.search(r"^ARG PYTHON=(\d+\.\d+)", (ROOT / "serve/docker/Dockerfile").read_text(), re.MULTILINE)
    assert ray
    assert python
    return {"own": bco_ray.__version__, "ray": ray[1], "python": python[1]}


def comments(text: str) -> Iterator[str]:
    """Every key has its line of explanation; in `{...}` one for all."""
    lines = text.splitlines()
    for key in _keys(yaml.compose(text)):
        line = key.start_mark.line
        if key.value != "<<" and "  # " not in lines[line]:
            yield f"line {line + 1}: {key.value}: nothing says what it is for"


def _keys(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield key
            yield from _keys(value) if key.value != "<<" else ()
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item)


def _start(config: dict[str, Any], who: str) -> str:
    return " ".join(config[f"{who}_start_ray_commands"])


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_shipped_configurations_have_no_problems(path: Path) -> None:
    assert problems(path.read_text()) == []


BROKEN: dict[str, tuple[str, str, str]] = {
    "top-level typo": ("max_workers: 20", "max_worker: 20", "ray: .*max_worker"),
    "node type typo": ("    priority: 10", "    prority: 10", "ray: .*prority"),
    "head type": ("head_node_type: head", "head_node_type: master", "ray: `head_node_type`"),
    "too many from the start": ("max_workers: 20", "max_workers: 0", "ray: .*smaller than the"),
    "min over max": ("max_workers: 4  # CHANGE: enough", "max_workers: 0  # CHANGE: enough", "cpu: min_workers >"),
    "provider typo": ("use_internal_ips:", "use_internal_ip:", "provider.use_internal_ip: unknown"),
    "no region": ("  region: ", "  # region: ", "provider.region: missing"),
    "guessed": ("resources: {CPU: 16}  ", "resources: {}  ", "cpu: resources are left"),
    "no GPU resource": ("GPU: 1, spot: 1", "spot: 1", "gpu-spot: .* and resources.GPU do not fit"),
    "idle GPUs": ("min_workers: 0  # 1 keeps", "min_workers: 1  # 1 keeps", "gpu: GPUs that nobody"),
    "head has CPUs": ("resources: {CPU: 0}", "resources: {CPU: 8}", "head: takes work"),
    "head starts with CPUs": ("--num-cpus=0 ", "", "head: takes work"),
    "two heads": ("max_workers: 0  # and never", "max_workers: 1  # and never", "head: could be started"),
    "no scaling": (" --autoscaling-config=~/ray_bootstrap_config.yaml", "", "head: nobody would scale"),
    "no CPU workers": ("min_workers: 1  # one always", "min_workers: 0  # one always", "no CPU worker"),
    "Ray's label": ("bco/role: cpu", "ray.io/role: cpu", "cpu: ray.io/role: no label"),
    "label's syntax": ("bco/role: cpu", "bco/-role: cpu", "cpu: bco/-role: no label"),
    "label": ("bco/market: spot", "bco/market: on-demand", "gpu-spot: its label says on-demand"),
    "no auth": ("--env RAY_AUTH_MODE=token", "--env RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE: anybody"),
    "no token file": ("  /home/bco/secrets: ", "  /home/bco/elsewhere: ", "RAY_AUTH_TOKEN_PATH: no file"),
    "token for all": ("chmod 600", "chmod 644", "the token's file may be read"),
    "token in clear": ("--env TMPDIR=/tmp", "--env RAY_AUTH_TOKEN=abc", "a secret in clear text"),
    "open dashboard": ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "the dashboard, and with it"),
    "shared memory": ("--shm-size=16g", "--ipc=private", "worker: --shm-size is missing"),
    "no watcher": ("bco node watch", "true", "nobody hears the cloud's notice"),
    "a watcher that is waited for": ("setsid --fork ", "", "nobody hears the cloud's notice"),
    "ray version": ("-ray2.60.0-", "-ray2.59.0-", "ray 2.59.0, but it is built with 2.60.0"),
    "python version": ("-py3.11-", "-py3.12-", "python 3.12, but it is built with 3.11"),
    "own version": (":0.1.0-", ":0.0.9-", "own 0.0.9"),
    "floating tag": (":0.1.0-ray2.60.0-py3.11-cuda", ":latest", "name versions in its tag"),
    "no comment": ("  # nothing: all is in the image", "", "worker_setup_commands: nothing says"),
}
BROKEN_AWS: dict[str, tuple[str, str, str]] = {
    "machine typo": ("InstanceType: m7i.2xlarge", "InstancType: m7i.2xlarge", "head: .*InstancType"),
    "deep machine typo": ("MarketType: spot, ", "MarktType: spot, ", "gpu-spot: .*MarktType"),
    "wrong kind": ("VolumeSize: 200", 'VolumeSize: "200"', "head: Invalid type for parameter .*VolumeSize"),
    "no spot": ("InstanceMarketOptions: {MarketType: spot, ", "CpuOptions: {} # {", "on-demand'. only"),
    "open SSH": ("SecurityGroupIds: [sg-0123456789abcdef0]", "EbsOptimized: true", "opens SSH to the internet"),
}
BROKEN_GCP: dict[str, tuple[str, str, str]] = {
    "machine typo": ("machineType: n2-standard-8", "machinType: n2-standard-8", "head: machinType: unknown"),
    "no spot": ("provisioningModel: SPOT", "provisioningModel: STANDARD", "on-demand'. only"),
}


@pytest.mark.parametrize("cloud", FILES)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_copy_is_noticed(cloud: str, broken: str) -> None:
    assert_noticed(FILES[cloud].read_text(), *BROKEN[broken])


@pytest.mark.parametrize("broken", BROKEN_AWS)
def test_a_broken_aws_machine_is_noticed(broken: str) -> None:
    assert_noticed(FILES["aws"].read_text(), *BROKEN_AWS[broken])


@pytest.mark.parametrize("broken", BROKEN_GCP)
def test_a_broken_google_machine_is_noticed(broken: str) -> None:
    assert_noticed(FILES["gcp"].read_text(), *BROKEN_GCP[broken])


def assert_noticed(text: str, right: str, wrong: str, problem: str) -> None:
    assert right in text
    found = problems(text.replace(right, wrong))
    assert any(re.search(problem, one) for one in found), found


def test_both_clouds_have_the_same_cluster() -> None:
    """What is not the cloud's own words is said alike."""
    aws, gcp = (yaml.safe_load(path.read_text()) for path in FILES.values())
    for config in (aws, gcp):
        del config["provider"], config["initialization_commands"]
        for kind in config["available_node_types"].values():
            del kind["node_config"]
    assert aws == gcp


def test_mounting_what_is_mounted_changes_nothing() -> None:
    """`ray up` runs the commands again on machines that run."""
    for path in FILES.values():
        commands = yaml.safe_load(path.read_text())["initialization_commands"]
        assert all(c.startswith(("sudo mkdir -p ", "mountpoint -q /shared || sudo mount ")) for c in commands)
