"""`bco env`: what a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = ("bco-ray", "torch", "ray", "deepspeed", "transformers", "peft", "pyarrow", "numpy", "fastapi", "pydantic")


def report() -> dict[str, Any]:
    """Versions, cores, memory and accelerators."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
