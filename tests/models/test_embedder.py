"""An embedding model's vector is the mean over a text's own tokens, whatever is padded beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from bco_ray.errors import ModelError
from bco_ray.models.embedder import Embedder
from bco_ray.testing.tiny import train_tokenizer

TEXTS = ["A short one.", "", "Something that is quite a bit longer than the first.", "word " * 200]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer(TEXTS, vocab=300, chat_template=None)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_vectors_are_means_over_each_texts_own_tokens(directory: Path) -> None:
    embedder = Embedder(directory, dtype=torch.float32)
    together_ND = embedder.embed(TEXTS, max_tokens=1000)
    assert together_ND.shape == (4, 16)
    for text, embedding_D in zip(TEXTS, together_ND, strict=True):
        ids = embedder.tokenizer(text or " ")["input_ids"][:40]
        with torch.no_grad():
            expected_D = embedder.encoder(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding_D, expected_D, atol=1e-5, rtol=1e-4)


def test_batching_changes_nothing(directory: Path) -> None:
    embedder = Embedder(directory, dtype=torch.float32)
    torch.testing.assert_close(
        embedder.embed(TEXTS, max_tokens=1), embedder.embed(TEXTS, max_tokens=1000), atol=1e-5, rtol=1e-4
    )


def test_what_is_no_embedding_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="scoring.embedding"):
        Embedder(tmp_path, dtype=torch.float32)
