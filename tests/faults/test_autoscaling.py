"""A cluster whose autoscaler starts and ends nodes: none, as many as a job wants, one killed, none.

The head has no CPU, as in cluster.yaml. Ray's fake provider makes each worker node a raylet of its own. It is loaded as
a provider from outside of Ray would be: under its own name it asks for a file that is not in the wheel.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from bco_ray.control.job import Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.control.requests import JobRequest, spec_of
from bco_ray.storage.database import open_database
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.run_journal import RunJournal
from bco_ray.testing import ray_head
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.soak]

HERE = Path(__file__).parent
SECONDS = 180
"""For whatever is waited for."""

EPOCHS = 60
"""Of 200 votes in steps of 20: some twenty seconds in which to kill."""

WORKER = {"CPU": 2, "trainer": 1, "object_store_memory": ray_head.STORE_BYTES}
"""`trainer` says where training belongs. A GPU that is not there would be asked for memory."""

LIKE_A_CLOUD = {
    "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}  # fmt: skip

SPEC: Any = {
    "training": {"num_workers": 2, "resources_per_worker": {"CPU": 1, "trainer": 1}, "max_length": 64,
                 "max_tokens_per_micro_batch": 256, "deepspeed": {"zero_stage": 0}, "checkpoint": {"every_steps": 10}},
    "scoring": {"num_workers": 1},
}  # fmt: skip


def scaling(address: str) -> dict[str, Any]:
    """What `ray up` would have made of a cluster.yaml with one type of workers, at most three of them."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        "launch_multiple": True, "gcs_address": address, "head_node_id": FAKE_HEAD_NODE_ID,
    }  # fmt: skip
    nothing: dict[str, Any] = {name: {} for name in ("auth", "docker", "file_mounts")}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    nothing |= {f"{name}_commands": [] for name in commands}
    nothing |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    workers = {"resources": WORKER, "node_config": {}, "min_workers": 0, "max_workers": 3}
    return {
        **nothing, "cluster_name": "bco-test", "max_workers": 3, "upscaling_speed": 10.0, "provider": provider,
        "idle_timeout_minutes": 0.25, "file_mounts_sync_continuously": False,
        "available_node_types": {"ray.head.default": head, "worker": workers}, "head_node_type": "ray.head.default",
    }  # fmt: skip


@dataclass
class Site:
    """A cluster without workers, a storage, and whoever looks after its jobs."""

    faults: Any
    storage: Path
    address: str
    head: Any

    def __post_init__(self) -> None:
        self.store = JobStore(open_database(self.storage))
        self.overseer = self.faults.start(HERE / "overseer.py", self.storage, self.address)

    def submit(self) -> str:
        job_id = new_id("ftjob")
        method = {"type": "bco", "bco": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": 20}}}
        asked = {"model": str(self.storage / "base"), "training_file": "votes", "spec": SPEC, "method": method}
        request = JobRequest.model_validate(asked)
        spec = spec_of(request, job_id, str(self.storage), log=str(self.storage / "votes.jsonl"), register_as="bot")
        sent = request.model_dump(mode="json", exclude_unset=True)
        order = Order(job_id, "acme", "key", sent, spec.model_dump(mode="json"), {}, body_hash(sent))
        return self.store.create(order)[0].id

    def run_of(self, job_id: str) -> Path | None:
        resolved = JobDirectory(self.storage, job_id).resolved
        return Path(resolved["run"]) if resolved else None

    def raylets(self) -> list[int]:
        """Of the worker nodes that live."""
        return [pid for pid in self.faults.running() if is_workers_raylet(words_of(pid))]

    @contextmanager
    def no_machines(self) -> Iterator[None]:
        """As if the cloud had none to give while the body runs: the autoscaler's process stands still."""
        found = [pid for pid in self.faults.running() if any(w.endswith(b"/monitor.py") for w in words_of(pid))]
        assert found
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in found:
            os.kill(pid, signal.SIGCONT)

    def nodes(self) -> list[int]:
        """How many worker nodes there were, one after the other."""
        path = self.storage / "nodes"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def started(self) -> int:
        """How many came, of which some may have gone."""
        return sum(max(0, now - before) for before, now in itertools.pairwise(self.nodes()))

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not true():
            assert self.overseer.ended() is None, self.overseer.output[-4000:]
            assert time.monotonic() < deadline, f"{what}: not in {SECONDS} s. {self.nodes()} {self.head.output[-2000:]}"
            time.sleep(0.05)


def words_of(pid: int) -> list[bytes]:
    """Its command line; a process that has ended has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def is_workers_raylet(words: list[bytes]) -> bool:
    return words[0].endswith(b"/raylet") and b"--head" not in words


@pytest.fixture
def site(faults: Any) -> Iterator[Site]:
    temporary = tempfile.mkdtemp(prefix="bco-", dir="/tmp")  # a socket's path must stay short
    ports = ray_head.free_ports()
    address = f"{ray.util.get_node_ip_address()}:{ports['port']}"
    config = faults.own / "scaling.json"
    config.write_text(json.dumps(scaling(address)))
    command = ray_head.head_command(ports, temporary, f"--autoscaling-config={config}")
    head = faults.start(*command, **LIKE_A_CLOUD, **ray_head.head_environment(ports))
    try:
        faults.until(lambda: head.ended() is not None or ray_head.answers(ports["dashboard-port"]), 120)
        assert head.ended() is None, head.output[-4000:]
        write_tiny_model(faults.root / "base")
        said = ("yes of course", "no never")
        votes = ({"prompt": f"question {n % 50}?", "completion": said[n % 2], "label": n % 2 == 0} for n in range(200))
        (faults.root / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
        yield Site(faults, faults.root, address, head)
    finally:
        faults.end_all()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.timeout(900)
def test_nodes_come_for_a_job_and_go_after_it(site: Site, faults: Any) -> None:
    """None, two, one of them killed, two again, none: the job waits, and says for what; it trains, once, to the end."""
    job_id = site.submit()

    def waits_for(what: str) -> bool:
        return site.store.get(job_id).details.get("waiting_for") == what

    def has_checkpoint() -> bool:
        assert site.store.get(job_id).finished_at is None, site.store.get(job_id)
        run = site.run_of(job_id)
        return run is not None and any(run.glob("checkpoints/*/manifest.json"))

    with site.no_machines():
        site.until(lambda: waits_for("a machine with 1 CPU"), "waiting for the first node")
    site.until(has_checkpoint, "a checkpoint")
    assert max(site.nodes()) == 2
    with site.no_machines():
        os.kill(site.raylets()[0], signal.SIGKILL)
        site.until(lambda: waits_for("2 workers are to start, and there is room for 1"), "waiting for another node")
    site.until(lambda: site.store.get(job_id).finished_at is not None, "the end of the job")
    ended = site.store.get(job_id)
    assert (ended.status, ended.attempt, ended.outcome and ended.outcome["model"]) == ("succeeded", 1, "bot/1"), ended
    site.until(lambda: site.nodes()[-1] == 0, "an empty cluster")
    run = site.run_of(job_id)
    assert run
    starts = [event["step"] for event in RunJournal(run).read() if event["event"] == "training"]
    assert starts[-1] >= 10, "it went on from a checkpoint"
    steps = [row["step"] for row in MetricsLog(run / "metrics.jsonl").read()]
    assert steps == list(range(len(steps)))
    faults.report("autoscaling", nodes_started=site.started(), killed=1, left=site.nodes()[-1], steps=len(steps))


@pytest.mark.timeout(900)
def test_an_elastic_training_gets_the_nodes_it_did_not_wait_for(site: Site, faults: Any, tmp_path: Path) -> None:
    """It begins on one, for which alone it would have to wait; the other was asked for, and is given back after it."""
    model = write_tiny_model(tmp_path / "model")
    write_scored(tmp_path / "scored", model, chosen=40, rejected=80, shards=3)
    (faults.root / "run").mkdir()
    setup = TrainSetup(
        scored=str(tmp_path / "scored"), model=str(model), run=str(faults.root / "run"), adapter=None,
        objective=Objective(beta=0.1, desirable_weight=0.5, undesirable_weight=0.5), half_life_rows=30,
        learning_rate=1e-4, lr_scheduler="linear", warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=1.0,
        epochs=150, rows_per_step=6, max_tokens_per_micro_batch=40, zero_stage=0, bf16=False, device="cpu",
        checkpoint_every=50, checkpoint_keep=2, seed=3,
    )  # fmt: skip
    (tmp_path / "setup.json").write_text(json.dumps(setup.as_dict()))
    outcome = faults.run(HERE / "elastic.py", tmp_path / "setup.json", site.address, timeout_seconds=380)
    assert outcome.status == 0, outcome.output[-4000:]
    sizes = [event["workers"] for event in RunJournal(Path(setup.run)).read() if event["event"] == "training"]
    assert (sizes[0], sizes[-1]) == (1, 2), sizes
    site.until(lambda: site.nodes()[-1] == 0, "an empty cluster")
    faults.report("autoscaling", nodes_started=site.started(), left=site.nodes()[-1])
