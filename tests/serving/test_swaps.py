"""The real thing under load: versions come and go on Ray Serve, and no request notices."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from bco_ray.models import loading
from bco_ray.models.generate import end_token_ids
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.server import start_server
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

HI: Any = [{"role": "user", "content": "Hello"}]
TOKENS = 12


@dataclass
class Site:
    """A running server that follows `helper`, and what each of its versions answers."""

    url: str
    registry: Registry
    says: dict[str, str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def promote(self, number: int) -> None:
        self.registry.promote("helper", number)

    def until_served(self, reference: str, timeout_seconds: float = 120) -> None:
        assert until(lambda: self.prod() == reference, timeout_seconds), f"{reference}: {self.ready()}"

    def prod(self) -> str | None:
        models = httpx.get(f"{self.url}/v1/models", timeout=30).json()["data"]
        return next((model["root"] for model in models if model["id"] == "helper@prod"), None)

    def ready(self) -> Any:
        return httpx.get(f"{self.url}/readyz", timeout=30).json()


@dataclass
class Load:
    """Clients that ask without a pause, half of them streaming, and check every answer."""

    site: Site
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    voted: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def whole(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(model="helper@prod", messages=HI, temperature=0, max_tokens=TOKENS)
        self.check(reply.model, reply.choices[0].message.content or "")
        if len(self.voted) < 100:
            client.chat.completions.update(reply.id, metadata={"feedback": "up"})
            self.voted.append(reply.id)

    def stream(self, client: openai.OpenAI) -> None:
        chunks = list(client.chat.completions.create(
            model="helper@prod", messages=HI, temperature=0, max_tokens=TOKENS, stream=True
        ))  # fmt: skip
        (model,) = {chunk.model for chunk in chunks}
        assert chunks[-1].choices[0].finish_reason
        self.check(model, "".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    def check(self, model: str, text: str) -> None:
        assert text == self.site.says[model], f"{model} did not say {text!r}"
        self.answers[model] += 1

    def ask(self, number: int) -> None:
        client = self.site.client()
        while not self.over.is_set():
            try:
                (self.stream if number % 2 else self.whole)(client)
            except (openai.OpenAIError, httpx.HTTPError, AssertionError, ValueError, KeyError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")


@contextmanager
def load(site: Site, clients: int = 4) -> Iterator[Load]:
    asking = Load(site)
    threads = [threading.Thread(target=asking.ask, args=[n], daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asking
    finally:
        asking.over.set()
        for thread in threads:
            thread.join(90)


def until(condition: Any, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(met)


def greedy(directory: Path) -> str:
    """What transformers' own generate answers."""
    model = loading.load_frozen(directory, dtype=torch.float32)
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ends = end_token_ids(model, tokenizer)
    out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=sorted(ends), pad_token_id=0)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def write_talkative_model(directory: Path, seed: int) -> Path:
    """The tiny model repeats its last token; with larger projections each seed says something of its own."""
    write_tiny_model(directory, seed=seed)
    weights = load_file(directory / "model.safetensors")
    louder = {name: weight * 15 if "proj" in name else weight for name, weight in weights.items()}
    save_file(louder, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_adapter(base: Path, directory: Path, seed: int) -> Path:
    """An adapter that changes what the base says."""
    torch.manual_seed(seed)
    lora = {"type": "lora", "r": 4, "alpha": 64, "target_modules": "all-linear"}
    model = loading.load_policy(base, lora, dtype=torch.float32)
    trained = {name: torch.randn_like(p) * 0.2 for name, p in model.named_parameters() if p.requires_grad}
    model.load_state_dict(trained, strict=False)
    loading.export_model(model, directory, model.state_dict(), base)
    return directory


@pytest.fixture(scope="module")
def site(ray_cluster: Any, server_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Versions 1 and 2 are whole models, 3 and 4 adapters on the first; prod is 3."""
    root = tmp_path_factory.mktemp("swaps")
    registry = Registry(root / "storage")
    for number in (1, 2):
        registry.register("helper", write_talkative_model(root / f"whole-{number}", number), {})
    base = registry.get("helper", 1).directory
    for number in (3, 4):
        registry.register("helper", write_adapter(base, root / f"adapter-{number}", number), {})
    says = {f"helper/{n}": greedy(registry.get("helper", n).directory) for n in (1, 2, 3, 4)}
    assert len(set(says.values())) == 4, "the versions cannot be told apart"
    registry.promote("helper", 3)
    args = ServeArgs(follow=["helper"], storage=root / "storage", num_cpus=0.2, poll_seconds=0.2, max_batch=4)
    handle = start_server(args, port=server_port)
    try:
        yield Site(handle.url, registry, says)
    finally:
        handle.stop()


def test_twenty_moves_under_load(site: Site) -> None:
    """Adapters are loaded into the running model; a whole model comes beside the old one (twice)."""
    moves = [4, 3] * 4 + [2] + [4, 3] * 4 + [1] + [4, 3]
    with load(site) as asking:
        for number in moves:
            site.promote(number)
            site.until_served(f"helper/{number}")
            seen = asking.answers[f"helper/{number}"]
            assert until(lambda seen=seen, n=number: asking.answers[f"helper/{n}"] > seen, 60), asking.failures[:3]
    assert asking.failures == []
    assert set(asking.answers) == set(site.says)
    assert len(moves) == 20


def test_a_rollback_goes_back(site: Site) -> None:
    before = site.prod()
    site.promote(4)
    site.until_served("helper/4")
    site.registry.rollback("helper")
    site.until_served(str(before))


def broken(site: Site, tmp_path: Path, how: str) -> int:
    """Register a version that cannot be served; its number."""
    whole = site.registry.get("helper", 2).directory
    scratch = tmp_path / "broken"
    shutil.copytree(whole, scratch, ignore=shutil.ignore_patterns("lineage.json"))
    weights = scratch / "model.safetensors"
    if how == "NaN":
        tensors = load_file(weights)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "tokenizer":
        write_tokenizer_with_more_words(scratch)
    version = site.registry.register("helper", scratch, {"run": f"{how}-{time.time()}"})
    if how == "file":
        with (version.directory / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\x01\x02\x03\x04")
    return version.version


def write_tokenizer_with_more_words(directory: Path) -> None:
    tokenizer: Any = load_tokenizer(directory)
    tokenizer.add_tokens([f"<word-{n}>" for n in range(5000)])
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("how", ["file", "NaN", "tokenizer"])
def test_a_broken_candidate_never_sees_traffic(site: Site, tmp_path: Path, how: str) -> None:
    before = site.prod()
    number = broken(site, tmp_path, how)
    with load(site, clients=2) as asking:
        site.promote(number)
        assert until(lambda: f"helper/{number}" in site.ready().get("refused", {}), 60), site.ready()
        assert until(lambda: asking.answers, 60)
        site.registry.rollback("helper")
    assert asking.failures == []
    assert list(asking.answers) == [before]
    site.until_served(str(before))


def test_a_killed_model_comes_back_and_no_thumb_is_lost(site: Site) -> None:
    with load(site) as asking:
        assert until(lambda: sum(asking.answers.values()) > 10, 60)
        kill(b"ServeReplica:bco-model-")
        so_far = sum(asking.answers.values())
        assert until(lambda: sum(asking.answers.values()) > so_far + 20, 120)
    assert all("model's process was lost" in f or "does not answer" in f for f in asking.failures), asking.failures
    log = FeedbackLog.open(site.registry.root.parent)
    votes = [log.list_votes(response_id=response)[0] for response in asking.voted]
    assert votes
    assert all(len(found) == 1 for found in votes)


def test_a_killed_director_is_missed_by_nobody(site: Site) -> None:
    """The gateways go on by the table they have; its successor learns it from them, and follows again."""
    other = 3 if site.prod() == "helper/4" else 4
    with load(site) as asking:
        kill(b"ServeReplica:bco:Director")
        assert until(lambda: sum(asking.answers.values()) > 20, 60)
        site.promote(other)
        site.until_served(f"helper/{other}")
    assert asking.failures == []


def kill(name: bytes) -> None:
    """SIGKILL this session's replicas of that name: Ray's workers carry it as their command line."""
    numbers = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if name in read(entry / "cmdline")]
    ours = [pid for pid in numbers if os.getpid() in ancestors(pid)]
    assert ours, f"no {name!r} below this process"
    for pid in ours:
        os.kill(pid, signal.SIGKILL)


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1 and (stat := read(Path(f"/proc/{pid}/stat"))):
        pid = int(stat.rpartition(b")")[2].split()[1])
        found.add(pid)
    return found


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
