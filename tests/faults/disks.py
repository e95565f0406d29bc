"""The whole loop on a head and two nodes that share nothing but a bucket: `disks.py PRIVATE BUCKET-URI`. No test.

PRIVATE is the head's alone: every node lays an empty disk of its own over it, where the machine lets it, and has its
copies of models there. Writes what came of it to PRIVATE/found.json.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from bco_ray.config.environment import prepare_environment

prepare_environment()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from bco_ray.config import load_spec  # noqa: E402
from bco_ray.pipeline.cluster import configure_data  # noqa: E402
from bco_ray.pipeline.resolve import resolve  # noqa: E402
from bco_ray.pipeline.run import run_job  # noqa: E402
from bco_ray.pipeline.served import serve_args  # noqa: E402
from bco_ray.serving.server import start_server  # noqa: E402
from bco_ray.storage.export import export  # noqa: E402
from bco_ray.storage.feedback_log import FeedbackLog  # noqa: E402
from bco_ray.storage.files import path_of  # noqa: E402
from bco_ray.storage.registry import Registry  # noqa: E402
from bco_ray.storage.run_journal import RunJournal  # noqa: E402
from bco_ray.telemetry import Phases  # noqa: E402

WAIT_SECONDS = 120
STORE = 150 << 20
ISOLATED = ["unshare", "--mount", "--propagation", "private"]


def main(private: str, bucket: str) -> None:
    own, storage = Path(private), f"{bucket}/storage"
    os.environ["BCO_CACHE"] = f"{private}/cache"
    Registry(path_of(storage)).register("base", own / "base", {"run": "made by hand"})
    hide = [*ISOLATED, "mount", "-t", "tmpfs", "tmpfs", private]
    isolated = bool(shutil.which("unshare")) and subprocess.run(hide, check=False).returncode == 0
    with tempfile.TemporaryDirectory(prefix="bco-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        head = {"num_cpus": 1, "object_store_memory": STORE, "temp_dir": directory, "include_dashboard": False}
        Path("/tmp/ray").mkdir(exist_ok=True)  # where it writes down its address
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes: list[subprocess.Popen[bytes]] = []
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            for count in (2, 3):
                nodes.append(start_node(cluster.address, private, isolated))
                wait_for_nodes(count)
            configure_data()
            found = {"isolated": isolated, **the_loop(own, storage)}
            (own / "found.json").write_text(json.dumps(found))
        finally:
            ray.shutdown()
            for node in nodes:
                node.terminate()
            cluster.shutdown()


def start_node(address: str, private: str, isolated: bool) -> subprocess.Popen[bytes]:
    """One that sees PRIVATE empty, and has room for one worker of a training."""
    start = (
        f"exec {Path(sys.executable).with_name('ray')} start --address={address} --num-cpus=3 --block"
        f" --object-store-memory={STORE} --resources='{json.dumps({'trainer': 1})}'"
    )
    if not isolated:
        return subprocess.Popen(["sh", "-c", start], stdout=subprocess.DEVNULL)
    hidden = f"mount -t tmpfs tmpfs {private} && {start}"
    return subprocess.Popen([*ISOLATED, "sh", "-c", hidden], stdout=subprocess.DEVNULL)


def wait_for_nodes(count: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while len([node for node in ray.nodes() if node["Alive"]]) < count:
        if time.monotonic() > deadline:
            raise SystemExit("the nodes did not come")
        time.sleep(0.2)


def the_loop(own: Path, storage: str) -> dict[str, Any]:
    """Votes to a served model, a vote on its answer, and a second round from that."""
    first = run_job(resolve(load_spec(own / "spec.yaml")), Phases(quiet=True))
    again = run_job(resolve(load_spec(own / "spec.yaml")), Phases(quiet=True))
    Registry(path_of(storage)).promote("bot", first.version.version)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = start_server(serve_args("bot", path_of(storage), own / "state"), port=port)
    said = ask(server.url)
    votes = export(FeedbackLog.open(own / "state"), path_of(storage) / "feedback")
    server.stop()
    return {
        "version": first.version.reference,
        "directory": str(first.version.directory),
        "again": again.version.reference,
        "votes_kept": first.scored.kept,
        "run": str(first.job.run_directory),
        "workers": [e["workers"] for e in RunJournal(first.job.run_directory).read() if e["event"] == "training"],
        "said": said,
        "votes_exported": votes.rows if votes else 0,
        "pinned": str(resolve(load_spec(own / "spec.yaml", ["data.feedback=[feedback]"])).spec.data.feedback),
    }


def ask(url: str) -> str:
    """The model that answered; the answer gets a thumb."""
    question = {"model": "bot", "messages": [{"role": "user", "content": "Question 1?"}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=WAIT_SECONDS).raise_for_status().json()
    vote = {"response_id": answer["id"], "label": True}
    httpx.post(f"{url}/v1/feedback", json=vote, timeout=WAIT_SECONDS).raise_for_status()
    return str(answer["model"])


if __name__ == "__main__":
    main(*sys.argv[1:])
