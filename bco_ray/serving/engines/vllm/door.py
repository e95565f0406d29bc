"""The only file that imports vLLM (0.29), each time where it is used: who only describes a server needs none.

Our values as vLLM's and back, and its errors as ours.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from bco_ray.errors import ModelError
from bco_ray.serving.engines.protocol import Adapter, EngineDeadError, GenRequest, RequestRefusedError, TokenLogprob

_SMALLEST_TOP_P = 1e-9


def start_vllm(fields: dict[str, Any]) -> Any:
    """A running AsyncLLM of these AsyncEngineArgs. Raises ModelError."""
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ModelError(f"vLLM is not installed ({error}): pip install 'bco-ray[vllm]'.") from None
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**fields))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise ModelError(f"{fields['model']}: vLLM does not start: {error}") from error


def generate(
    llm: Any, request: GenRequest, ends: frozenset[int], request_id: str, *, lora: Any, priority: int
) -> AsyncGenerator[Any]:
    """vLLM's RequestOutputs, tokens as they come and no text. Raises what vLLM raises for values it cannot take."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        temperature=request.temperature,
        top_p=max(request.top_p, _SMALLEST_TOP_P),  # 0 is refused there; here it means the likeliest token
        top_k=request.top_k or -1,
        seed=None if request.seed is None else request.seed % (1 << 63),  # -1 would mean none
        max_tokens=request.max_new,
        stop_token_ids=sorted(ends),
        logprobs=request.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    outputs: AsyncGenerator[Any] = llm.generate(
        {"prompt_token_ids": request.token_ids}, params, request_id, lora_request=lora, priority=priority
    )
    return outputs


def token_logprobs(completion: Any, top: int | None) -> list[TokenLogprob]:
    """One per token of a CompletionOutput, none if they were not asked for.

    vLLM has a table per token, by id: the sampled one and the `top` likeliest, each with its rank.
    """
    if top is None or completion.logprobs is None:
        return []
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return [TokenLogprob(token, table[token].logprob, _likeliest(table, top)) for token, table in pairs]


async def add_lora(llm: Any, adapter: Adapter, number: int) -> Any:
    """The LoRARequest that requests carry from now on. Raises ModelError."""
    from vllm.lora.request import LoRARequest

    lora = LoRARequest(lora_name=adapter.name, lora_int_id=number, lora_path=str(adapter.directory))
    try:
        await llm.add_lora(lora)
    except Exception as error:  # what fails in vLLM's other process arrives as a bare one
        raise ModelError(f"{adapter.name}: vLLM cannot load {adapter.directory}: {error}") from error
    return lora


@contextmanager
def errors_as_ours() -> Iterator[None]:
    """Raises EngineDeadError or RequestRefusedError for what vLLM says of a request."""
    from vllm import exceptions
    from vllm.v1.engine.exceptions import EngineDeadError as DeadError
    from vllm.v1.engine.exceptions import EngineGenerateError

    invalid = getattr(exceptions, "VLLMClientError", ValueError)  # where vLLM has it, it is no ValueError
    try:
        yield
    except DeadError as error:
        raise EngineDeadError(f"vLLM has died: {error}") from error
    except EngineGenerateError as error:
        raise RequestRefusedError(f"vLLM failed on this request: {error.__cause__ or error}") from error
    except (invalid, ValueError) as error:
        raise RequestRefusedError(str(error)) from error


def _likeliest(table: dict[int, Any], top: int) -> list[tuple[int, float]]:
    ranked = sorted(table.items(), key=lambda item: item[1].rank)
    return [(token, entry.logprob) for token, entry in ranked[:top]]
