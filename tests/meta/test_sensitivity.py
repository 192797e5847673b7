"""A loss of 1 dB in the logits, from noise in one linear, fails a cell; no noise does not."""

from __future__ import annotations

import pytest

import dllm_qbench as qb
from dllm_qbench.evaluation.fidelity import measure
from dllm_qbench.evaluation.probe import canvases
from tools.sensitivity import ITEMS, TASK, logit_db, planted, verdict_of


@pytest.mark.parametrize(
    "linear", ["model.layers.0.self_attn.k_proj", "model.layers.3.mlp.gate_proj"]
)
def test_one_decibel_of_the_logits_is_caught(embedded_lm: qb.DiffusionLM, linear: str) -> None:
    quantized = qb.quantize(embedded_lm, "rtn", "W3A16-g64")
    sound = measure(embedded_lm, quantized, canvases(embedded_lm, TASK))
    base = qb.evaluate(quantized, embedded_lm, TASK, ITEMS)
    noisy = planted(embedded_lm, quantized, linear, 1.0)
    assert logit_db(sound) - logit_db(noisy) == pytest.approx(1.0, abs=0.1)
    assert verdict_of(base, noisy) == "degraded"
    again = measure(embedded_lm, quantized, canvases(embedded_lm, TASK))
    assert again.layer_sqnr == sound.layer_sqnr  # the noise was taken back
    assert verdict_of(base, again) != "degraded"
