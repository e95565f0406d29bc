"""People who talk to the served model over HTTP with the stock OpenAI client, and leave thumbs."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import openai

from bco_ray.demo.base import WORLD
from bco_ray.demo.votes import MAX_NEW_TOKENS, leave_thumb
from bco_ray.demo.world import Prompt
from bco_ray.telemetry import Advance

AT_ONCE = 8


def visit(url: str, model: str, *, visits: int, seed: int, progress: Advance) -> int:
    """Ask `visits` train prompts, `AT_ONCE` at a time, and post the thumbs people leave; returns how many."""
    rng = random.Random(seed + 1)
    prompts = [rng.choice(WORLD.train_prompts) for _ in range(visits)]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60)
    lock, done, voted = threading.Lock(), 0, 0

    def one(number: int) -> None:
        nonlocal done, voted
        left = _ask_and_vote(client, model, prompts[number], random.Random(f"{seed}-{number}"), number)
        with lock:
            done, voted = done + 1, voted + left
            progress(done, visits, f"{voted} thumbs")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(visits)))
    return voted


def _ask_and_vote(client: openai.OpenAI, model: str, prompt: Prompt, rng: random.Random, number: int) -> bool:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt.text}],
        max_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        seed=rng.getrandbits(31),
    )
    label = leave_thumb(prompt, reply.choices[0].message.content or "", rng)
    if label is None:
        return False
    body = {"response_id": reply.id, "label": label, "user": f"visitor-{number % 50}", "source": "demo"}
    client.post("/feedback", body=body, cast_to=object, options={"headers": {"Idempotency-Key": f"visit-{reply.id}"}})
    return True
