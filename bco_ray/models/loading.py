"""Hugging Face model directories in and out: whole models and LoRA adapters, for scoring, training and export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bco_ray.errors import ModelError, SpecError
from bco_ray.storage import files

CausalLM = Any
"""A transformers PreTrainedModel with a language-model head, or a peft model around one."""

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(directory: str | Path) -> bool:
    """Whether the directory holds an adapter on top of another model."""
    return (Path(directory) / ADAPTER_CONFIG).is_file()


def load_frozen(directory: str | Path, *, dtype: torch.dtype, revision: str | None = None) -> CausalLM:
    """The model in `directory` for inference: eval mode, no gradients, an adapter merged into its base."""
    lm = _load_whole(directory, dtype, revision)
    return lm.requires_grad_(False).eval()


def load_policy(directory: str | Path, adapter: dict[str, Any] | None, *, dtype: torch.dtype) -> CausalLM:
    """The model to train. With `adapter` (r, alpha, target_modules) only a LoRA adapter is trainable.

    An adapter directory as the start continues that same adapter, so that what is exported still fits the first base.
    """
    if adapter is None:
        lm = _load_whole(directory, dtype, None)
    elif is_adapter(directory):
        lm = _continue_adapter(Path(directory), adapter, dtype)
    else:
        lm = _new_adapter(_load_whole(directory, dtype, None), adapter)
    switch_off_dropout(lm)
    return lm.train()


def export_model(lm: CausalLM, directory: Path, state: dict[str, torch.Tensor], tokenizer_from: str | Path) -> None:
    """Write what was trained (whole model or adapter) and its tokenizer as a directory that `from_pretrained` reads."""
    lm.save_pretrained(directory, state_dict=state, safe_serialization=True)
    transformers.AutoTokenizer.from_pretrained(str(tokenizer_from)).save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty template; the registry writes the real card


def switch_off_dropout(lm: nn.Module) -> None:
    """Policy and reference must be the same function of the weights."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - a module's attributes are typed as tensors


def trainable(lm: nn.Module) -> list[nn.Parameter]:
    """Parameters that training changes."""
    return [p for p in lm.parameters() if p.requires_grad]


def parameter_count(directory: str | Path) -> int:
    """Number of weights, from the config alone (no weights are read); an adapter counts its base."""
    config = transformers.AutoConfig.from_pretrained(str(base_of(directory)))
    with torch.device("meta"):
        return int(transformers.AutoModelForCausalLM.from_config(config).num_parameters())


def base_of(directory: str | Path) -> str:
    """The whole model a directory stands on: itself, or what its adapter config names."""
    if not is_adapter(directory):
        return str(directory)
    return str(json.loads((Path(directory) / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])


def fingerprint(directory: str | Path) -> str:
    """A content address of weights, config, tokenizer and template; of the name alone if it is a hub id."""
    path = Path(directory)
    if not path.is_dir():
        return files.digest({"hub": str(directory)})
    kept = [p for p in files.list_files(path) if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")]
    parts = {p.name: files.sha256(p) for p in kept if p.name != "lineage.json"}
    base = [fingerprint(base_of(path))] if is_adapter(path) else []
    return files.digest({"files": parts, "base": base})


def check_model_directory(directory: str | Path) -> None:
    """Raises ModelError if a local path is no model directory; a hub id is left to transformers."""
    path = Path(directory)
    looks_local = path.is_absolute() or str(directory).startswith((".", "~"))
    if looks_local and not (path / "config.json").is_file() and not is_adapter(path):
        raise ModelError(
            f"model.base: {directory}: no model directory (it has neither config.json nor {ADAPTER_CONFIG}). "
            "Point it at a directory written by save_pretrained."
        )


def _load_whole(directory: str | Path, dtype: torch.dtype, revision: str | None) -> CausalLM:
    if is_adapter(directory):
        return _with_adapter(Path(directory), dtype, is_trainable=False).merge_and_unload()
    check_model_directory(directory)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: cannot load the model: {_first_line(error)}") from None


def _new_adapter(lm: CausalLM, adapter: dict[str, Any]) -> CausalLM:
    import peft  # five seconds, which only adapters should cost

    modules: str | Sequence[str] = adapter["target_modules"]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=modules, lora_dropout=0.0
    )
    return peft.get_peft_model(lm, config)


def _with_adapter(directory: Path, dtype: torch.dtype, *, is_trainable: bool) -> CausalLM:
    import peft

    base = _load_whole(base_of(directory), dtype, None)
    return peft.PeftModel.from_pretrained(base, str(directory), is_trainable=is_trainable)


def _continue_adapter(directory: Path, adapter: dict[str, Any], dtype: torch.dtype) -> CausalLM:
    had = json.loads((directory / ADAPTER_CONFIG).read_text())["r"]
    if had != adapter["r"]:
        raise SpecError(f"model.adapter.r: {adapter['r']}, but {directory} is an adapter of rank {had}; use that rank.")
    return _with_adapter(directory, dtype, is_trainable=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
