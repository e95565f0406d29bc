"""`VllmEngine` over a vLLM that is not there: its own surface as vLLM 0.29 has it, with scripted tokens behind it.

The last test wants the real one: `BCO_TEST_VLLM=1 pytest tests/serving/test_vllm_engine.py` on a machine with a GPU.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import types
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import peft
import pytest
import torch
import transformers

from bco_ray.errors import ModelError
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import (
    Adapter,
    DeadlineError,
    Engine,
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    RequestRefusedError,
    TokenEvent,
    TokenLogprob,
)
from bco_ray.serving.engines.vllm.engine import VllmEngine
from bco_ray.serving.engines.vllm.fair_tags import FairTags
from bco_ray.testing.tiny import write_tiny_model

T = TypeVar("T")


# --- vLLM's surface: vllm/sampling_params.py, lora/request.py, outputs.py, v1/engine/async_llm.py --------------------


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class VLLMClientError(Exception):
    """Not a ValueError since vLLM has it."""


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if self.seed == -1:
            self.seed = None
        if not 0.0 <= self.temperature <= 2.0:
            raise VLLMClientError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise VLLMClientError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.top_k < -1:
            raise VLLMClientError(f"top_k must be 0 (disable), or at least 1, got {self.top_k}.")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


class DeadError(Exception):
    """vllm.v1.engine.exceptions.EngineDeadError"""


class EngineGenerateError(Exception):
    pass


@dataclass
class AsyncEngineArgs:
    model: str
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    scheduling_policy: str = "fcfs"
    logprobs_mode: str = "raw_logprobs"
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    tensor_parallel_size: int = 1


@dataclass
class Vllm:
    """What stands behind the surface: the answer it gives to everything, and what it was asked."""

    answer: list[int] = field(default_factory=list)
    at_once: int = 1
    fails: Exception | None = None
    lora_fails: str = ""
    cached: int = 0
    going: asyncio.Event = field(default_factory=asyncio.Event)
    llm: Any = None
    asked: list[tuple[list[int], SamplingParams, LoRARequest | None, int]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    loras: dict[int, LoRARequest] = field(default_factory=dict)


class AsyncLLM:
    vllm: Vllm

    def __init__(self, args: AsyncEngineArgs) -> None:
        self.args = args
        self.errored = False
        self.dead_error = DeadError("EngineCore encountered an issue.")
        self.model_config = types.SimpleNamespace(get_vocab_size=lambda: 320)
        cache = types.SimpleNamespace(num_gpu_blocks=64, block_size=16)
        self.vllm_config = types.SimpleNamespace(cache_config=cache)
        self.is_shut_down = False
        self._told_to_abort: set[str] = set()

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs, start_engine_loop: bool = True) -> AsyncLLM:
        cls.vllm.llm = cls(engine_args)
        return cls.vllm.llm

    async def generate(
        self,
        prompt: dict[str, list[int]],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        vllm, params = self.vllm, sampling_params
        if self.errored:
            raise self.dead_error
        assert lora_request is None or lora_request.lora_int_id in vllm.loras, "a lazy load that fails kills the engine"
        vllm.asked.append((prompt["prompt_token_ids"], params, lora_request, priority))
        left = self._until_it_stops(params)
        try:
            while left:
                await vllm.going.wait()
                await asyncio.sleep(0)
                if vllm.fails:
                    raise vllm.fails
                if request_id in self._told_to_abort:
                    yield self._output(request_id, [], params, "abort")
                    return
                tokens, left = left[: vllm.at_once], left[vllm.at_once :]
                yield self._output(request_id, tokens, params, None if left else self._reason(tokens, params))
        except (asyncio.CancelledError, GeneratorExit):
            vllm.aborted.append(request_id)
            raise

    def _until_it_stops(self, params: SamplingParams) -> list[int]:
        tokens: list[int] = []
        for token in self.vllm.answer[: params.max_tokens]:
            tokens.append(token)
            if token in (params.stop_token_ids or []):
                break
        return tokens

    def _reason(self, tokens: list[int], params: SamplingParams) -> str:
        return "stop" if tokens[-1] in (params.stop_token_ids or []) else "length"

    def _output(self, request_id: str, tokens: list[int], params: SamplingParams, reason: str | None) -> RequestOutput:
        assert params.output_kind is RequestOutputKind.DELTA
        tables = None
        if params.logprobs is not None:
            likeliest = {100 + rank: Logprob(-float(rank), rank) for rank in range(1, params.logprobs + 1)}
            tables = [{token: Logprob(-9.5, 77), **likeliest} for token in tokens]
        text = "" if not params.detokenize else "never asked for"
        completion = CompletionOutput(0, text, tokens, None, tables, reason)
        return RequestOutput(request_id, [completion], reason is not None, self.vllm.cached)

    async def abort(self, request_id: str | list[str], internal: bool = False) -> None:
        self._told_to_abort.update([request_id] if isinstance(request_id, str) else request_id)
        self.vllm.going.set()

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        await asyncio.sleep(0)
        if self.vllm.lora_fails:
            raise Exception(f"Call to add_lora method failed: {self.vllm.lora_fails}")
        self.vllm.loras[lora_request.lora_int_id] = lora_request
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        return self.vllm.loras.pop(lora_id, None) is not None

    def shutdown(self, timeout: float | None = None) -> None:
        self.is_shut_down = True


MODULES: dict[str, dict[str, Any]] = {
    "vllm": {},
    "vllm.exceptions": {"VLLMClientError": VLLMClientError},
    "vllm.sampling_params": {"SamplingParams": SamplingParams, "RequestOutputKind": RequestOutputKind},
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": LoRARequest},
    "vllm.engine": {},
    "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
    "vllm.v1": {},
    "vllm.v1.engine": {},
    "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    "vllm.v1.engine.exceptions": {"EngineDeadError": DeadError, "EngineGenerateError": EngineGenerateError},
}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, directory: Path, prompts: list[list[int]]) -> Vllm:
    """vLLM installed; it answers what the tiny model would."""
    for name, members in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    behind = Vllm(answer=greedy_answer(directory, prompts[0], 40))
    behind.going.set()
    monkeypatch.setattr(AsyncLLM, "vllm", behind, raising=False)
    return behind


# --- what the tests share ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in ("The shop opens at nine.", "Hello")]


def greedy_answer(directory: Path, ids: list[int], new: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    return list(out[0, len(ids) :].tolist())


def with_engine(engine: Engine, use: Callable[[Any], Awaitable[T]]) -> T:
    async def body() -> T:
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), timeout=60)
        finally:
            await engine.stop()

    return asyncio.run(body())


def with_vllm(directory: Path, use: Callable[[VllmEngine], Awaitable[T]], **options: Any) -> T:
    return with_engine(VllmEngine(directory, context_window=512, **options), use)


async def collect(engine: Engine, request: GenRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(request)]


def greedy(ids: list[int], new: int = 24, **fields: Any) -> GenRequest:
    return GenRequest(ids, new, temperature=0.0, **fields)


# --- the same answers as the embedded engine -----------------------------------------------------------------------


def test_events_are_those_of_the_embedded_engine(
    vllm: Vllm, directory: Path, prompts: list[list[int]], tokenizer: Any
) -> None:
    whole = tokenizer.decode(vllm.answer, skip_special_tokens=True)
    requests = [greedy(prompts[0], 40), greedy(prompts[0], 7), greedy(prompts[0], 40, stop=(whole[8:11], "never"))]

    async def use(engine: Engine) -> list[list[tuple[Any, ...]]]:
        answers = [await collect(engine, request) for request in requests]
        return [[(e.token_ids, e.text, e.finish_reason, e.ended) for e in events] for events in answers]

    assert with_vllm(directory, use) == with_engine(HFEngine(directory, context_window=512), use)


def test_an_end_token_is_told_from_a_stop_string(
    vllm: Vllm, directory: Path, prompts: list[list[int]], tokenizer: Any
) -> None:
    vllm.answer = [*tokenizer("Fine")["input_ids"], tokenizer.eos_token_id]
    last = with_vllm(directory, lambda engine: collect(engine, greedy(prompts[0])))[-1]
    assert (last.token_ids, last.text, last.finish_reason, last.ended) == ([tokenizer.eos_token_id], "", "stop", True)
    last = with_vllm(directory, lambda engine: collect(engine, greedy(prompts[0], stop=("e",))))[-1]
    assert (last.finish_reason, last.ended) == ("stop", False)


def test_tokens_that_came_with_the_stop_string_are_dropped(
    vllm: Vllm, directory: Path, prompts: list[list[int]], tokenizer: Any
) -> None:
    vllm.answer, vllm.at_once = tokenizer("one two three four five six")["input_ids"], 50
    events = with_vllm(directory, lambda engine: collect(engine, greedy(prompts[0], stop=("two",))))
    assert "".join(event.text for event in events) == "one "
    assert tokenizer.decode([i for event in events for i in event.token_ids]).endswith("two")
    assert events[-1].finish_reason == "stop"


# --- what vLLM is asked --------------------------------------------------------------------------------------------


def test_the_request_in_vllms_words(vllm: Vllm, directory: Path, prompts: list[list[int]], tokenizer: Any) -> None:
    async def use(engine: VllmEngine) -> None:
        await collect(engine, GenRequest(prompts[0], 3, temperature=0.7, top_p=0.9, top_k=5, seed=-1, stop=("x",)))
        await collect(engine, GenRequest(prompts[0], 3, top_p=0.0))

    with_vllm(directory, use, options={"tensor_parallel_size": 2})
    args = vllm.llm.args
    assert (args.model, args.max_model_len, args.scheduling_policy) == (str(directory), 512, "priority")
    assert (args.enable_lora, args.max_loras, args.tensor_parallel_size) == (True, 8, 2)
    (ids, first, lora, _), (_, second, _, _) = vllm.asked
    assert (ids, lora) == (prompts[0], None)
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (0.7, 0.9, 5, 3)
    assert first.stop_token_ids == [tokenizer.eos_token_id]
    assert first.stop is None, "stop strings are ours"
    assert first.seed is not None, "-1 is a seed like any other"
    assert (second.top_k, second.seed) == (-1, None)
    assert 0 < second.top_p < 1e-6
    assert vllm.llm.is_shut_down


def test_logprobs(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    vllm.at_once = 3
    events = with_vllm(directory, lambda engine: collect(engine, greedy(prompts[0], 6, logprobs=2)))
    assert [event.logprobs for event in events] == [
        [TokenLogprob(event.token_ids[0], -9.5, [(101, -1.0), (102, -2.0)])] for event in events
    ]
    events = with_vllm(directory, lambda engine: collect(engine, greedy(prompts[0], 2, logprobs=0)))
    assert events[0].logprobs == [TokenLogprob(events[0].token_ids[0], -9.5, [])]


def test_load_counts_what_runs_and_what_the_cache_knew(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    vllm.cached = 4

    async def use(engine: VllmEngine) -> None:
        stream = engine.generate(greedy(prompts[0]))
        assert (await anext(stream)).cached == 4
        assert (await anext(stream)).cached == 0
        load = await engine.load()
        assert (load.running, load.waiting, load.kv_tokens, load.kv_capacity) == (1, 0, len(prompts[0]) + 2, 64 * 16)
        assert (load.prompt_tokens, load.cached_tokens) == (len(prompts[0]), 4)
        await stream.aclose()
        assert (await engine.load()).running == 0

    with_vllm(directory, use)


# --- cancelling, deadlines, overload -------------------------------------------------------------------------------


def test_closing_the_stream_aborts(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    async def use(engine: VllmEngine) -> None:
        stream = engine.generate(greedy(prompts[0]))
        await anext(stream)
        await stream.aclose()

    with_vllm(directory, use)
    assert vllm.aborted == ["bco-0"]


@pytest.mark.parametrize("seconds", [-1.0, 0.1])
def test_a_deadline_aborts_what_waits(vllm: Vllm, directory: Path, prompts: list[list[int]], seconds: float) -> None:
    vllm.going.clear()

    async def use(engine: VllmEngine) -> int:
        with pytest.raises(DeadlineError):
            await collect(engine, greedy(prompts[0], deadline=time.time() + seconds))
        return (await engine.load()).waiting

    assert with_vllm(directory, use) == 0
    assert vllm.aborted == (["bco-0"] if seconds > 0 else [])


def test_places_are_bounded_and_shared(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    vllm.going.clear()

    async def use(engine: VllmEngine) -> list[Any]:
        requests = [greedy(prompts[0], 2, share=share) for share in "aaaaaabbb"]
        tasks = [asyncio.create_task(collect(engine, request)) for request in requests]
        await asyncio.sleep(0.05)
        vllm.going.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = with_vllm(directory, use, max_batch=2, max_waiting=2)
    refused = ["ab"[i >= 6] for i, result in enumerate(results) if isinstance(result, EngineOverloadedError)]
    assert refused == ["a", "a", "b"], "4 places for one share; its equal part, 2, for the one that comes later"
    assert [priority for _, _, _, priority in vllm.asked] == [0, 1, 2, 3, 0, 1], "each share queues behind itself"


def test_tags_serve_shares_in_turn_and_starve_nobody() -> None:
    tags, queue, served = FairTags(), [], []
    queue += [(tags.tag("heavy"), 0, "heavy") for _ in range(8)]
    for turn in range(12):
        if turn < 8:
            queue.append((tags.tag("light"), 1 + turn, "light"))  # always one more, as soon as the last is served
        queue.sort()
        tag, _, share = queue.pop(0)
        tags.started(tag)
        served.append(share)
    assert abs(served.count("heavy") - served.count("light")) <= 2
    assert {"heavy", "light"} == set(served[:3])


# --- errors --------------------------------------------------------------------------------------------------------


def test_a_dead_vllm(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    vllm.fails = DeadError("EngineCore encountered an issue.")

    async def use(engine: VllmEngine) -> None:
        with pytest.raises(EngineDeadError, match="EngineCore"):
            await collect(engine, greedy(prompts[0]))
        assert (await engine.health()).ok
        vllm.llm.errored = True
        assert not (await engine.health()).ok
        with pytest.raises(EngineDeadError):
            await collect(engine, greedy(prompts[0]))

    with_vllm(directory, use)


@pytest.mark.parametrize("error", [EngineGenerateError("once"), VLLMClientError("no"), ValueError("no")])
def test_one_bad_request_is_refused_alone(
    vllm: Vllm, directory: Path, prompts: list[list[int]], error: Exception
) -> None:
    async def use(engine: VllmEngine) -> int:
        vllm.fails = error
        with pytest.raises(RequestRefusedError):
            await collect(engine, greedy(prompts[0]))
        vllm.fails = None
        return len(await collect(engine, greedy(prompts[0], 5)))

    assert with_vllm(directory, use) == 5


@pytest.mark.parametrize(
    "bad",
    [
        GenRequest([], 5),
        GenRequest([10**6], 5),
        GenRequest([-1], 5),
        GenRequest([5] * 500, 13),
        GenRequest([5], 1, 3.0),
    ],
)
def test_impossible_requests_are_refused(vllm: Vllm, directory: Path, bad: GenRequest) -> None:
    async def use(engine: VllmEngine) -> None:
        with pytest.raises(RequestRefusedError):
            await collect(engine, bad)

    with_vllm(directory, use)


def test_stopping_ends_requests_in_flight(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    async def use(engine: VllmEngine) -> None:
        stream = engine.generate(greedy(prompts[0]))
        await anext(stream)
        vllm.going.clear()
        await engine.stop()
        for rest in (stream, engine.generate(greedy(prompts[0]))):
            with pytest.raises(EngineDeadError):
                await anext(rest)
        assert not (await engine.health()).ok

    with_vllm(directory, use)


def test_without_vllm_it_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"pip install 'bco-ray\[vllm\]'"):
        asyncio.run(VllmEngine(directory, context_window=512).start())


# --- adapters ------------------------------------------------------------------------------------------------------


def adapters(*names: str) -> list[Adapter]:
    return [Adapter(name, Path("/adapters") / name) for name in names]


def test_adapters_come_and_go(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    first, second, third = adapters("helper/1", "helper/2", "helper/3")

    async def use(engine: VllmEngine) -> None:
        await engine.load_adapter(first)
        await engine.load_adapter(first)
        await collect(engine, greedy(prompts[0], 2, adapter=second))
        assert [lora for _, _, lora, _ in vllm.asked] == [LoRARequest("helper/2", 2, "/adapters/helper/2")]
        assert (await engine.load()).adapters == ("helper/1", "helper/2")
        await engine.load_adapter(third)
        assert sorted(vllm.loras) == [2, 3], "the one used longest ago made room"
        await engine.unload_adapter("helper/2")
        await engine.unload_adapter("unknown/1")
        await engine.load_adapter(first)
        assert sorted(vllm.loras) == [3, 4], "a number is never used again"

    with_vllm(directory, use, max_adapters=2)


def test_an_adapter_in_use_leaves_when_its_last_request_does(
    vllm: Vllm, directory: Path, prompts: list[list[int]]
) -> None:
    (adapter,) = adapters("helper/1")

    async def use(engine: VllmEngine) -> None:
        stream = engine.generate(greedy(prompts[0], 5, adapter=adapter))
        await anext(stream)
        await engine.unload_adapter(adapter.name)
        assert list(vllm.loras) == [1]
        assert len([event async for event in stream]) == 4
        assert not vllm.loras

    with_vllm(directory, use)


def test_an_adapter_that_vllm_cannot_load(vllm: Vllm, directory: Path, prompts: list[list[int]]) -> None:
    vllm.lora_fails = "LoRA rank 128 is greater than max_lora_rank 64"
    (adapter,) = adapters("helper/1")

    async def use(engine: VllmEngine) -> None:
        with pytest.raises(ModelError, match="rank 128"):
            await engine.load_adapter(adapter)
        with pytest.raises(RequestRefusedError, match="rank 128"):
            await collect(engine, greedy(prompts[0], adapter=adapter))
        assert (await engine.load()).adapters == ()

    with_vllm(directory, use)


def test_an_adapter_directory_is_served_on_its_base(
    vllm: Vllm, directory: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4)).save_pretrained(tmp_path)
    with_vllm(tmp_path, lambda engine: collect(engine, greedy(prompts[0], 2)), max_adapters=0)
    assert (vllm.llm.args.model, vllm.llm.args.enable_lora) == (str(directory), True)
    assert vllm.asked[0][2] == LoRARequest(str(tmp_path), 1, str(tmp_path))


# --- the real one --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.environ.get("BCO_TEST_VLLM") != "1", reason="needs vLLM and a GPU; set BCO_TEST_VLLM=1")
def test_the_real_vllm_answers_like_generate(directory: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Heads of 64, which its attention kernels know."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("The shop opens at nine.")["input_ids"]
    wanted = greedy_answer(tmp_path, ids, 24)
    options = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.2}
    engine = VllmEngine(tmp_path, context_window=512, max_batch=8, options=options)

    async def use(engine: VllmEngine) -> None:
        events = await collect(engine, greedy(ids, 24, logprobs=3))
        assert [i for event in events for i in event.token_ids] == wanted
        assert all(event.logprobs[0].top[0][0] == event.token_ids[0] for event in events)
        stream = engine.generate(greedy(ids, 400))
        await anext(stream)
        await stream.aclose()
        assert (await engine.load()).running == 0
        assert (await engine.health()).ok

    with_engine(engine, use)
