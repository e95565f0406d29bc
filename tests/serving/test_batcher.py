"""The batcher inside the engine: other architectures, requests that fail, storms of cancels, budgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import transformers

from bco_ray.errors import ModelError
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.batching.kv_cache import KVCache
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.protocol import GenRequest, Load, RequestRefusedError
from bco_ray.testing.tiny import write_tiny_model

T = TypeVar("T")
SIZES = {
    **{"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
}
NAMED = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.4}
BLOOM = {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
ARCHITECTURES = {
    "grouped": lambda: transformers.LlamaConfig(**SIZES, **NAMED),
    "sliding": lambda: transformers.MistralConfig(**SIZES, **NAMED, sliding_window=24),
    "mixed": lambda: transformers.Gemma2Config(**SIZES, **NAMED, head_dim=8, sliding_window=24),
    "learned": lambda: transformers.GPT2Config(**GPT2, **NAMED),
    "alibi": lambda: transformers.BloomConfig(**BLOOM, **NAMED),
}


def write(directory: Path, config: Any) -> Path:
    """A random model of another architecture with the tiny tokenizer."""
    write_tiny_model(directory)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    model.save_pretrained(directory)
    return directory


def with_engine(directory: Path, use: Callable[[HFEngine], Awaitable[T]], **options: Any) -> T:
    async def body() -> T:
        engine = HFEngine(directory, context_window=400, **options)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), timeout=120)
        finally:
            await engine.stop()

    return asyncio.run(body())


async def answer(engine: HFEngine, ids: list[int], new: int = 12, **fields: Any) -> list[int]:
    stream = engine.generate(GenRequest(ids, new, temperature=0.0, **fields))
    return [token async for event in stream for token in event.token_ids]


def said(directory: Path, ids: list[int], new: int = 12) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    ends = {2, *([model.generation_config.eos_token_id] if model.generation_config.eos_token_id else [])}
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False, eos_token_id=list(ends))
    return list(out[0, len(ids) :].tolist())


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(length)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), ARCHITECTURES["grouped"]())


async def idle(engine: HFEngine) -> Load:
    for _ in range(200):
        if (load := await engine.load()).running + load.waiting == 0:
            break
        await asyncio.sleep(0.02)
    return load


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [11, 512])
def test_every_architecture_is_exact(architecture: str, chunk: int, tmp_path: Path) -> None:
    at = write(tmp_path, ARCHITECTURES[architecture]())
    system = prompt(40, 0)
    jobs = [(system + prompt(n, n), 4 + n) for n in (3, 30, 1, 50, 12)] + [(prompt(n, n), 30) for n in (2, 33, 90)]

    async def use(engine: HFEngine) -> list[list[int]]:
        first = [await answer(engine, *jobs[0])]
        return first + list(await asyncio.gather(*(answer(engine, ids, new) for ids, new in jobs[1:])))

    assert with_engine(at, use, max_batch=3, prefill_chunk=chunk) == [said(at, ids, new) for ids, new in jobs]


@pytest.mark.parametrize("config", ["MambaConfig", "JambaConfig"])
def test_models_that_keep_more_than_keys_and_values_are_refused(config: str, tmp_path: Path) -> None:
    kinds = {
        "MambaConfig": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2},
        "JambaConfig": {**SIZES, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    }
    at = write(tmp_path, getattr(transformers, config)(**kinds[config]))
    with pytest.raises(ModelError, match="vllm"):
        with_engine(at, idle)


def test_equal_prompts_at_one_moment_are_read_once(directory: Path) -> None:
    ids = prompt(100, 1)

    async def use(engine: HFEngine) -> tuple[list[list[int]], Load]:
        answers = await asyncio.gather(*(answer(engine, ids) for _ in range(8)))
        return list(answers), await engine.load()

    answers, load = with_engine(directory, use)
    assert answers == [said(directory, ids)] * 8
    assert load.cached_tokens == 7 * 96
    assert load.prompt_tokens == 800


def test_without_prefixes_nothing_is_remembered(directory: Path) -> None:
    async def use(engine: HFEngine) -> Load:
        for _ in range(2):
            assert await answer(engine, prompt(60, 1)) == said(directory, prompt(60, 1))
        return await engine.load()

    assert with_engine(directory, use, prefix_tokens=0).cached_tokens == 0


def test_a_poisoned_row_fails_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are no numbers, in the middle of its answer; the others go on and so does who comes next."""
    logits = Network.logits

    def poisoned(self: Network, new_BT: Any, cache: KVCache, *rest: Any) -> torch.Tensor:
        out = logits(self, new_BT, cache, *rest)
        for row, length in enumerate(cache.lengths):
            if length == 47:
                out[row] = torch.nan
                for buffer in cache.buffers:
                    buffer[row] = torch.nan
        return out

    monkeypatch.setattr(Network, "logits", poisoned)
    prompts = [prompt(5, 1), prompt(40, 2), prompt(9, 3), prompt(12, 4)]

    async def use(engine: HFEngine) -> list[Any]:
        results = list(await asyncio.gather(*(answer(engine, p) for p in prompts), return_exceptions=True))
        return [*results, await answer(engine, prompt(25, 5)), (await engine.health()).ok]

    *results, after, ok = with_engine(directory, use, max_batch=3)
    monkeypatch.undo()
    assert isinstance(results[1], RequestRefusedError)
    assert [results[n] for n in (0, 2, 3)] == [said(directory, prompts[n]) for n in (0, 2, 3)]
    assert after == said(directory, prompt(25, 5))
    assert ok


@pytest.mark.parametrize("method", ["take", "open"])
def test_rows_survive_a_failure_that_is_nobodys(directory: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine runs out of memory now and then: rows are read again and go on where they were."""
    original, calls = getattr(KVCache, method), iter(range(10**6))

    def fragile(self: KVCache, *args: Any) -> None:
        if next(calls) % 7 == 6:
            raise RuntimeError("out of memory, say")
        original(self, *args)

    prompts = [prompt(5 + 9 * n, n) for n in range(4)]
    wanted = [said(directory, ids, 20) for ids in prompts]
    monkeypatch.setattr(KVCache, method, fragile)

    async def use(engine: HFEngine) -> list[Any]:
        asked = (answer(engine, ids, 20) for ids in prompts)
        return list(await asyncio.gather(*asked, return_exceptions=True))

    results = with_engine(directory, use)
    whole = [n for n, result in enumerate(results) if not isinstance(result, RequestRefusedError)]
    assert whole, "a row that was alone when it happened may be blamed, not all of them"
    assert [results[n] for n in whole] == [wanted[n] for n in whole]


def test_a_storm_of_cancels_leaves_no_rows(directory: Path) -> None:
    rng = random.Random(0)

    async def use(engine: HFEngine) -> Load:
        async def one(seed: int) -> None:
            stream = engine.generate(GenRequest(prompt(rng.randrange(1, 120), seed), 60, seed=seed))
            async for _ in stream:
                if rng.random() < 0.2:
                    break
            await stream.aclose()

        tasks = [asyncio.create_task(one(n)) for n in range(60)]
        await asyncio.sleep(0.2)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        load = await idle(engine)
        assert await answer(engine, prompt(30, 7)) == said(directory, prompt(30, 7))
        return load

    load = with_engine(directory, use, max_batch=4, prefill_chunk=32)
    assert (load.running, load.waiting, load.kv_tokens) == (0, 0, 0)


def test_rows_wait_for_room_in_the_cache(directory: Path) -> None:
    async def use(engine: HFEngine) -> int:
        tasks = [asyncio.create_task(answer(engine, prompt(60, n), 40)) for n in range(6)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, (await engine.load()).running)
            await asyncio.sleep(0.002)
        assert [task.result() for task in tasks] == [said(directory, prompt(60, n), 40) for n in range(6)]
        with pytest.raises(RequestRefusedError):
            await answer(engine, prompt(200, 0), 100)
        return most

    assert with_engine(directory, use, kv_tokens=250) <= 2


def test_a_long_prompt_does_not_stall_the_others(directory: Path) -> None:
    """Between two tokens of a running answer at most one piece of another's prompt is read."""
    arrived: list[str] = []

    async def use(engine: HFEngine) -> None:
        async def ask(name: str, length: int, new: int) -> None:
            async for _ in engine.generate(GenRequest(prompt(length, 1), new, temperature=0.0)):
                arrived.append(name)

        short = asyncio.create_task(ask("short", 4, 60))
        while len(arrived) < 3:
            await asyncio.sleep(0.001)
        await asyncio.gather(short, ask("long", 350, 2))

    with_engine(directory, use, prefill_chunk=16)
    assert arrived.index("long") >= 3 + 350 // 16 - 4
