"""Hugging Face model directories in and out: whole models and LoRA adapters, for scoring, training and export."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from bco_ray.errors import ModelError, SpecError
from bco_ray.storage import files
from bco_ray.storage.disk_errors import disk_errors
from bco_ray.storage.local_copies import local_copy

CausalLM = Any
"""A transformers PreTrainedModel with a language-model head, or a peft model around one."""

ADAPTER_CONFIG = "adapter_config.json"
_NOT_BY_ROW = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "alora_invocation_tokens")
_OTHER_FORMATS = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pth"]


def is_adapter(directory: str | Path) -> bool:
    """Whether the directory holds an adapter on top of another model."""
    return (files.path_of(str(directory)) / ADAPTER_CONFIG).is_file()


def load_frozen(directory: str | Path, *, dtype: torch.dtype, quantization: str = "none") -> CausalLM:
    """The model in `directory` for inference: eval mode, no gradients. An adapter stays beside its base.

    Merging would round the adapter away in bfloat16 and make another function of it than the one that was trained.
    `quantization` (none, nf4, int8) of the base's weights; they then lie where the computing is done.
    """
    base = _load_whole(base_of(directory), dtype, quantization)
    lm = _with_adapter(base, directory, dtype, is_trainable=False) if is_adapter(directory) else base
    return lm.requires_grad_(False).eval()


def load_policy(
    directory: str | Path, adapter: dict[str, Any] | None, *, dtype: torch.dtype, quantization: str = "none"
) -> CausalLM:
    """The model to train. With `adapter` (r, alpha, target_modules) only a LoRA adapter is trainable.

    An adapter directory as the start continues that same adapter, so that what is exported still fits the first base.
    In eval mode, as the reference is: dropout of any kind would make policy and reference different functions.
    """
    if adapter is None and quantization != "none":
        raise SpecError("model.quantization: quantised weights cannot be trained; set model.adapter to {type: lora}.")
    if adapter is None and is_adapter(directory):
        lm = _merged(directory, dtype)
    elif adapter is None:
        lm = _load_whole(directory, dtype)
    elif is_adapter(directory):
        _check_same_adapter(files.path_of(str(directory)), adapter)
        base = _load_whole(base_of(directory), dtype, quantization)
        lm = _with_adapter(base, directory, dtype, is_trainable=True)
    else:
        lm = _new_adapter(_load_whole(directory, dtype, quantization), adapter, dtype)
    return lm.eval()


@contextmanager
def partitioned(config: Mapping[str, Any]) -> Iterator[None]:
    """A whole model loaded inside is shared out over the workers while it is built, as DeepSpeed's `config` says."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(dict(config))  # transformers keeps only a weak reference to it
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def read_adapter(directory: str | Path, *, dtype: torch.dtype, device: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A LoRA adapter's peft config and weights, for `attach_adapter`. Raises ModelError.

    Only what one forward can apply to some rows and not to others: no DoRA, no biases, no whole modules.
    """
    import peft

    try:
        there = str(local_copy(directory))
        config = peft.PeftConfig.from_pretrained(there)
        read = peft.utils.load_peft_weights(there, device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{directory}: cannot read the adapter: {_first_line(error)}") from None
    more = [name for name in _NOT_BY_ROW if getattr(config, name, None)]
    if config.peft_type != peft.PeftType.LORA or config.bias != "none" or more:
        raise ModelError(f"{directory}: not a plain LoRA adapter ({', '.join(more) or 'its type or bias'}); merge it.")
    weights = {name: weight.to(device=device, dtype=dtype) for name, weight in read.items()}
    if not weights or not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ModelError(f"{directory}: the adapter has no weights, or some that are not finite numbers.")
    return config, weights


def attach_adapter(lm: CausalLM, name: str, config: Any) -> CausalLM:
    """Make room for an adapter beside those that `lm` has, or around it; the peft model. Fill it before any forward.

    `name` has neither dots nor slashes. Raises ModelError if the model has no such modules.
    """
    import peft

    quick = {"low_cpu_mem_usage": True, "autocast_adapter_dtype": False}
    config.inference_mode = True
    try:
        if not isinstance(lm, peft.PeftModel):
            return peft.PeftModel(lm, config, adapter_name=name, **quick).eval()
        lm.add_adapter(name, config, **quick)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the adapter does not fit the model: {_first_line(error)}") from None
    return lm.eval()


def fill_adapter(lm: CausalLM, name: str, weights: dict[str, torch.Tensor]) -> None:
    """Give an attached adapter its weights. Raises ModelError unless they are exactly those it has room for."""
    import peft

    try:
        result = peft.set_peft_model_state_dict(lm, weights, adapter_name=name, low_cpu_mem_usage=True)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the adapter does not fit the model: {_first_line(error)}") from None
    missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    if missing or result.unexpected_keys:
        raise ModelError(f"the adapter does not fit the model: {(missing + result.unexpected_keys)[0]}")


def detach_adapter(lm: CausalLM, name: str) -> None:
    """Take an adapter off a peft model; one that is not there is no error."""
    import peft

    if isinstance(lm, peft.PeftModel) and name in lm.peft_config:
        lm.delete_adapter(name)


def export_model(lm: CausalLM, directory: Path, state: dict[str, torch.Tensor], tokenizer_from: str | Path) -> None:
    """Write what was trained (whole model or adapter) and its tokenizer as a directory that `from_pretrained` reads."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(local_copy(tokenizer_from, weights=False)))
    with disk_errors():
        lm.save_pretrained(directory, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty template; the registry writes the real card


def parameter_count(directory: str | Path) -> int:
    """Number of weights, from the config alone (no weights are read); an adapter counts its base."""
    return int(skeleton(directory).num_parameters())


def skeleton(directory: str | Path, adapter: dict[str, Any] | None = None) -> CausalLM:
    """The base of `directory`, a LoRA adapter on it, as shapes alone (on torch's meta device). Raises ModelError."""
    try:
        config = _config_of(base_of(directory))
        with torch.device("meta"):
            lm = transformers.AutoModelForCausalLM.from_config(config)
            return lm if adapter is None else _new_adapter(lm, adapter, torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: no model can be made of its config.json: {_first_line(error)}") from None


def vocabulary_size(directory: str | Path) -> int:
    """Entries of the embedding table, from the config alone."""
    config = _config_of(base_of(directory))
    return int(config.get_text_config().vocab_size)


def base_of(directory: str | Path) -> str:
    """The whole model a directory stands on: itself, or what its adapter config names."""
    if not is_adapter(directory):
        return str(directory)
    return str(json.loads((files.path_of(str(directory)) / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])


def fingerprint(directory: str | Path) -> str:
    """A content address of a model directory: every file but cards and lineage, and the base of an adapter."""
    path = files.path_of(str(directory))
    kept = [p for p in files.list_files(path) if p.name not in ("README.md", "lineage.json") and p.name[0] != "."]
    parts = {p.relative_to(path).as_posix(): files.sha256(p) for p in kept}
    base = [fingerprint(base_of(path))] if is_adapter(path) else []
    return files.digest({"files": parts, "base": base})


def download(repository: str, revision: str | None) -> Path:
    """A hub repository as a local directory, named by its commit. Raises ModelError naming the way out."""
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, ignore_patterns=_OTHER_FORMATS))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ModelError(
            f"model.base: {repository}: no such directory, no registered model, and the hub does not give it "
            f"({_first_line(error)}). Check the path or the name."
        ) from None


def check_model_directory(path: Path) -> None:
    """Raises ModelError if a directory holds no model."""
    if not (path / "config.json").is_file() and not is_adapter(path):
        raise ModelError(
            f"model.base: {path}: no model directory (it has neither config.json nor {ADAPTER_CONFIG}). "
            "Point it at a directory written by save_pretrained."
        )


def _load_whole(directory: str | Path, dtype: torch.dtype, quantization: str = "none") -> CausalLM:
    check_model_directory(files.path_of(str(directory)))
    how = {} if quantization == "none" else {"quantization_config": _quantized(quantization, dtype)}
    try:
        lm, told = transformers.AutoModelForCausalLM.from_pretrained(
            str(local_copy(directory)), dtype=dtype, output_loading_info=True, **how
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{directory}: cannot load the model: {_first_line(error)}") from None
    if missing := sorted(told["missing_keys"]):  # transformers would make them up
        raise ModelError(f"{directory}: {len(missing)} tensors are not in its weights, for example {missing[0]}.")
    lm.name_or_path = str(directory)  # what peft writes down as an adapter's base: the place, not our copy of it
    return lm


def _config_of(directory: str) -> Any:
    return transformers.AutoConfig.from_pretrained(str(local_copy(directory, weights=False)))


def _quantized(quantization: str, dtype: torch.dtype) -> Any:
    if not transformers.utils.is_bitsandbytes_available():
        raise ModelError(f"model.quantization {quantization}: needs bitsandbytes; pip install 'bco-ray[gpu]'.")
    if quantization == "int8":
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)  # it warns in every layer of every forward
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _new_adapter(base: CausalLM, adapter: dict[str, Any], dtype: torch.dtype) -> CausalLM:
    import peft  # five seconds, which only adapters should cost

    modules: str | Sequence[str] = adapter["target_modules"]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=modules, lora_dropout=0.0
    )
    return _computing_in(dtype, peft.get_peft_model(base, config))


def _with_adapter(base: CausalLM, directory: str | Path, dtype: torch.dtype, *, is_trainable: bool) -> CausalLM:
    import peft

    there = str(local_copy(directory))
    return _computing_in(dtype, peft.PeftModel.from_pretrained(base, there, is_trainable=is_trainable))


def _computing_in(dtype: torch.dtype, lm: CausalLM) -> CausalLM:
    """peft likes its adapters in float32, DeepSpeed trains them in the dtype of all: scored must be what is trained."""
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return lm


def _merged(directory: str | Path, dtype: torch.dtype) -> CausalLM:
    """The adapter's weights added to its base's, in float32. Raises ModelError where nobody has whole weights."""
    if transformers.integrations.is_deepspeed_zero3_enabled():
        raise ModelError(
            f"model.base: {directory} is an adapter, and ZeRO 3 cannot merge it into shares of its base. Continue it "
            "(model.adapter), set training.deepspeed.zero_stage to 2, or name a merged model."
        )
    base = _load_whole(base_of(directory), torch.float32)
    return _with_adapter(base, directory, torch.float32, is_trainable=False).merge_and_unload().to(dtype)


def _check_same_adapter(directory: Path, adapter: dict[str, Any]) -> None:
    had = json.loads((directory / ADAPTER_CONFIG).read_text())
    asked = {"r": adapter["r"], "lora_alpha": adapter["alpha"]}
    if isinstance(adapter["target_modules"], list):
        asked["target_modules"] = sorted(adapter["target_modules"])
        had["target_modules"] = sorted(had["target_modules"])
    differing = {name: had[name] for name, value in asked.items() if had[name] != value}
    if differing:
        raise SpecError(f"model.adapter: {directory} is continued with its own settings, {differing}: ask for those.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
