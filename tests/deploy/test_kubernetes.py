"""The manifests: KubeRay's own schemas, taken strictly, and the facts that keep people out and the server up.

No Kubernetes is asked. The schemas (ray.io_*.yaml.gz, from KubeRay's helm-chart/kuberay-operator/crds) are not part of
this repository; without them those tests are skipped.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.label_utils import validate_node_labels
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from typer.main import get_command

from bco_ray.cli.nodes import app as node_app
from bco_ray.config import load_spec
from bco_ray.errors import StorageError
from bco_ray.storage.database import open_database

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas"
FOLDERS = {"serve": ROOT / "serve" / "kubernetes", "jobs": ROOT / "jobs" / "kubernetes"}
DOCUMENTS = [
    document
    for folder in FOLDERS.values()
    for path in sorted(folder.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
BY_KIND = {kind: [d for d in DOCUMENTS if d["kind"] == kind] for kind in {d["kind"] for d in DOCUMENTS}}
INSIDE = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
"""Where a custom resource keeps its cluster, below `spec`."""


def named(kind: str, name: str) -> dict[str, Any]:
    return next(document for document in BY_KIND[kind] if document["metadata"]["name"] == name)


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    cluster = document["spec"]
    for key in INSIDE[document["kind"]]:
        cluster = cluster[key]
    return dict(cluster)


CLUSTERS = {kind: cluster_of(BY_KIND[kind][0]) for kind in INSIDE}


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


PODS = [group["template"] for cluster in CLUSTERS.values() for group in groups(cluster)]


def strict(schema: Any) -> Any:
    """The schema without leave for unknown keys, in words that jsonschema knows."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    read = {key: strict(value) for key, value in schema.items()}
    if isinstance(read.get("properties"), dict) and "type" in read and "additionalProperties" not in read:
        read["additionalProperties"] = False
    return read


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    if not SCHEMAS.is_dir():
        pytest.skip("needs ../shared/schemas: ray.io_rayclusters.yaml.gz and so on, from KubeRay's helm chart")
    return {kind: validator(f"ray.io_{kind.lower()}s.yaml.gz") for kind in INSIDE}


def validator(file: str) -> Any:
    definition = yaml.load(gzip.decompress((SCHEMAS / file).read_bytes()), yaml.CSafeLoader)
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, not in the definition
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("kind", INSIDE)
def test_kuberay_knows_every_key(kind: str, validators: dict[str, Any]) -> None:
    for document in BY_KIND[kind]:
        assert [f"{error.json_path}: {error.message}" for error in validators[kind].iter_errors(document)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("upgradeStrategi",), {"type": "NewCluster"}),
        (("rayClusterConfig", "authOptions", "mode"), "tokens"),
        (("rayClusterConfig", "workerGroupSpecs", 0, "minReplica"), 0),
        (("rayClusterConfig", "headGroupSpec", "template", "spec", "securityContext", "runAsUser"), "bco"),
        (("rayClusterConfig", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "readinesProbe"), {}),
    ],
)
def test_a_broken_copy_is_noticed(path: tuple[Any, ...], wrong: Any, validators: dict[str, Any]) -> None:
    document = yaml.safe_load((FOLDERS["serve"] / "rayservice.yaml").read_text())
    place = document["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert list(validators["RayService"].iter_errors(document))


@pytest.mark.parametrize("kind", INSIDE)
def test_ray_reads_the_machines_as_meant(kind: str) -> None:
    """By Ray's own reading of the resource, which its autoscaler does every few seconds."""
    metadata = {"name": "c", "namespace": "bco"}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": CLUSTERS[kind]})
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert not head["resources"].get("GPU")
    assert kinds["cpu"]["resources"]["CPU"] == 8
    for name in kinds.keys() - {"cpu"}:
        market = {"gpu": ("on_demand", "on-demand"), "gpu-spot": ("spot", "spot")}[name]
        assert {key: kinds[name]["resources"][key] for key in ("CPU", "GPU", market[0])} == {
            "CPU": 16, "GPU": 1, market[0]: 1,
        }  # fmt: skip
        assert kinds[name]["labels"]["bco/market"] == market[1]
        assert kinds[name]["min_workers"] == (0 if kind != "RayJob" else kinds[name]["max_workers"])


@pytest.mark.parametrize("kind", INSIDE)
def test_clusters_are_guarded_and_scale_as_meant(kind: str) -> None:
    cluster = CLUSTERS[kind]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "bco-ray-token"}
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    if kind == "RayJob":
        assert not cluster["enableInTreeAutoscaling"]
    else:
        assert cluster["enableInTreeAutoscaling"]
        assert cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("kind", INSIDE)
def test_ray_takes_the_labels(kind: str) -> None:
    """KubeRay passes them to `ray start`, and what begins with ray.io/ is Ray's own."""
    for group in groups(CLUSTERS[kind]):
        validate_node_labels(group.get("labels"))


def test_all_pods_run_one_image_the_one_of_the_other_clusters() -> None:
    images = {container["image"] for pod in PODS for container in pod["spec"]["containers"]}
    assert images == {yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"]}


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: "-".join(list(pod["metadata"]["labels"].values())[1:]))
def test_pods_are_locked_up_and_get_what_they_ask_for(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    (container,) = spec["containers"]
    locked = container["securityContext"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert (locked["runAsNonRoot"], locked["allowPrivilegeEscalation"]) == (True, False)
    assert (locked["capabilities"], locked["readOnlyRootFilesystem"]) == ({"drop": ["ALL"]}, True)
    assert locked["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/home/bco", "/shared"} <= mounted.keys(), "the rest cannot be written to"
    assert set(mounted.values()) == {volume["name"] for volume in spec["volumes"]}
    role = pod["metadata"]["labels"]["bco/role"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == role.startswith("gpu")
    assert any(one["key"] == "nvidia.com/gpu" for one in spec.get("tolerations", [])) == role.startswith("gpu")
    assert any(one["key"] == "spot" for one in spec.get("tolerations", [])) == (role == "gpu-spot")


def reachable(policy: dict[str, Any]) -> dict[str, set[int] | None]:
    """Whose pods (a namespace, or our own) -> which ports; None: all."""
    found: dict[str, set[int] | None] = {}
    for rule in policy["spec"]["ingress"]:
        ports = {one["port"] for one in rule["ports"]} if "ports" in rule else None
        for source in rule["from"]:
            namespace = source.get("namespaceSelector", {}).get("matchLabels", {})
            found[namespace.get("kubernetes.io/metadata.name", "own")] = ports
            if not namespace:
                assert source["podSelector"] == policy["spec"]["podSelector"]
    return found


def test_only_the_serve_port_is_reachable() -> None:
    """8265 by KubeRay alone, who could not deploy otherwise; the rest by pods of the same cluster."""
    assert reachable(named("NetworkPolicy", "bco-serve")) == {
        "ingress-nginx": {8000}, "kuberay-system": {8000, 8265}, "own": None,
    }  # fmt: skip
    assert reachable(named("NetworkPolicy", "bco-jobs")) == {"kuberay-system": {8265}, "own": None}


def test_what_no_policy_allows_is_refused() -> None:
    closed = named("NetworkPolicy", "closed")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in BY_KIND["NetworkPolicy"])


def chosen(selector: dict[str, Any]) -> list[dict[str, Any]]:
    return [pod for pod in PODS if selector["matchLabels"].items() <= pod["metadata"]["labels"].items()]


def test_selectors_find_their_pods() -> None:
    serving = [group["template"] for group in groups(CLUSTERS["RayService"])]
    assert chosen(named("NetworkPolicy", "bco-serve")["spec"]["podSelector"]) == serving
    assert len(chosen(named("NetworkPolicy", "bco-jobs")["spec"]["podSelector"])) == len(PODS) - len(serving)
    for budget in BY_KIND["PodDisruptionBudget"]:
        assert {pod["metadata"]["labels"]["bco/role"] for pod in chosen(budget["spec"]["selector"])} <= {"head", "gpu"}
        assert chosen(budget["spec"]["selector"])
        assert budget["spec"]["minAvailable"] == 1  # maxUnavailable needs an owner that Kubernetes can scale
    (near,) = serving[0]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert chosen(near["labelSelector"]) == serving[:1]


def test_the_service_is_the_serve_port() -> None:
    service = named("RayService", "bco")["spec"]["serveService"]
    (port,) = service["spec"]["ports"]
    ports = CLUSTERS["RayService"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("serve", 8000, 8000)
    assert {"name": "serve", "containerPort": 8000} in ports
    assert service["spec"]["type"] == "ClusterIP"


def test_secrets_are_named_and_have_no_values() -> None:
    secrets = {secret["metadata"]["name"]: secret for secret in BY_KIND["Secret"]}
    assert not any({"data", "stringData"} & secret.keys() for secret in secrets.values())
    containers = [container for pod in PODS for container in pod["spec"]["containers"]]
    asked_for = {source["secretRef"]["name"] for one in containers for source in one.get("envFrom", [])}
    assert asked_for | {cluster["authOptions"]["secretName"] for cluster in CLUSTERS.values()} == secrets.keys()
    readme = (FOLDERS["serve"] / "README.md").read_text()
    for name, secret in secrets.items():
        assert f"create secret generic {name}" in readme
        for key in secret["metadata"]["annotations"]["bco/keys"].split(","):
            assert re.search(rf"--from-\w+=\"?{key}=", readme), f"{key}: the README does not say how it gets its value"


def test_the_database_is_found_by_the_names_in_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`database: postgresql://` says nothing; libpq's own variables do."""
    (application,) = yaml.safe_load(named("RayService", "bco")["spec"]["serveConfigV2"])["applications"]
    keys = named("Secret", "bco-postgresql")["metadata"]["annotations"]["bco/keys"].split(",")
    for key, value in zip(keys, ["127.0.0.1", "1", "there", "somebody", "secret"], strict=True):
        monkeypatch.setenv(key, value)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1.* port 1") as refused:
        open_database(tmp_path, application["args"]["database"])
    assert "secret" not in str(refused.value)


def test_no_environment_carries_a_secret() -> None:
    for pod in PODS:
        for container in pod["spec"]["containers"]:
            assert {one["name"] for one in container.get("env", [])} <= {"HF_HOME"}


def test_the_job_waits_for_kueue_and_its_command_is_in_the_image() -> None:
    job = named("RayJob", "bco-train")
    assert job["spec"]["suspend"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["submissionMode"] == "HTTPMode"
    _, script, spec = job["spec"]["entrypoint"].split()
    dockerfile = (ROOT / "serve/docker/Dockerfile").read_text()
    assert f"COPY jobs/train.py {script}" in dockerfile
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = (one for one in head["containers"][0]["volumeMounts"] if one["name"] == "spec")
    assert str(Path(spec).parent) == mount["mountPath"]
    assert "--from-file=spec.yaml=jobs/eight-gpus.yaml" in (FOLDERS["jobs"] / "README.md").read_text()


def test_the_shipped_spec_fits_the_jobs_cluster() -> None:
    workers = load_spec(ROOT / "jobs/eight-gpus.yaml").training
    (gpu,) = (one for one in CLUSTERS["RayJob"]["workerGroupSpecs"] if one["groupName"] == "gpu")
    assert workers.workers == (gpu["replicas"], gpu["replicas"])
    for name, count in workers.resources_per_worker.items():
        assert count <= float(gpu["resources"][name])


def test_training_leaves_a_machine_before_kubernetes_ends_it() -> None:
    """The command is bco's own, and its time ends before the pod's."""
    trainers = [group for group in CLUSTERS["RayCluster"]["workerGroupSpecs"] if group["groupName"].startswith("gpu")]
    assert trainers
    for group in trainers:
        pod = group["template"]["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:-1] == ["bco", "node", "leave", "--seconds"]
        assert float(command[-1]) < pod["terminationGracePeriodSeconds"]
    assert "--seconds" in {option for parameter in leave_options() for option in parameter.opts}


def leave_options() -> Any:
    return get_command(node_app).commands["leave"].params  # type: ignore[attr-defined]


def test_a_new_cluster_takes_over() -> None:
    service = named("RayService", "bco")["spec"]
    assert service["upgradeStrategy"] == {"type": "NewCluster"}
    drain = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"].get("drain_seconds", 120)
    grace = CLUSTERS["RayService"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > drain
    assert service["rayClusterDeletionDelaySeconds"] > drain


class Answers(BaseHTTPRequestHandler):
    """The server on the head, as far as the probe asks."""

    status = 404

    def do_GET(self) -> None:
        assert self.path == "/readyz"
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the probe is a line of curl")
def test_the_head_is_ready_until_models_load_and_from_then_on(port: int, tmp_path: Path) -> None:
    """KubeRay deploys only to a ready head, and traffic moves to a ready head: the probe has to serve both."""

    def ready(status: int | None) -> bool:
        Answers.status = status or 0
        script = command[2].replace("/tmp/served", str(tmp_path / "served"))
        script = script.replace(":8000/", f":{port if status else 1}/")
        return subprocess.run([*command[:2], script], timeout=30, check=False).returncode == 0

    container = CLUSTERS["RayService"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    command = container["readinessProbe"]["exec"]["command"]
    assert ready(None), "nothing listens: Ray is up, Serve is not"
    assert ready(404), "no application"
    assert not ready(503), "models are loading"
    assert ready(200)
    assert ready(503), "one model ails later: the others still serve"
    assert ready(None), "the container began anew"
    assert not ready(503), "and loads again"
