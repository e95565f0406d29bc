"""A Hugging Face directory with a small Llama and a byte-level tokenizer, made in about a second without any download.

The pieces (`train_tokenizer`, `llama`, `save`) are shared with the demo's base model, which differs only in size and
in being pre-trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = (PAD, TURN_START, TURN_END)

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}ANSWER"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML = _TEMPLATE.replace("ANSWER", "{{ (message['content'] or '') + '<|im_end|>' + '\\n' }}")
CHATML_WITH_MARKERS = _TEMPLATE.replace(
    "ANSWER",
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ (message['content'] or '') + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ (message['content'] or '') + '<|im_end|>' + '\\n' }}{% endif %}",
)

_SENTENCES = (
    "Hello! How can I help you today?",
    "The shop opens at nine and closes at six.",
    "What is the capital of France? The capital of France is Paris.",
    "Thank you for asking, I am happy to help with that.",
    "user assistant system",
)


def train_tokenizer(texts: Iterable[str], *, vocab: int, chat_template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab` entries (256 bytes and 3 specials are always in) trained on `texts`.

    Any UTF-8 text decodes back to itself.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=TURN_END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, seed: int, spread: float = 0.02
) -> LlamaForCausalLM:
    """A random float32 Llama (tied embeddings, heads of 16) for `tokenizer`, reading up to 512 tokens.

    `spread` is the standard deviation of the fresh weights.
    """
    heads = max(1, hidden // 16)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    """Write config, model.safetensors, tokenizer, chat template and generation config; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id, do_sample=True, max_new_tokens=128
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_tiny_model(
    directory: str | Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    vocab: int = 320,
    chat_template: bool = True,
    generation_markers: bool = False,
) -> Path:
    """A random Llama for tests. `generation_markers` puts `{% generation %}` around the assistant's turns."""
    template = CHATML_WITH_MARKERS if generation_markers else CHATML
    tokenizer = train_tokenizer(_SENTENCES, vocab=vocab, chat_template=template if chat_template else None)
    return save(llama(tokenizer, hidden=hidden, layers=layers, seed=seed), tokenizer, Path(directory))
