"""What a server is told, and what it knows about the model it serves. No torch, no Ray: the gateway imports this."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

import bco_ray
from bco_ray.errors import ModelError

_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def _absolute(path: Path) -> Path:
    """Replicas run in other working directories."""
    return path.expanduser().absolute()


LocalPath = Annotated[Path, AfterValidator(_absolute)]


class ServeArgs(BaseModel):
    """One model version behind one port. `model_id` is exact (`name/3`); `aliases` (`name@prod`) and the bare name
    are accepted too. `model_dir`: a model or adapter directory. `threads`: torch threads of the model's process.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str = Field(min_length=1)
    model_dir: LocalPath
    storage: LocalPath
    aliases: list[str] = Field(default_factory=list)
    max_batch: int = Field(default=8, ge=1)
    max_waiting: int = Field(default=64, ge=1)
    threads: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    context_window: int | None = Field(default=None, ge=2)
    default_max_tokens: int = Field(default=512, ge=1)


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
    """Read the model directory's small files. Raises ModelError if it is none, or does not say its context window."""
    base = _base_of(args.model_dir)
    has_own = (args.model_dir / "tokenizer_config.json").is_file()
    return Served(
        model_id=args.model_id,
        aliases=tuple(args.aliases),
        system_fingerprint=f"bco-ray-{bco_ray.__version__}/{args.model_id}",
        created=_registered_at(args.model_dir),
        context_window=args.context_window or _window(base / "config.json"),
        default_max_tokens=args.default_max_tokens,
        tokenizer_dir=args.model_dir if has_own else base,
    )


def _base_of(directory: Path) -> Path:
    adapter = directory / "adapter_config.json"
    base = Path(_json(adapter)["base_model_name_or_path"]) if adapter.is_file() else directory
    return _base_of(base) if base != directory else base


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
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.parent}: no model directory that can be served: {path.name}: {error}.") from None
