"""The embedded engine against `model.generate`, and one request against another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import peft
import pytest
import torch
import transformers

from bco_ray.errors import ModelError
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.protocol import (
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    RequestRefusedError,
    TokenEvent,
)
from bco_ray.testing.tiny import write_tiny_model

T = TypeVar("T")
Texts = ["Hello", "The shop opens at nine and closes at six, they say.", "a", "What is the capital of France?"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in Texts]


def with_engine(directory: Path, use: Callable[[HFEngine], Awaitable[T]], **options: Any) -> T:
    """Run `use` with a started engine; the engine ends whatever happens."""

    async def body() -> T:
        engine = HFEngine(directory, context_window=512, **options)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), timeout=120)
        finally:
            await engine.stop()

    return asyncio.run(body())


async def collect(engine: HFEngine, request: GenRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(request)]


def tokens(events: list[TokenEvent]) -> list[int]:
    return [i for event in events for i in event.token_ids]


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def greedy(ids: list[int], new: int = 24, **fields: Any) -> GenRequest:
    return GenRequest(ids, new, temperature=0.0, **fields)


def reference(directory: Path, ids: list[int], new: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    return list(out[0, len(ids) :].tolist())


def ending(directory: Path, at: Path, ids: list[int], position: int) -> tuple[Path, int]:
    """A copy of the model that ends its greedy answer to `ids` at `position`, by its generation config alone."""
    end = reference(directory, ids, position + 1)[position]
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model.generation_config.eos_token_id = [*model.generation_config.eos_token_id, end]
    model.save_pretrained(at)
    transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(at)
    return at, end


def test_greedy_equals_generate_alone_and_batched(directory: Path, prompts: list[list[int]]) -> None:
    requests = [greedy(ids, new) for ids, new in zip(prompts, (24, 7, 30, 15), strict=True)]

    async def use(engine: HFEngine) -> tuple[list[list[TokenEvent]], list[list[TokenEvent]]]:
        alone = [await collect(engine, request) for request in requests]
        return alone, list(await asyncio.gather(*(collect(engine, request) for request in requests)))

    alone, batched = with_engine(directory, use)
    wanted = [reference(directory, r.token_ids, r.max_new) for r in requests]
    assert [tokens(events) for events in alone] == wanted
    assert [tokens(events) for events in batched] == wanted


def test_text_is_the_decoded_answer_and_only_the_last_event_ends(directory: Path, tokenizer: Any) -> None:
    events = with_engine(directory, lambda engine: collect(engine, greedy(tokenizer("Hello")["input_ids"], 40)))
    assert text(events) == tokenizer.decode(tokens(events), skip_special_tokens=True)
    assert [e.finish_reason for e in events] == [None] * 39 + ["length"]


def test_any_end_token_of_the_generation_config_ends(directory: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    ended, end = ending(directory, tmp_path, prompts[0], 5)
    events = with_engine(ended, lambda engine: collect(engine, greedy(prompts[0])))
    assert tokens(events) == reference(ended, prompts[0], 24)
    assert (tokens(events)[-1], events[-1].finish_reason) == (end, "stop")


def test_a_seed_means_the_same_alone_and_in_company(directory: Path, prompts: list[list[int]]) -> None:
    request = GenRequest(prompts[0], 20, temperature=0.9, top_p=0.95, top_k=50, seed=7)

    async def use(engine: HFEngine) -> list[list[int]]:
        first = tokens(await collect(engine, request))
        company = [GenRequest(ids, 9, temperature=1.3) for ids in prompts]
        both = await asyncio.gather(*(collect(engine, r) for r in [*company, request]))
        other = GenRequest(prompts[0], 20, temperature=0.9, top_p=0.95, top_k=50, seed=8)
        return [first, tokens(both[-1]), tokens(await collect(engine, other))]

    first, again, other = with_engine(directory, use)
    assert first == again
    assert first != other


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-9}])
def test_narrow_sampling_is_greedy(directory: Path, prompts: list[list[int]], narrow: dict[str, Any]) -> None:
    request = GenRequest(prompts[1], 12, **narrow)
    events = with_engine(directory, lambda engine: collect(engine, request))
    assert tokens(events) == reference(directory, prompts[1], 12)


def test_stop_strings_are_cut_from_the_text(directory: Path, prompts: list[list[int]], tokenizer: Any) -> None:
    whole = tokenizer.decode(reference(directory, prompts[1], 40), skip_special_tokens=True)
    stop = whole[8:11]
    assert len(stop) == 3
    events = with_engine(directory, lambda engine: collect(engine, greedy(prompts[1], 40, stop=(stop,))))
    assert text(events) == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"
    assert len(events) < 40


def test_a_cancelled_request_leaves_the_batch(directory: Path, prompts: list[list[int]]) -> None:
    async def use(engine: HFEngine) -> tuple[list[int], int]:
        abandoned = engine.generate(greedy(prompts[0], 400))
        staying = asyncio.create_task(collect(engine, greedy(prompts[1], 30)))
        await anext(abandoned)
        await abandoned.aclose()
        done = tokens(await staying)
        for _ in range(200):
            if (load := await engine.load()).running == 0:
                break
            await asyncio.sleep(0.05)
        return done, load.running

    done, running = with_engine(directory, use)
    assert done == reference(directory, prompts[1], 30)
    assert running == 0, "the 400 tokens nobody wants are not generated"


@pytest.mark.parametrize(
    "bad",
    [GenRequest([], 5), GenRequest([10**6], 5), GenRequest([-1], 5), GenRequest([5], 0), GenRequest([5] * 500, 13)],
)
def test_impossible_requests_are_refused_at_once(directory: Path, bad: GenRequest) -> None:
    async def use(engine: HFEngine) -> None:
        with pytest.raises(RequestRefusedError):
            await collect(engine, bad)

    with_engine(directory, use)


def test_a_request_that_breaks_the_model_fails_alone(
    directory: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Network.logits

    def fragile(self: Network, new_BT: Any, *rest: Any) -> torch.Tensor:
        if any(299 in row for row in new_BT):
            raise RuntimeError("out of memory, say")
        return logits(self, new_BT, *rest)

    monkeypatch.setattr(Network, "logits", fragile)

    async def use(engine: HFEngine) -> list[Any]:
        requests = [greedy(prompts[0]), greedy([299]), greedy(prompts[1])]
        return list(await asyncio.gather(*(collect(engine, r) for r in requests), return_exceptions=True))

    first, bad, second = with_engine(directory, use)
    assert tokens(first) == reference(directory, prompts[0], 24)
    assert tokens(second) == reference(directory, prompts[1], 24)
    assert isinstance(bad, RequestRefusedError)


def test_too_many_waiting_requests_are_turned_away(directory: Path, prompts: list[list[int]]) -> None:
    async def use(engine: HFEngine) -> list[Any]:
        requests = [greedy(prompts[0], 20) for _ in range(12)]
        return list(await asyncio.gather(*(collect(engine, r) for r in requests), return_exceptions=True))

    results = with_engine(directory, use, max_batch=2, max_waiting=3)
    refused = [r for r in results if isinstance(r, EngineOverloadedError)]
    assert 1 <= len(refused) <= 9
    assert all(len(r) == 20 for r in results if r not in refused)


def test_a_model_that_always_fails_is_unhealthy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("device lost")

    monkeypatch.setattr(Network, "logits", broken)

    async def use(engine: HFEngine) -> list[bool]:
        seen = [(await engine.health()).ok]
        for _ in range(3):
            with pytest.raises(RequestRefusedError, match="device lost"):
                await collect(engine, greedy([5]))
        return [*seen, (await engine.health()).ok]

    assert with_engine(directory, use) == [True, False]


def test_a_dead_thread_fails_what_waits(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> torch.Tensor:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(Network, "logits", bug)
    monkeypatch.setattr("threading.excepthook", lambda *_: None)

    async def use(engine: HFEngine) -> bool:
        for _ in range(2):
            with pytest.raises(EngineDeadError):
                await collect(engine, greedy([5]))
        return (await engine.health()).ok

    assert with_engine(directory, use) is False


def test_stopping_ends_requests_in_flight(directory: Path, prompts: list[list[int]]) -> None:
    async def use(engine: HFEngine) -> None:
        stream = engine.generate(greedy(prompts[0], 450))
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass

    with_engine(directory, use)


def test_an_adapter_directory_is_served_on_its_base(directory: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path)
    out = adapted.generate(input_ids=torch.tensor([prompts[1]]), max_new_tokens=12, do_sample=False)
    events = with_engine(tmp_path, lambda engine: collect(engine, greedy(prompts[1], 12)))
    assert tokens(events) == out[0, len(prompts[1]) :].tolist()
    assert tokens(events) != reference(directory, prompts[1], 12)


def test_a_directory_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    async def body() -> None:
        await HFEngine(tmp_path, context_window=10).start()

    with pytest.raises(ModelError):
        asyncio.run(body())


def test_what_comes_within_a_moment_comes_as_one(directory: Path, prompts: list[list[int]]) -> None:
    request = GenRequest(prompts[1], 40, temperature=0.0, logprobs=1)
    alone = with_engine(directory, lambda engine: collect(engine, request))
    together = with_engine(directory, lambda engine: collect(engine, request), stream_seconds=0.03)
    assert len(together) < len(alone)
    assert sum(together[1:], together[0]) == sum(alone[1:], alone[0])


def test_the_end_of_an_answer_does_not_wait_for_the_moment_to_pass(directory: Path, prompts: list[list[int]]) -> None:
    async def ask(engine: HFEngine) -> list[TokenEvent]:
        async with asyncio.timeout(60):
            return await collect(engine, GenRequest(prompts[1], 40, temperature=0.0))

    first, rest = with_engine(directory, ask, stream_seconds=3600.0)
    assert len(first.token_ids) + len(rest.token_ids) == 40
