"""The released models: sizes, pinned revisions, and how their makers and the paper run them.

Where the facts are from: sizes from the released configs; sampling settings from the evaluation
code that each release published (EVAL.md of ML-GSAI/LLaDA; eval/eval_dream_gen.sh and
eval_instruct/eval.sh of DreamLM/Dream) and from the quantization paper's own (FelixMessi/QDLM at
a106d70). A revision is a commit that at least two unrelated public repositories pin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dllm_qbench.errors import CheckpointError


@dataclass(frozen=True)
class ModelSpec:
    """A released model.

    Attributes:
        name: what it is called in cells and baselines.
        hub_id: its Hugging Face repository.
        revision: a commit of it, 40 hexadecimal digits.
        architecture: ``model_type`` of its config: ``"llada"``, ``"illada"`` or ``"Dream"``.
        chat: prompts of generated answers go through the tokenizer's chat template.
        forbidden_ids: tokens that its sampler never chooses (logits -inf).
        unconfident_ids: tokens that its sampler commits last (confidence 0).
        generation: settings of Dream's sampler; empty for LLaDA, which has none.
        bytes: of its weights in bf16.
        sizes: fields of its config that tell it from any other model.
        in_paper: what the quantization paper's evaluation did otherwise.
    """

    name: str
    hub_id: str
    revision: str
    architecture: str
    bytes: int
    sizes: Mapping[str, Any]
    chat: bool = False
    forbidden_ids: tuple[int, ...] = ()
    unconfident_ids: tuple[int, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    in_paper: Mapping[str, Any] = field(default_factory=dict)

    def as_in_paper(self) -> ModelSpec:
        """Return the settings with which the paper's tables were made."""
        return replace(self, **self.in_paper)

    def differences(self, config: Any) -> list[str]:
        """Say in what a config is not this model's: ``d_model 64, expected 4096``.

        Args:
            config: what ``config.json`` holds, or the configuration of a loaded model.
        """
        raw = config.to_official() if hasattr(config, "to_official") else config
        expected = {"model_type": self.architecture, **self.sizes}
        found = [
            f"{name} {raw.get(name)!r}, expected {value!r}"
            for name, value in expected.items()
            if raw.get(name) != value
        ]
        if raw.get("synthetic"):
            found.append(f"its weights are random ({raw['synthetic']})")
        return found

    def is_real(self, config: Any) -> bool:
        """Whether a config is the released model's: not another's, not a random stand-in's."""
        return not self.differences(config)

    def fitted_to(self, lm: Any) -> ModelSpec:
        """Return the spec with token ids as a loaded model's tokenizer has them.

        The vocabulary of a stand-in is small: the released ids do not exist in it.

        Raises:
            CheckpointError: the stand-in lacks one of the tokens.
        """
        if self.is_real(lm.config) or not (self.forbidden_ids or self.unconfident_ids):
            return self

        def fitted(ids: tuple[int, ...]) -> tuple[int, ...]:
            found = []
            for token_id in ids:
                text = _END_TOKENS[token_id]
                own = None if lm.tokenizer is None else lm.tokenizer.get_vocab().get(text)
                if own is None:
                    raise CheckpointError(
                        f"{lm.name}: its tokenizer has no {text!r}, which {self.name}'s sampler suppresses"
                    )
                found.append(int(own))
            return tuple(found)

        return replace(
            self,
            forbidden_ids=fitted(self.forbidden_ids),
            unconfident_ids=fitted(self.unconfident_ids),
        )


_LLADA_SIZES = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "weight_tying": False,
    "mask_token_id": 126336,
}
_ILLADA_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 155136,
}
_DREAM_SIZES = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "mask_token_id": 151666,
}
_EOS, _EOT = 126081, 126348
_END_TOKENS = {_EOS: "<|endoftext|>", _EOT: "<|eot_id|>"}
# Dream's own evaluation takes these for gsm8k and minerva_math, and temperature 0.2 for humaneval and
# mbpp; the paper's harness takes them for all four.
_DREAM_BASE = {"algorithm": "entropy", "temperature": 0.0, "top_p": 0.95, "alg_temp": 0.0}

_SPECS = (
    ModelSpec(
        name="llada-8b-base",
        hub_id="GSAI-ML/LLaDA-8B-Base",
        revision="0f2787f2d87eac5eed8a087d5ecd24277e6255b2",
        architecture="llada",
        bytes=16_031_162_368,
        sizes=_LLADA_SIZES,
    ),
    ModelSpec(
        name="llada-8b-instruct",
        hub_id="GSAI-ML/LLaDA-8B-Instruct",
        revision="08b83a6feb34df1a6011b80c3c00c7563e963b07",
        architecture="llada",
        bytes=16_031_162_368,
        sizes=_LLADA_SIZES,
        chat=True,
        # As its makers' tables have it: one block, and no confidence in the ends of text and of turn
        # for GSM8K, MATH and MBPP (for HumanEval, EOS is forbidden instead). With several blocks they
        # suppress nothing; nor does the paper, whose released code applies no chat template either.
        unconfident_ids=(_EOS, _EOT),
        in_paper={"chat": False, "unconfident_ids": ()},
    ),
    ModelSpec(
        name="llada-1.5",
        hub_id="GSAI-ML/LLaDA-1.5",
        revision="84346fd91ba60252d260022201ad6fc5a3468fb2",
        architecture="llada",
        bytes=16_031_162_368,
        sizes=_LLADA_SIZES,
        chat=True,
        unconfident_ids=(_EOS, _EOT),  # for all four generated tasks, with several blocks
    ),
    ModelSpec(
        name="illada-8b",
        hub_id="GSAI-ML/iLLaDA-8B-Base",
        revision="a1b5b5f8a31a3854a46205ee584178c04b45ec9a",
        architecture="illada",
        bytes=15_230_050_304,
        sizes=_ILLADA_SIZES,
    ),
    ModelSpec(
        name="dream-7b-base",
        hub_id="Dream-org/Dream-v0-Base-7B",
        revision="6572adb5535263e4d1a337b56942ba48b6dee2a9",
        architecture="Dream",
        bytes=15_231_233_024,
        sizes=_DREAM_SIZES,
        generation=_DREAM_BASE,
    ),
    ModelSpec(
        name="dream-7b-instruct",
        hub_id="Dream-org/Dream-v0-Instruct-7B",
        revision="05334cb9faaf763692dcf9d8737c642be2b2a6ae",
        architecture="Dream",
        bytes=15_231_233_024,
        sizes=_DREAM_SIZES,
        chat=True,
        generation={**_DREAM_BASE, "temperature": 0.1, "top_p": 0.9},
    ),
)
MODELS: Mapping[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
PAPER_MODELS = ("llada-8b-base", "llada-8b-instruct", "dream-7b-base")  # the paper's tables


def find_model(name: str) -> ModelSpec | None:
    """Return the released model of a name or a hub id, in any case of letters."""
    wanted = name.lower()
    return next((s for s in _SPECS if wanted in (s.name, s.hub_id.lower())), None)
