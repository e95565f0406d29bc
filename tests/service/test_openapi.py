"""`/openapi.json` is honest: what it allows to send is answered as it says, and it says all there is."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.hooks as hooks
from fastapi import FastAPI
from fastapi.routing import APIRoute
from schemathesis.engine import events, from_schema
from schemathesis.python.asgi import get_client, shutdown_lifespans

from bco_ray.config import load_spec
from bco_ray.control import outgoing, wire
from bco_ray.control.checkpoints import Checkpoint
from bco_ray.control.http import trail_routes
from bco_ray.control.http.replies import File, FineTuningCheckpoint, FineTuningEvent
from bco_ray.control.job import JobEvent, News
from bco_ray.control.jobs import JobStore
from bco_ray.control.keys import KeyStore, Limits
from bco_ray.control.reconciler import Reconciler
from bco_ray.control.states import Status
from bco_ray.control.webhooks import WebhookStore
from bco_ray.service.app import extension, job_store
from bco_ray.service.args import ServiceArgs
from bco_ray.serving.args import describe
from bco_ray.serving.engines.protocol import Health, Load, TokenEvent, TokenLogprob
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.registry import Registry
from bco_ray.testing.evaluations import made_evaluation
from bco_ray.testing.records import write_records
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer
from bco_ray.web.openapi import TAGS

VOTES = b"".join(
    json.dumps({"prompt": f"q{n}", "completion": "yes", "label": bool(n % 2)}).encode() + b"\n" for n in range(20)
)
STEERED: dict[str, list[Status]] = {
    "cancelFineTuningJob": [], "pauseFineTuningJob": ["queued"], "resumeFineTuningJob": ["queued", "paused"],
}  # fmt: skip
"""Through which states a job can be what it is asked to be."""


TAKE_ANYTHING = ["createFeedbackBatch", "listFineTuningJobs"]
"""Any text is lines, each answered for itself; and `metadata[team]=null` asks for the text `null`."""


REFUSED = {"file": "f", "position": 0, "reason": "empty_prompt", "detail": None, "raw": b"{}"}


class Hello:
    """An engine that says hello."""

    async def generate(self, request: Any) -> AsyncGenerator[TokenEvent]:
        yield TokenEvent([5], "Hel", None, False, [TokenLogprob(5, -0.5, [(5, -0.5), (6, -1.0)])])
        yield TokenEvent([6, 0], "lo", "stop", True, [TokenLogprob(6, -0.2, [(6, -0.2)]), TokenLogprob(0, -0.1, [])])

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)


@dataclass
class SwiftCluster:
    """Whose jobs succeed as soon as they have begun."""

    storage: Path

    def submit(self, submission: str, job_id: str, attempt: int) -> None:
        directory = JobDirectory(self.storage, job_id)
        directory.path.mkdir(parents=True, exist_ok=True)  # of a job that a test has moved by hand
        directory.log.write_bytes(b"attempt 1\n")
        if directory.spec.is_file():
            places = {"run": str(self.storage / "runs" / job_id), "records": job_id}
            directory.write("resolved", {"spec": load_spec(directory.spec).model_dump(mode="json"), **places})
            write_records(self.storage / "records" / job_id, [])
            Quarantine(self.storage / "records" / job_id / "quarantine" / "import").write(("f", 0), 1, [REFUSED])
        directory.write("outcome", {"model": "bot/1", "trained_tokens": 9, "evaluation": {"eval_auc": 0.9}})

    def state(self, submission: str) -> str:
        return "succeeded"

    def stop(self, submission: str) -> None: ...


@dataclass
class Site:
    """The whole server in this process, and one of each thing that it keeps."""

    app: FastAPI
    headers: dict[str, str]
    jobs: JobStore
    known: dict[str, list[Any]] = field(default_factory=dict)

    def post(self, path: str, **options: Any) -> Any:
        with get_client(self.app) as client:
            reply = client.post(path, headers=self.headers, **options)
        assert reply.ok, reply.text
        return reply.json()["id"]

    def upload(self) -> Any:
        return self.post("/v1/files", files={"file": ("v.jsonl", VOTES)}, data={"purpose": "fine-tune"})

    def job(self, *states: Status) -> Any:
        body = {"model": "/models/base", "training_file": "feedback", "metadata": {"team": "a"}}
        job_id = self.post("/v1/fine_tuning/jobs", json=body)
        for status in states:
            self.jobs.move(job_id, status, News("Moved."))
        return job_id

    def steer_another(self, case: Any) -> None:
        """A job can be steered once, so each time it is one that can be."""
        states = STEERED.get(case.operation.definition.raw["operationId"])
        if states is not None and case.path_parameters.get("job_id") in self.known["path.job_id"]:
            case.path_parameters["job_id"] = self.job(*states)

    def fill(self) -> None:
        answer = self.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "?"}]})
        file = self.upload()
        hook = {"url": "https://hooks.example/x", "events": ["fine_tuning.job.succeeded"]}
        self.known = {
            "body.model": ["m/1", "m", "/models/base"],
            "body.training_file": ["feedback", file],
            "body.response_id": [answer],
            "body.url": [hook["url"]],
            "path.completion_id": [answer],
            "path.vote_id": [self.post("/v1/feedback", json={"response_id": answer, "label": True}) for _ in range(9)],
            "path.file_id": [file],
            "path.webhook_id": [self.post("/v1/webhooks", json=hook) for _ in range(9)],
            "path.job_id": [self.job() for _ in range(9)],
            "path.name": ["m"],
            "path.version": [1, 2],
            "path.file": ["icon.svg"],
            "body.version": [1, 2],
            "body.alias": ["prod", "candidate"],
        }


def end_jobs(store: JobStore, reconciler: Reconciler, stop: threading.Event) -> None:
    """So that whoever follows a log comes to its end; what is paused is given up after a while."""
    paused: Counter[str] = Counter()
    while not stop.wait(0.1):
        reconciler.run_once()
        for job in store.page("acme", limit=100)[0]:
            paused[job.id] += job.status == "paused"
            if paused[job.id] > 3 and job.status == "paused":
                store.move(job.id, "cancelled", News("Given up."))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    storage = tmp_path_factory.mktemp("storage")
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1)
    registry = Registry(storage)
    for run, gate in (("a", None), ("b", {"auc": {"min": 0.6}, "canary": {}})):
        registry.register("m", model, {"run": run, "votes": {"read": 3, "kept": 2}, "gate": gate})
    registry.promote("m", 2, force=True)
    registry.promote("m", 1, force=True)
    registry.promote("m", 2, "candidate")
    registry.set_canary("m", 50)
    registry.evaluations("m").add(1, made_evaluation("m/1", against="m/2"), {})
    args = ServiceArgs(model_id="m/1", model_dir=model, storage=storage, allowed_places=["/models"])
    engine, keys, log = open_database(storage), KeyStore.open(storage), FeedbackLog.open(storage)
    catalog = FixedCatalog(Target(describe(args), load_tokenizer(model), Hello()))  # type: ignore[arg-type]
    app = create_api(catalog, log, keys=keys, more=extension(args, engine, keys))
    key = keys.create("acme", "n", "admin", limits=Limits(), actor="test")[1]
    jobs, stop = job_store(engine, WebhookStore(engine)), threading.Event()
    reconciler = Reconciler(jobs, SwiftCluster(storage), storage)  # type: ignore[arg-type]
    ending = threading.Thread(target=end_jobs, args=(jobs, reconciler, stop))
    found = Site(app, {"Authorization": f"Bearer {key}"}, jobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trail_routes, "FOLLOW_SECONDS", 0.05)
        patch.setattr(outgoing, "resolved", lambda _: ["93.184.216.34"])  # no test asks a name server
        found.fill()
        ending.start()
        yield found
        stop.set()
        ending.join()
        shutdown_lifespans()
    log.close()


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def settings(site: Site) -> dict[str, Any]:
    names = {place: place.replace(".", "-") for place in site.known}
    return {
        "seed": 1,
        "headers": site.headers,
        "request-timeout": 75,  # an estimate may take 60
        "continue-on-failure": True,
        "generation": {"max-examples": 10, "deterministic": True, "database": "none", "no-shrink": True},
        "dictionaries": {names[place]: {"values": values} for place, values in site.known.items()},
        "parameters": {place: {"dictionary": name, "probability": 0.7} for place, name in names.items()},
        "checks": {
            # what fits the schema may still not be possible: an unknown `after`, a model nobody has, text with U+0000
            "positive_data_acceptance": {"enabled": False},
        },
        "operations": [
            {"include-operation-id": name, "checks": {"negative_data_rejection": {"enabled": False}}}
            for name in TAKE_ANYTHING
        ],
    }


@dataclass
class Findings:
    """What schemathesis finds in all its phases. `problems`: by check and route, with a request that shows it."""

    problems: dict[str, str] = field(default_factory=dict)
    answered: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, event: Any) -> None:
        match event:
            case events.NonFatalError():
                self.problems[f"{event.phase} {event.label}"] = repr(event.value)
            case events.FatalError():
                self.problems["fatal"] = repr(event.exception)
            case events.EngineFinished():
                self.problems |= {failure.title: failure.message for failure in event.failures}
            case events.ScenarioFinished():
                self._scenario(event.recorder)

    def _scenario(self, recorder: Any) -> None:
        for case_id, exchange in recorder.interactions.items():
            operation = recorder.cases[case_id].value.operation
            if exchange.response is not None:
                seen = self.answered.setdefault(operation.definition.raw["operationId"], Counter())
                seen[exchange.response.status_code] += 1
            for check in recorder.checks.get(case_id, ()):
                if check.failure_info:
                    what = check.failure_info
                    text = f"{what.failure.title}: {what.failure.message}\n{what.code_sample}"
                    self.problems[f"{check.name} {operation.label}"] = text[:2000]


def loaded(site: Site) -> Any:
    config = schemathesis.Config.from_dict(settings(site))
    return schemathesis.openapi.from_asgi("/openapi.json", site.app, config=config, headers=site.headers)


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "?"}], "logprobs": True, "top_logprobs": 2},
    "/v1/completions": {"prompt": "?", "logprobs": 2},
}


def check_answers(site: Site, schema: Any) -> None:
    """Whole and streamed, with all that can be asked for: each event of a stream is held to its schema too."""
    for path, stream in itertools.product(ASKED, (False, True)):
        body = {"model": "m", "n": 2, "stream": stream, "stream_options": {"include_usage": True}, **ASKED[path]}
        case = schema[path]["POST"].Case(body=body, media_type="application/json")
        reply = case.call_and_validate(headers=site.headers)
        kind = "text/event-stream" if stream else "application/json"
        assert (reply.status_code, reply.headers["content-type"][0].split(";")[0]) == (200, kind)


@pytest.mark.timeout(600)
def test_every_answer_is_as_the_document_says(site: Site) -> None:
    """One test, and the first: schemathesis' plugin ends the server after each that has used it."""
    schema, found = loaded(site), Findings()
    check_answers(site, schema)

    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        site.steer_another(case)

    schemathesis.hook(before_call)
    try:
        for event in from_schema(schema).execute():
            found.add(event)
    finally:
        hooks.unregister(before_call)
    assert not found.problems, "\n\n".join(f"{where}: {what}" for where, what in found.problems.items())
    unreached = {name for name, seen in found.answered.items() if not any(200 <= status < 300 for status in seen)}
    assert unreached == {"createFile"}  # a generated upload is no log of votes; the site's own was


def test_every_route_is_in_it_and_nothing_else(site: Site) -> None:
    routes = {(method, r.path_format) for r in site.app.routes if isinstance(r, APIRoute) for method in r.methods}
    document = site.app.openapi()
    assert {(method.upper(), path) for path, methods in document["paths"].items() for method in methods} == routes
    assert {route.path for route in site.app.routes if not isinstance(route, APIRoute)} == {"/openapi.json"}  # type: ignore[attr-defined]


def test_every_operation_says_what_it_is(site: Site) -> None:
    document = site.app.openapi()
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    for operation in operations:
        assert operation["summary"]
        assert len(operation["tags"]) == 1
        assert operation["tags"][0] in TAGS
        done = {status: answer for status, answer in operation["responses"].items() if status < "400"}
        assert done
        for kinds in (answer["content"] for answer in done.values()):
            assert all(content.get("schema") or content.get("itemSchema") for content in kinds.values()), operation
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert "HTTPValidationError" not in json.dumps(document)


def test_replies_that_no_generated_request_reaches(site: Site) -> None:
    """Of an upload, and of a job that trains: the site's jobs end at once."""
    with get_client(site.app) as client:
        stored = client.get(f"/v1/files/{site.upload()}", headers=site.headers).json()
    File.model_validate(stored)
    checkpoint = Checkpoint("ftckpt-1", 40, 1.8e9, {"loss": 0.5, "rewards/margins": 0.1})
    FineTuningCheckpoint.model_validate(wire.checkpoint(checkpoint, "ftjob-1"))
    event = JobEvent(1, "ftevent-1", "ftjob-1", 1.8e9, "info", "metrics", "Step 1/9", {"step": 0, "train_loss": 0.5})
    FineTuningEvent.model_validate(wire.event(event))
