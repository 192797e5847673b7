"""The tiny model with the embedded vocabulary and tokenizer: it can sit the embedded tasks, badly."""

from __future__ import annotations

from functools import cache

from dllm_qbench.models.embedded import vocabulary
from dllm_qbench.models.lm import DiffusionLM
from tests.helpers.tiny import tiny_llada


def worded_llada(seed: int = 0) -> DiffusionLM:
    """Return a fresh tiny random LLaDA that reads and writes the embedded models' words."""
    words = vocabulary.words()
    lm = tiny_llada(
        seed,
        vocab_size=len(words),
        mask_token_id=words.index(vocabulary.MASK),
        eos_token_id=words.index(vocabulary.EOS),
        pad_token_id=words.index(vocabulary.EOS),
    )
    lm.tokenizer = _tokenizer()
    return lm


_tokenizer = cache(vocabulary.tokenizer)
