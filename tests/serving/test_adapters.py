"""Adapters that cannot be used are turned away, and leave the model as it was."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bco_ray.errors import ModelError
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import Adapter, EngineOverloadedError, GenRequest, RequestRefusedError
from bco_ray.testing.tiny import write_tiny_model

IDS = [40, 50, 60, 70]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


def adapter(directory: Path, at: Path, seed: int = 0, **settings: Any) -> Adapter:
    torch.manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    how = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    peft.get_peft_model(base, peft.LoraConfig(**how)).save_pretrained(at)
    return Adapter(f"help.er/{seed}", at)


def spoil(at: Adapter, how: str) -> Adapter:
    path = at.directory / "adapter_model.safetensors"
    config = at.directory / "adapter_config.json"
    weights = load_file(path)
    first = next(iter(weights))
    if how == "nan":
        weights[first][0, 0] = torch.nan
    elif how == "missing":
        del weights[first]
    elif how == "extra":
        weights[first.replace("layers.0", "layers.9")] = weights[first].clone()
    elif how == "shape":
        weights[first] = weights[first][:, :-1].clone()
    elif how == "modules":
        config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["no_such"]}))
    elif how == "base":
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/elsewhere"}))
    save_file(weights, path)
    if how == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "gone":
        config.unlink()
    return at


async def answer(engine: HFEngine, adapter: Adapter | None = None, new: int = 12) -> list[int]:
    stream = engine.generate(GenRequest(IDS, new, temperature=0.0, adapter=adapter))
    return [token async for event in stream for token in event.token_ids]


def said(directory: Path, adapter: Adapter | None = None, new: int = 12) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, str(adapter.directory))
    out = model.eval().generate(input_ids=torch.tensor([IDS]), max_new_tokens=new, do_sample=False)
    return list(out[0, len(IDS) :].tolist())


def run(directory: Path, use: Any, **options: Any) -> Any:
    async def body() -> Any:
        engine = HFEngine(directory, context_window=512, **options)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), 120)
        finally:
            await engine.stop()

    return asyncio.run(body())


@pytest.mark.parametrize("how", ["nan", "missing", "extra", "shape", "modules", "base", "torn", "gone"])
def test_the_first_adapter_may_be_bad(directory: Path, tmp_path: Path, how: str) -> None:
    bad, good = spoil(adapter(directory, tmp_path / "bad"), how), adapter(directory, tmp_path / "good", 1)

    async def use(engine: HFEngine) -> None:
        running = asyncio.create_task(answer(engine, new=80))
        with pytest.raises(ModelError):
            await engine.load_adapter(bad)
        with pytest.raises(RequestRefusedError):
            await answer(engine, bad)
        assert await running == said(directory, new=80)
        assert (await engine.load()).adapters == ()
        await engine.load_adapter(good)
        both = await asyncio.gather(answer(engine, good), answer(engine))
        assert both == [said(directory, good), said(directory)]
        with pytest.raises(ModelError):
            await engine.load_adapter(bad)
        assert await answer(engine, good) == said(directory, good)

    run(directory, use)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_only_what_can_be_applied_by_row(directory: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    odd = adapter(directory, tmp_path / "odd", **settings)

    async def use(engine: HFEngine) -> None:
        with pytest.raises(ModelError, match="plain LoRA"):
            await engine.load_adapter(odd)

    run(directory, use)


def test_beside_an_adapter_of_its_own(directory: Path, tmp_path: Path) -> None:
    """The engine's own weights are an adapter on the base: rows without one get that, not the bare base."""
    own, other = adapter(directory, tmp_path / "own", 1), adapter(directory, tmp_path / "other", 2, r=8)
    transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(own.directory)

    async def use(engine: HFEngine) -> list[list[int]]:
        alone = await answer(engine)
        return [alone, *await asyncio.gather(answer(engine), answer(engine, other), answer(engine))]

    mine = said(directory, own)
    assert run(own.directory, use) == [mine, mine, said(directory, other), mine]
    assert len({tuple(mine), tuple(said(directory, other)), tuple(said(directory))}) == 3


def test_unloading_waits_for_who_uses_it(directory: Path, tmp_path: Path) -> None:
    used = adapter(directory, tmp_path / "used")

    async def use(engine: HFEngine) -> None:
        running = asyncio.create_task(answer(engine, used, 100))
        while not (await engine.load()).running:
            await asyncio.sleep(0.005)
        await engine.unload_adapter(used.name)
        await engine.unload_adapter("never heard of")
        assert await running == said(directory, used, 100)
        for _ in range(100):
            if not (await engine.load()).adapters:
                break
            await asyncio.sleep(0.02)
        assert (await engine.load()).adapters == ()
        assert await answer(engine, used) == said(directory, used)

    run(directory, use)


def test_one_in_use_is_not_evicted(directory: Path, tmp_path: Path) -> None:
    one, two = adapter(directory, tmp_path / "one", 1), adapter(directory, tmp_path / "two", 2)

    async def use(engine: HFEngine) -> None:
        running = asyncio.create_task(answer(engine, one, 150))
        while not (await engine.load()).running:
            await asyncio.sleep(0.005)
        with pytest.raises(EngineOverloadedError, match="in use"):
            await answer(engine, two)
        assert await running == said(directory, one, 150)
        assert await answer(engine, two) == said(directory, two)

    run(directory, use, max_adapters=1)
