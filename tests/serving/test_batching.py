"""Rows that come and go, long prompts in pieces, remembered prefixes, adapters by row: always what `generate` says."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from bco_ray.errors import ModelError
from bco_ray.models import loading
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import Adapter, DeadlineError, GenRequest
from bco_ray.testing.tiny import write_tiny_model

T = TypeVar("T")
NEW = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with larger projections so that it does not only repeat itself."""
    model = write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)
    weights = load_file(model / "model.safetensors")
    louder = {name: weight * 15 if "proj" in name else weight for name, weight in weights.items()}
    save_file(louder, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def adapters(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Three, each with weights of its own."""
    found = []
    for number in range(3):
        torch.manual_seed(number)
        lora = {"type": "lora", "r": 4, "alpha": 64, "target_modules": "all-linear"}
        model = loading.load_policy(directory, lora, dtype=torch.float32)
        model.load_state_dict(
            {name: torch.randn_like(p) * 0.2 for name, p in model.named_parameters() if p.requires_grad}, strict=False
        )
        at = tmp_path_factory.mktemp("adapters") / str(number)
        loading.export_model(model, at, model.state_dict(), directory)
        found.append(Adapter(f"helper/{number}", at))
    return found


def with_engine(directory: Path, use: Callable[[HFEngine], Awaitable[T]], **options: Any) -> T:
    async def body() -> T:
        engine = HFEngine(directory, context_window=512, **options)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), timeout=200)
        finally:
            await engine.stop()

    return asyncio.run(body())


async def answer(engine: HFEngine, ids: list[int], **fields: Any) -> list[int]:
    request = GenRequest(ids, fields.pop("max_new", NEW), temperature=0.0, **fields)
    return [token async for event in engine.generate(request) for token in event.token_ids]


@cache
def said(directory: Path, ids: tuple[int, ...], new: int = NEW) -> list[int]:
    """What transformers' own generate answers."""
    model = loading.load_frozen(directory, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    return list(out[0, len(ids) :].tolist())


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(length)]


@pytest.mark.parametrize("chunk", [7, 512])
def test_rows_join_and_leave_between_steps(directory: Path, chunk: int) -> None:
    lengths = [3, 150, 40, 1, 90, 20, 200, 5, 64, 33]
    jobs = [(prompt(length, n), 3 + 2 * n) for n, length in enumerate(lengths)]

    async def use(engine: HFEngine) -> list[list[int]]:
        async def later(number: int) -> list[int]:
            await asyncio.sleep(0.02 * number)
            ids, new = jobs[number]
            return await answer(engine, ids, max_new=new)

        return await asyncio.gather(*(later(n) for n in range(len(jobs))))

    got = with_engine(directory, use, max_batch=3, prefill_chunk=chunk)
    assert got == [said(directory, tuple(ids), new) for ids, new in jobs]


def test_a_shared_beginning_is_read_once(directory: Path) -> None:
    system = prompt(120, 99)
    prompts = [system + prompt(4 + n, n) for n in range(6)]

    async def use(engine: HFEngine) -> tuple[list[list[int]], Any]:
        first = [await answer(engine, prompts[0])]
        rest = await asyncio.gather(*(answer(engine, ids) for ids in prompts[1:]))
        return first + rest, await engine.load()

    got, load = with_engine(directory, use)
    assert got == [said(directory, tuple(ids)) for ids in prompts]
    assert load.cached_tokens >= 5 * 96
    assert load.running == load.waiting == 0


def test_adapters_and_their_base_in_one_batch(directory: Path, adapters: list[Adapter]) -> None:
    """Each row is answered by its own weights, also where a prefix was remembered for others."""
    ids = prompt(60, 5)
    who = [None, *adapters[:2]] * 3

    async def use(engine: HFEngine) -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, ids, adapter=adapter) for adapter in who))

    got = with_engine(directory, use, max_batch=9)
    wanted = [said(adapter.directory if adapter else directory, tuple(ids)) for adapter in who]
    assert got == wanted
    assert len({tuple(tokens) for tokens in wanted}) == 3


def test_the_adapter_used_longest_ago_makes_room(directory: Path, adapters: list[Adapter]) -> None:
    ids = prompt(10, 6)

    async def use(engine: HFEngine) -> list[tuple[str, ...]]:
        loaded = []
        for adapter in [adapters[0], adapters[1], adapters[0], adapters[2], adapters[1]]:
            assert await answer(engine, ids, adapter=adapter) == said(adapter.directory, tuple(ids))
            loaded.append(tuple(sorted((await engine.load()).adapters)))
        return loaded

    zero, one, two = (adapter.name for adapter in adapters)
    assert with_engine(directory, use, max_adapters=2) == [(zero,), (zero, one), (zero, one), (zero, two), (one, two)]


def test_an_adapter_that_does_not_fit_changes_nothing(directory: Path, adapters: list[Adapter], tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", hidden=48)
    lora = {"type": "lora", "r": 4, "alpha": 8, "target_modules": "all-linear"}
    policy = loading.load_policy(other, lora, dtype=torch.float32)
    loading.export_model(policy, tmp_path / "adapter", policy.state_dict(), directory)
    ids = prompt(10, 7)

    async def use(engine: HFEngine) -> None:
        running = asyncio.create_task(answer(engine, ids, adapter=adapters[0], max_new=60))
        with pytest.raises(ModelError):
            await engine.load_adapter(Adapter("helper/9", tmp_path / "adapter"))
        assert await running == said(adapters[0].directory, tuple(ids), 60)
        assert await answer(engine, ids) == said(directory, tuple(ids))
        assert (await engine.load()).adapters == (adapters[0].name,)

    with_engine(directory, use)


def test_nobody_crowds_out_others(directory: Path) -> None:
    """One share has twenty requests waiting; another's only one is among the first that run."""
    order: list[str] = []

    async def use(engine: HFEngine) -> None:
        async def ask(share: str, seed: int) -> None:
            await answer(engine, prompt(8, seed), share=share, max_new=8)
            order.append(share)

        many = [asyncio.create_task(ask("many", n)) for n in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(ask("one", 100), *many)

    with_engine(directory, use, max_batch=2)
    assert "one" in order[:5]


def test_a_deadline_ends_who_waits_and_who_runs(directory: Path) -> None:
    async def use(engine: HFEngine) -> None:
        running = asyncio.create_task(answer(engine, prompt(8, 1), max_new=480, deadline=time.time() + 0.3))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(answer(engine, prompt(8, 2), deadline=time.time() + 0.05))
        for late in (running, waiting):
            with pytest.raises(DeadlineError):
                await late
        assert await answer(engine, prompt(8, 3)) == said(directory, tuple(prompt(8, 3)))

    with_engine(directory, use, max_batch=1)


def test_logprobs_are_the_models_own(directory: Path) -> None:
    ids = prompt(20, 8)

    async def use(engine: HFEngine) -> list[Any]:
        request = GenRequest(ids, 4, temperature=0.7, top_k=3, seed=1, logprobs=2)
        return [item async for event in engine.generate(request) for item in event.logprobs]

    found = with_engine(directory, use)
    model, so_far = loading.load_frozen(directory, dtype=torch.float32), list(ids)
    for item in found:
        logprobs_V = model(torch.tensor([so_far])).logits[0, -1].log_softmax(-1)
        assert item.logprob == pytest.approx(float(logprobs_V[item.token_id]), abs=1e-4)
        assert [token for token, _ in item.top] == logprobs_V.topk(2).indices.tolist()
        so_far.append(item.token_id)
    assert len(found) == 4
