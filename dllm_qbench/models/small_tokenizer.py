"""Small real tokenizers for stand-ins: byte-level BPE in each release's own files, with its special tokens.

Notable: every text can be read and written back, as its bytes are all in the vocabulary; Dream's files are
``vocab.json``, ``merges.txt`` and a config that names remote code, which must not be needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dllm_qbench.errors import CheckpointError

# Special tokens in the order of their ids, and which of them plays which role.
_SPECIAL = {
    "llada": (
        "<|startoftext|>",
        "<|endoftext|>",
        "<|mdm_mask|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    "illada": ("<pad>", "<bos>", "<eos>", "<unk>", "<sep>", "<[MASK]>"),
    "Dream": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"),
}
_ROLES = {
    "llada": {
        "bos": "<|startoftext|>",
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "mask": "<|mdm_mask|>",
    },
    "illada": {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<[MASK]>"},
    "Dream": {
        "bos": "<|beginoftext|>",
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "mask": "<|mask|>",
    },
}
_CHAT = {
    "llada": (
        "{{ bos_token }}{% for turn in messages %}<|start_header_id|>{{ turn['role'] }}<|end_header_id|>"
        "{{ '\n\n' }}{{ turn['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
    ),
    "Dream": (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}{{ '\n' }}{{ turn['content'] }}<|im_end|>"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    ),
}


def write_tokenizer(
    folder: Path,
    architecture: str,
    texts: Iterable[str] = (),
    *,
    vocabulary: int = 512,
    chat: bool = False,
) -> dict[str, int]:
    """Write a tokenizer's files.

    Args:
        folder: made if it is not there.
        architecture: ``"llada"``, ``"illada"`` or ``"Dream"``: whose special tokens and files.
        texts: merges are learnt from these; none: bytes only.
        vocabulary: tokens at most, special ones included.
        chat: with a chat template; iLLaDA's release is a base model and has none.

    Returns:
        The ids of ``mask``, ``eos``, ``pad`` and ``bos``, and ``last``, the highest id.

    Raises:
        CheckpointError: an unknown architecture, or a vocabulary that does not hold the bytes.
    """
    if architecture not in _SPECIAL:
        raise CheckpointError(
            f"architecture {architecture!r} is unknown; known: {', '.join(_SPECIAL)}"
        )
    special = [AddedToken(text, special=True, normalized=False) for text in _SPECIAL[architecture]]
    if vocabulary < 256 + len(special):
        raise CheckpointError(
            f"vocabulary {vocabulary}: 256 bytes and {len(special)} special tokens must fit in"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    first = architecture == "illada"  # its special tokens come first, the others' last
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary if first else vocabulary - len(special),
        special_tokens=special if first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    roles = _ROLES[architecture]
    # LLaDA's and iLLaDA's tokenizers do not say which token is the mask; their configs (or README) do.
    config: dict[str, Any] = {
        f"{role}_token": text
        for role, text in roles.items()
        if role != "mask" or architecture == "Dream"
    }
    if chat and architecture in _CHAT:
        config["chat_template"] = _CHAT[architecture]
    if architecture == "Dream":
        tokenizer.model.save(str(folder))
        tokenizer.add_special_tokens(special)
        config["tokenizer_class"] = "DreamTokenizer"
        config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
        config["added_tokens_decoder"] = {
            str(tokenizer.token_to_id(token.content)): {"content": token.content, "special": True}
            for token in special
        }
    else:
        tokenizer.add_special_tokens(special)
        tokenizer.save(str(folder / "tokenizer.json"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    ids = {role: numbers[token] for role, token in roles.items()}
    return {**ids, "last": max(numbers.values())}
