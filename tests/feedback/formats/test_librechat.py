"""Votes on messages of an exported conversation, listed or nested."""


def test_two_answers_to_one_question(said) -> None:
    down, up = said("librechat")[:2]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert down == {
        "kind": "vote", "response_id": "m2", "source": "librechat", "model": "gpt-4o", "conversation_id": "c1",
        "created_at": 1777629600.0, "comment": "It is 4.", "tags": ["inaccurate"], "siblings": ["4"],
        "metadata": {"endpoint": "openAI"}, "prompt": prompt, "label": "thumbsDown",
        "completion": [{"role": "assistant", "content": "5"}],
    }  # fmt: skip
    assert (up["label"], up["tags"], up["siblings"]) == ("thumbsUp", ["accurate_reliable"], ["5"])
    assert up["completion"][0]["content"] == "4"


def test_lost_parents_errors_and_conversations_without_votes(said) -> None:
    assert [entry for entry in said("librechat") if isinstance(entry, str)] == [
        "broken_tree",
        "not_an_answer",
        "no_vote",
    ]


def test_a_nested_export_needs_no_parents(said) -> None:
    neutral = said("librechat")[4]
    assert neutral["prompt"] == [{"role": "user", "content": "Hi"}]
    assert neutral["completion"] == [{"role": "assistant", "content": "Hello!"}]
    assert neutral["label"] is None
