"""Activation checkpointing: a layer's inside is computed again in the backward pass instead of kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bco_ray.errors import ModelError
from bco_ray.models.loading import CausalLM


def checkpoint_activations(lm: CausalLM) -> None:
    """Keep only what enters each layer of `lm`. Values and gradients stay what they were; twice is once.

    transformers' own switch works in training mode only, which would wake dropout in layers that ask for the mode (OPT,
    GPT-2); so each layer's `forward` is wrapped here, inside of the hooks that ZeRO hangs around it. Raises
    ModelError if no layers are found.
    """
    layers = [module for module in lm.modules() if _is_layer(module)]
    if not layers:
        raise ModelError(
            f"{type(lm).__name__}: no layers that can be computed twice were found; set "
            "training.gradient_checkpointing to false."
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = partial(_forward, layer.forward)


def _is_layer(module: nn.Module) -> bool:
    """What derives from transformers' GradientCheckpointingLayer has this on its class, whole models on the object."""
    return getattr(type(module), "gradient_checkpointing", None) is False


def _forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
