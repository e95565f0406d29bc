"""What a server is told, and what it knows about the model it serves. No torch, no Ray: the gateway imports this."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

import bco_ray
from bco_ray.errors import ModelError
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath

_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def _absolute(path: Path) -> Path:
    """Replicas run in other working directories."""
    if "://" in str(path) or str(path).startswith(("s3:/", "gs:/")):
        raise ValueError(f"{path}: name a directory of this machine's")
    return path.expanduser().absolute()


def _place(value: Any) -> Path:
    if not isinstance(value, str | PurePath):
        raise ValueError("name a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    path = files.path_of(str(value))
    return path if isinstance(path, ObjectPath) else _absolute(path)


LocalPath = Annotated[Path, AfterValidator(_absolute)]
Place = Annotated[
    Path, PlainValidator(_place), PlainSerializer(str, when_used="json"), WithJsonSchema({"type": "string"})
]
"""A local directory, or one in an object store."""


class ServeArgs(BaseModel):
    """`storage`: where models are registered and jobs write, a directory, `s3://` or `gs://`. `state`: this server's
    own directory, of votes, keys and jobs (the storage, if that is one).

    What is behind one port: registered models to `follow` by name, their aliases as they move; or one version for
    good: `model_id` (exact, `name/3`; `aliases` and the bare name are accepted too) in `model_dir`, a model or adapter
    directory. `threads`: torch threads of a model's process. `max_adapters`: loaded at once beside one base.
    `min_replicas` 0 lets a model go that nobody asked for `idle_seconds`; more
    than one process per model from `max_replicas`. `drain_seconds`: what a request in progress may take when its model
    leaves. `stream_seconds`: a stream sends at most so often, what comes
    between goes together (hf only; 0: every token alone). `engine`: hf is our own, vllm needs the extra [vllm] and GPUs
    (`engine_options`: more of vLLM's AsyncEngineArgs), upstream forwards to the OpenAI-compatible server at
    `upstream_url`, which calls the base `upstream_model` (its key is in the variable `upstream_key_variable` names);
    of followed names it serves only versions on `upstream_base`, the directory that model was loaded from.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    storage: Place
    state: LocalPath | None = None
    follow: list[str] = Field(default_factory=list)
    model_id: str | None = Field(default=None, min_length=1)
    model_dir: Place | None = None
    aliases: list[str] = Field(default_factory=list)
    max_batch: int = Field(default=8, ge=1)
    max_waiting: int = Field(default=64, ge=1)
    threads: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    context_window: int | None = Field(default=None, ge=2)
    default_max_tokens: int = Field(default=512, ge=1)
    max_adapters: int = Field(default=8, ge=1)
    gateways: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    idle_seconds: float = Field(default=600.0, gt=0)
    poll_seconds: float = Field(default=1.0, gt=0)
    start_seconds: float = Field(default=600.0, gt=0)
    drain_seconds: float = Field(default=120.0, ge=0)
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    stream_seconds: float = Field(default=0.03, ge=0)
    feedback_token_seconds: float = Field(default=86400.0, gt=0)
    retention_days: float | None = Field(default=None, gt=0)
    cors_origins: list[str] = Field(default_factory=list)
    engine: Literal["hf", "vllm", "upstream"] = "hf"
    engine_options: dict[str, Any] = Field(default_factory=dict)
    upstream_url: str | None = None
    upstream_model: str | None = None
    upstream_base: Place | None = None
    upstream_key_variable: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ServeArgs:
        if bool(self.follow) == bool(self.model_id) or bool(self.model_id) != bool(self.model_dir):
            raise ValueError("say either follow (names of the registry), or model_id and model_dir")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        if (self.engine == "upstream") != bool(self.upstream_url and self.upstream_model):
            raise ValueError("engine: upstream goes with upstream_url and upstream_model, and they with it")
        if self.engine == "upstream" and self.follow and not self.upstream_base:
            raise ValueError("upstream_base: say which model directory upstream_model is; no other is served by it")
        if self.state is None and isinstance(self.storage, ObjectPath):
            raise ValueError(f"state: {self.storage} is no directory; name one for votes, keys and jobs")
        return self

    @property
    def home(self) -> Path:
        """The server's own directory."""
        return self.state or self.storage

    @property
    def engine_settings(self) -> str:
        """A short digest of what an engine is started with, besides its weights: with other settings it is another."""
        return files.digest(self.model_dump(mode="json", exclude=_NOT_OF_ENGINES))[:6]


_NOT_OF_ENGINES = {
    "storage", "state", "follow", "model_id", "model_dir", "aliases", "default_max_tokens", "gateways", "poll_seconds",
    "start_seconds", "request_timeout_seconds", "feedback_token_seconds", "retention_days", "cors_origins",
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """The facts every reply needs. `created` is unix seconds, `context_window` counts prompt + new tokens."""

    model_id: str
    aliases: tuple[str, ...]
    system_fingerprint: str
    created: int
    context_window: int
    default_max_tokens: int
    tokenizer_dir: Path

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call it: the exact id, the aliases, the bare name."""
        return (self.model_id, *self.aliases, self.model_id.split("/")[0])


def describe(args: ServeArgs) -> Served:
    """The one version of `model_id` and `model_dir`. Raises ModelError."""
    assert args.model_id
    assert args.model_dir
    return describe_version(args.model_id, args.model_dir, args)


def describe_version(reference: str, directory: Path, args: ServeArgs) -> Served:
    """Read the model directory's small files. Raises ModelError if it is none, or does not say its context window."""
    base = base_directory(directory)
    has_own = (directory / "tokenizer_config.json").is_file()
    return Served(
        model_id=reference,
        aliases=tuple(args.aliases),
        system_fingerprint=f"bco-ray-{bco_ray.__version__}/{reference}",
        created=_registered_at(directory),
        context_window=args.context_window or _window(base / "config.json"),
        default_max_tokens=args.default_max_tokens,
        tokenizer_dir=directory if has_own else base,
    )


def base_directory(directory: Path) -> Path:
    """The whole model that a directory stands on: itself, or what its adapter names. Raises ModelError."""
    adapter = directory / "adapter_config.json"
    if not adapter.is_file():
        return directory
    named = _json(adapter).get("base_model_name_or_path")
    if not isinstance(named, str) or files.path_of(named) == directory:
        raise ModelError(f"{adapter}: does not name the model it stands on (base_model_name_or_path).")
    return base_directory(files.path_of(named))


def _window(config: Path) -> int:
    values = _json(config)
    values = {**values, **values.get("text_config", {})}
    window = next((values[key] for key in _WINDOW_KEYS if isinstance(values.get(key), int)), None)
    if window is None:
        raise ModelError(f"{config}: does not say how many tokens the model can read; set context_window.")
    return int(window)


def _registered_at(directory: Path) -> int:
    lineage = directory / "lineage.json"
    return int(_json(lineage).get("registered_at", time.time())) if lineage.is_file() else int(time.time())


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path.parent}: no model directory that can be served: {path.name}: {error}.") from None
