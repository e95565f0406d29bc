"""OpenAI's preference pairs become two votes."""

Q = [{"role": "user", "content": "2+2?"}]
BRIEF = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_pair_is_two_votes(said) -> None:
    assert said("openai-preference")[:2] == [
        {"kind": "vote", "prompt": Q, "completion": answer("4"), "label": True, "siblings": ["5"]},
        {"kind": "vote", "prompt": Q, "completion": answer("5"), "label": False, "siblings": ["4"]},
    ]


def test_tools_and_the_system_prompt_are_kept(said) -> None:
    both = {"kind": "vote", "prompt": [*BRIEF, *Q], "tools": TOOLS}
    assert said("openai-preference")[2:4] == [
        {**both, "id": "7:chosen", "completion": answer("4"), "label": True, "siblings": ["5"]},
        {**both, "id": "7:rejected", "completion": answer("5"), "label": False, "siblings": ["4"]},
    ]


def test_what_is_no_pair(said) -> None:
    assert said("openai-preference")[4:] == ["no_difference", "missing_prompt", "invalid_completion"]
