"""Our own records and TRL's unpaired shape pass as they stand."""

from bco_ray.feedback.formats.canonical import FORMAT


def test_fields_of_a_record_pass_and_others_do_not(said) -> None:
    full, chat, neutral = said("canonical")
    assert full == {
        "kind": "vote", "id": "v1", "prompt": "Hi", "completion": "Hello!", "label": True, "user": "u-1",
        "response_id": "r-1", "created_at": "2026-05-01T10:00:00Z", "siblings": ["Hey."],
    }  # fmt: skip
    assert chat["completion"] == [{"role": "assistant", "content": "5"}]
    assert chat["label"] == "0"
    assert neutral["label"] is None


def test_a_row_without_a_label_is_ours_to_refuse() -> None:
    assert FORMAT.recognises({"prompt": "Hi", "completion": "Hello!"})
