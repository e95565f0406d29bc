"""What goes wrong inside the engine stays with whom it concerns, and an engine that is broken says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from bco_ray.serving.engines.batching import batcher
from bco_ray.serving.engines.batching.adapters import Adapters
from bco_ray.serving.engines.batching.engine import FAILURES_UNTIL_DEAD, HFEngine
from bco_ray.serving.engines.batching.kv_cache import KVCache
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.batching.prefix_cache import PrefixCache
from bco_ray.serving.engines.protocol import Adapter, EngineDeadError, GenRequest, RequestRefusedError
from bco_ray.testing.tiny import write_tiny_model

IDS = list(range(40, 80))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


def adapter(directory: Path, at: Path, name: str) -> Adapter:
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")).save_pretrained(
        at
    )
    return Adapter(name, at)


def run(directory: Path, use: Callable[[HFEngine], Awaitable[Any]], **options: Any) -> Any:
    async def body() -> Any:
        engine = HFEngine(directory, context_window=400, **options)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), timeout=60)
        finally:
            await engine.stop()

    return asyncio.run(body())


async def answer(engine: HFEngine, new: int = 8, adapter: Adapter | None = None, ids: list[int] = IDS) -> list[int]:
    stream = engine.generate(GenRequest(ids, new, temperature=0.0, adapter=adapter))
    return [token async for event in stream for token in event.token_ids]


async def refused(engine: HFEngine, times: int) -> bool:
    """Whether the engine still calls itself healthy after so many refused requests."""
    for _ in range(times):
        with pytest.raises(RequestRefusedError):
            await answer(engine)
    return (await engine.health()).ok


def test_one_that_is_wanted_again_is_not_taken_away_meanwhile(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (adapter(directory, tmp_path / n, n) for n in ("one", "two"))
    tried = Adapters._try

    def asked_for_meanwhile(adapters: Adapters, name: str, network: Network) -> None:
        tried(adapters, name, network)
        assert not adapters.pin("one"), "it is leaving: whoever wants it loads it again"
        adapters.unpin("one")

    async def use(engine: HFEngine) -> None:
        await answer(engine, adapter=one)
        with monkeypatch.context() as patched:
            patched.setattr(Adapters, "_try", asked_for_meanwhile)
            await answer(engine, adapter=two)
        assert await answer(engine, adapter=one)

    run(directory, use, max_adapters=1)


def test_an_adapter_that_does_not_come_in_takes_nobodys_place(directory: Path, tmp_path: Path) -> None:
    one, two = (adapter(directory, tmp_path / n, n) for n in ("one", "two"))
    config = two.directory / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": "*proj"}))  # no regex

    async def use(engine: HFEngine) -> None:
        beside = asyncio.create_task(answer(engine, 60))
        await answer(engine, adapter=one)
        with pytest.raises(RequestRefusedError):
            await answer(engine, adapter=two)
        assert (await engine.load()).adapters == ("one",)
        assert await beside == await answer(engine, 60)

    run(directory, use, max_adapters=1)


def test_a_network_of_nothing_but_nan_is_dead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Network.logits
    monkeypatch.setattr(Network, "logits", lambda *args, **how: logits(*args, **how) * torch.nan)
    assert not run(directory, lambda engine: refused(engine, FAILURES_UNTIL_DEAD))


def test_one_that_reads_prompts_and_then_always_fails_is_dead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "take", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert not run(directory, lambda engine: refused(engine, FAILURES_UNTIL_DEAD))


@pytest.mark.parametrize("error", [MemoryError, TypeError])
def test_nobody_waits_for_an_engine_that_broke_while_it_began_to_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("no")

    monkeypatch.setattr(batcher, "Prefill", fail)

    async def use(engine: HFEngine) -> None:
        with pytest.raises((RequestRefusedError, EngineDeadError)):
            await answer(engine)

    run(directory, use)


def test_prompts_that_could_not_be_remembered_are_not_remembered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: HFEngine) -> None:
        expected = await answer(engine, ids=IDS[::-1])
        with monkeypatch.context() as patched:
            patched.setattr(PrefixCache, "_write", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
            first = await answer(engine)
        assert await answer(engine) == first
        assert (await engine.load()).cached_tokens == 0
        assert await answer(engine, ids=IDS[::-1]) == expected
        assert (await engine.health()).ok

    run(directory, use)


def test_a_turn_that_ends_all_answers_is_not_the_last_while_others_wait(directory: Path) -> None:
    async def use(engine: HFEngine) -> None:
        turns: list[bool] = []
        turn = engine._batcher.turn

        def noted() -> bool:
            turns.append(turn())
            return turns[-1]

        engine._batcher.turn = noted  # type: ignore[method-assign]
        await asyncio.gather(*(answer(engine, 1) for _ in range(6)))
        busy = turns[turns.index(True) : len(turns) - turns[::-1].index(True)]
        assert all(busy), "it never rests in between"

    run(directory, use, max_batch=1)
