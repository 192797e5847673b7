"""Checkpoints that llm-compressor and auto-round wrote give the logits of those libraries' own models.

How they were written: ``tests/helpers/published_outside.py``. On the machine that wrote them all
differences were 0.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import dllm_qbench as qb
from dllm_qbench.checkpoints.reading import read_checkpoint
from dllm_qbench.quant.audits import EXPENSIVE
from dllm_qbench.quant.layers import QuantLinear, target_names
from tests.helpers.published_outside import NAMES, REFERENCES

FOLDER = Path(__file__).parent.parent / "data" / "published"
SCHEMES = {
    "llmcompressor-rtn-w4a16": "W4A16-g32",
    "llmcompressor-rtn-w4a16-asym": "W4A16-g32",
    "llmcompressor-rtn-w3a16": "W3A16",
    "llmcompressor-gptq-w4a16": "W4A16-g32",
    "llmcompressor-gptq-w8a8": "W8A8",
    "autoround-gptq-w4-sym": "W4A16-g32",
    "autoround-gptq-w3-asym": "W3A16-g32",
    "autoround-awq-w4-asym": "W4A16-g32",
    "autoround-w4-sym": "W4A16-g32",
}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_library_that_wrote_it(name: str) -> None:
    if name.startswith("llmcompressor-") and "w8" not in name:
        pytest.importorskip("compressed_tensors")
    lm = qb.load(FOLDER / _reference(name))
    quantized = read_checkpoint(FOLDER / name, lm)
    expected = load_file(FOLDER / name / "logits.safetensors.expected")
    found = quantized.logits(expected["ids"])
    assert float((found - expected["logits"]).abs().max()) <= 1e-3
    assert float((lm.logits(expected["ids"]) - expected["logits"]).abs().max()) > 0.05
    assert (quantized.recipe or {})["scheme"] == SCHEMES[name]
    for layer in target_names(lm.model):
        assert isinstance(quantized.model.get_submodule(layer), QuantLinear)
    assert qb.audit(quantized, reference=lm, skip=EXPENSIVE) == []


def _reference(name: str) -> str:
    """Dream's have biases in their files, LLaDA's have none."""
    tensors = load_file(FOLDER / name / "model.safetensors")
    biased = any(tensor.endswith(".bias") for tensor in tensors)
    return REFERENCES["dream" if biased else "llada"]
