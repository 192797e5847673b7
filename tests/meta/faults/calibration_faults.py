"""Faults of calibration: what is drawn, how it runs through the model, what a method gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dllm_qbench.quant import calibration as drawing
from dllm_qbench.quant import capture
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner
from tests.meta.faults.fault import DREAM, nothing, of_method
from tests.meta.faults.patches import replaced, wrapped

Stages = Iterator[tuple[tuple[str, ...], list[Tensor]]]


def causal(sound: Any, model: Any, ids_BT: Tensor, mask_BT: Tensor, *rest: Any) -> Any:
    chunk = sound(model, ids_BT, mask_BT, *rest)
    T = ids_BT.shape[1]
    both = chunk.attention_inputs["attention_mask"]
    chunk.attention_inputs["attention_mask"] = both & torch.ones(T, T, dtype=torch.bool).tril()
    return chunk


def padding_attended(sound: Any, model: Any, ids_BT: Tensor, mask_BT: Tensor, *rest: Any) -> Any:
    chunk = sound(model, ids_BT, mask_BT, *rest)
    open_to_all = torch.ones_like(chunk.attention_inputs["attention_mask"])
    chunk.attention_inputs["attention_mask"] = open_to_all
    return chunk


def without_positions(sound: Any, model: Any, ids_BT: Tensor, mask_BT: Tensor, *rest: Any) -> Any:
    chunk = sound(model, ids_BT, mask_BT, *rest)
    cos, sin = chunk.attention_inputs["position_embeddings"]
    chunk.attention_inputs["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
    return chunk


def padding_counted(self: BlockRunner, parts: Any) -> list[Tensor]:
    return [x.flatten(0, 1) for x in parts]


def of_the_block_before(sound: Any, self: Any, block: Any) -> Stages:
    # Kept on the runner, so that a second run of the quantizer starts afresh.
    previous = self.__dict__.setdefault("_previous", {})
    for names, inputs in sound(self, block):
        yield names, previous.get(names, inputs)
        previous[names] = inputs


def in_front_of_the_norm(sound: Any, self: Any, block: Any) -> Stages:
    for names, inputs in sound(self, block):
        yield names, self._real(self.hidden()) if len(names) > 1 else inputs


def residual_lost(sound: Any, self: Any, block: Any) -> Stages:
    before = self.hidden()
    yield from sound(self, block)
    for chunk, hidden_BTD in zip(self._chunks, before, strict=True):
        chunk.hidden_BTD = chunk.hidden_BTD - hidden_BTD


def never_advanced(sound: Any, self: Any, block: Any) -> Stages:
    before = self.hidden()
    yield from sound(self, block)
    for chunk, hidden_BTD in zip(self._chunks, before, strict=True):
        chunk.hidden_BTD = hidden_BTD


def first_two_sequences(sound: Any, self: Any, model: Any, data: Calibration, *rest: Any) -> None:
    sound(self, model, data.first(2), *rest)


def other_vocabulary(sound: Any, self: Any, model: Any, data: Calibration, *rest: Any) -> None:
    ids = (data.ids + 1) % int(model.config.vocab_size)
    sound(self, model, Calibration(ids, data.attention_mask, data.recipe), *rest)


def nothing_masked(row: Any, ratio: float, mask_id: int, seed: int) -> Tensor:
    return torch.tensor(row.ids, dtype=torch.long)


def prompts_masked(sound: Any, row: Any, ratio: float, mask_id: int, seed: int) -> Tensor:
    found: Tensor = sound(type(row)(row.ids, 0), ratio, mask_id, seed)
    return found


def padding_for_masks(sound: Any, row: Any, ratio: float, mask_id: int, seed: int) -> Tensor:
    found: Tensor = sound(row, ratio, row.ids[-1], seed)
    return found


def last_instead_of_first(self: Calibration, sequences: int) -> Calibration:
    return Calibration(self.ids[-sequences:], self.attention_mask[-sequences:], self.recipe)


FAULTS = (
    of_method(
        "calibrated-causally",
        "gptq",
        "W4A16-g64",
        "math",
        wrapped(capture, "_enter", causal),
        "The attention mask that blocks get in calibration is expanded to a causal one.",
    ),
    of_method(
        "calibrated-causally",
        "awq",
        "W4A16-g64",
        "math",
        wrapped(capture, "_enter", causal),
        "The attention mask that blocks get in calibration is expanded to a causal one.",
        model=DREAM,
    ),
    of_method(
        "calibration-attends-to-padding",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(capture, "_enter", padding_attended),
        "Real tokens attend to the padding of their sequence in calibration.",
    ),
    of_method(
        "calibrated-without-positions",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(capture, "_enter", without_positions),
        "Blocks called one by one get no position embeddings.",
        model=DREAM,
    ),
    of_method(
        "padding-counted",
        "quarot",
        "W4A4",
        "general",
        replaced((BlockRunner, "_real"), by=padding_counted),
        "Padding is calibrated on as if it were text.",
    ),
    of_method(
        "calibrated-on-another-blocks-input",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(BlockRunner, "stages", of_the_block_before),
        "Every linear is solved against the inputs of the same linear one block before.",
    ),
    of_method(
        "calibrated-on-another-blocks-input",
        "awq",
        "W3A16-g64",
        "math",
        wrapped(BlockRunner, "stages", of_the_block_before),
        "Every linear is scaled and clipped by the inputs of the same linear one block before.",
    ),
    of_method(
        "calibrated-on-another-blocks-input",
        "duquant",
        "W4A4",
        "math",
        wrapped(BlockRunner, "stages", of_the_block_before),
        "Every rotation is found on the inputs of the same linear one block before.",
    ),
    of_method(
        "calibrated-in-front-of-the-norm",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(BlockRunner, "stages", in_front_of_the_norm),
        "Linears behind a norm are calibrated on what enters the norm.",
    ),
    of_method(
        "calibration-loses-the-residual",
        "quarot",
        "W4A4",
        "math",
        wrapped(BlockRunner, "stages", residual_lost),
        "From block to block calibration passes on what the block adds, without what it adds to.",
        model=DREAM,
    ),
    of_method(
        "calibration-never-leaves-the-first-block",
        "gptq",
        "W4A16-g64",
        "math",
        wrapped(BlockRunner, "stages", never_advanced),
        "Every block is calibrated on the embeddings.",
        model=DREAM,
    ),
    of_method(
        "calibrated-on-two-sequences",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(BlockRunner, "__init__", first_two_sequences),
        "Calibration stops after two sequences, whatever the recipe says.",
    ),
    of_method(
        "calibrated-with-another-vocabulary",
        "gptq",
        "W3A16-g64",
        "math",
        wrapped(BlockRunner, "__init__", other_vocabulary),
        "Calibration texts are encoded by a tokenizer whose ids are one higher.",
        model=DREAM,
    ),
    of_method(
        "calibrated-without-masks",
        "gptq",
        "W4A16-g64",
        "math",
        replaced((drawing, "_mask"), by=nothing_masked),
        "Calibration sequences hold no mask, as in all published recipes.",
        in_calibration=True,
    ),
    of_method(
        "calibration-masks-position-0",
        "gptq",
        "W4A16-g64",
        "math",
        wrapped(drawing, "_mask", prompts_masked),
        "Any token may be masked in calibration, prompts and position 0, which Dream never predicts.",
        model=DREAM,
        in_calibration=True,
    ),
    of_method(
        "calibration-masks-with-end-of-text",
        "smoothquant",
        "W4A4",
        "math",
        wrapped(drawing, "_mask", padding_for_masks),
        "Calibration hides tokens behind the end of text, because the tokenizer has no mask token.",
        in_calibration=True,
    ),
    of_method(
        "calibrated-on-eight-sequences",
        "gptq",
        "W3A16-g64",
        "math",
        nothing,
        "Eight calibration sequences where the recipe needs at least 128.",
        calibration_arguments={"sequences": 8},
    ),
    of_method(
        "maxima-of-other-sequences-than-stated",
        "smoothquant",
        "W4A4",
        "math",
        replaced((Calibration, "first"), by=last_instead_of_first),
        "The maxima come from the last 128 calibration sequences; the recipe says the first.",
    ),
)
