"""The rate the machine multiplies matrices at, as one more process of the run: `python training_matmul.py ORDER.json`.

Square matrices, the best of some sizes; FLOP per CPU second is what a CPU's shares are taken of, FLOP per wall second
a GPU's.
"""

from __future__ import annotations

import sys
import time

import torch
from training_meter import read_order, write_result

SIZES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
LEAST_SECONDS = {"cpu": 1.0, "cuda": 0.5}
MOST_SECONDS = 5.0
"""Of one multiplication."""


def rate(size: int, dtype: torch.dtype, device: str, least_seconds: float) -> dict[str, float]:
    """FLOP per second, over as many multiplications as fit in `least_seconds`, after one to warm up."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = a @ b
    wait(device)
    start, start_cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < least_seconds:
        torch.mm(a, b, out=out)
        wait(device)
        count += 1
    flops = 2.0 * size**3 * count
    return {"wall": flops / (time.perf_counter() - start), "cpu": flops / (time.process_time() - start_cpu)}


def wait(device: str) -> None:
    """For the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak(dtype: torch.dtype, device: str, sizes: tuple[int, ...]) -> dict[str, float]:
    """The best size's rates. A precision that the processor emulates is so slow that larger sizes are left out."""
    best = {"wall": 0.0, "cpu": 0.0}
    for size in sizes:
        if best["wall"] and 2.0 * size**3 / best["wall"] > MOST_SECONDS:
            break
        found = rate(size, dtype, device, LEAST_SECONDS[device])
        best = {name: max(best[name], found[name]) for name in best}
    return best


def main(path: str) -> None:
    """Both precisions."""
    order = read_order(path)
    torch.set_num_threads(order["threads"])
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    device = order["device"]
    write_result(order, {name: peak(dtype, device, SIZES[device]) for name, dtype in dtypes.items()})


if __name__ == "__main__":
    main(sys.argv[1])
