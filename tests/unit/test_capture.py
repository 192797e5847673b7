"""Running block by block gives every linear the inputs that the whole model gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dllm_qbench.errors import CalibrationError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner, second_moment
from dllm_qbench.quant.layers import blocks, target_names
from tests.helpers.tiny import tiny_llada


def ragged(rows: int = 5, columns: int = 9, seed: int = 0) -> Calibration:
    """Random ids whose rows have 9, 8, 7... real tokens."""
    ids = torch.randint(4, 64, (rows, columns), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, columns - row :] = 0
    return Calibration(ids, mask, {})


@torch.no_grad()
def captured(model: torch.nn.Module, data: Calibration) -> dict[str, Tensor]:
    runner = BlockRunner(model, data)
    return {
        f"model.layers.{index}.{name}": torch.cat(inputs)
        for index, block in enumerate(blocks(model))
        for names, inputs in runner.stages(block)
        for name in names
    }


def by_whole_model(lm: DiffusionLM, data: Calibration) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in target_names(lm.model):

        def keep(_module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = args[0][data.attention_mask.bool()]

        hooks.append(lm.model.get_submodule(name).register_forward_pre_hook(keep))
    lm.logits(data.ids, data.attention_mask)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("variant", [{}, {"n_kv_heads": 2}, {"weight_tying": True}])
def test_inputs_are_those_of_the_whole_models_forward(variant: dict[str, Any]) -> None:
    lm, data = tiny_llada(**variant), ragged()
    expected, found = by_whole_model(lm, data), captured(lm.model, data)
    assert list(found) == target_names(lm.model) == list(expected)
    for name, inputs in found.items():
        assert len(inputs) == int(data.attention_mask.sum())
        torch.testing.assert_close(inputs, expected[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_causal_models_blocks_are_run_in_both_directions() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=32,
        )
    ).eval()
    ids = torch.arange(8)[None]
    edited = ids.clone()
    edited[0, -1] = 20
    first, second = (
        captured(model, Calibration(x, torch.ones_like(x), {}))["model.layers.1.self_attn.q_proj"]
        for x in (ids, edited)
    )
    assert not torch.allclose(first[0], second[0], atol=1e-6)


def test_padding_is_neither_handed_out_nor_attended_to() -> None:
    lm, data = tiny_llada(), ragged()
    noise = torch.randint(4, 64, data.ids.shape, generator=torch.Generator().manual_seed(9))
    other = torch.where(data.attention_mask.bool(), data.ids, noise)
    found = captured(lm.model, data)
    again = captured(lm.model, Calibration(other, data.attention_mask, {}))
    for name in found:
        assert torch.equal(found[name], again[name])


@torch.no_grad()
def test_later_linears_see_what_replaced_the_earlier_ones() -> None:
    lm, data = tiny_llada(), ragged()
    plain = captured(lm.model, data)
    model = lm.clone().model
    runner = BlockRunner(model, data)
    seen = {}
    for index, block in enumerate(blocks(model)):
        for names, inputs in runner.stages(block):
            seen[f"{index}.{names[0]}"] = torch.cat(inputs)
            if index == 0:
                for name in names:
                    block.get_submodule(name).weight.zero_()
    assert torch.equal(seen["0.self_attn.q_proj"], plain["model.layers.0.self_attn.q_proj"])
    assert not seen["0.self_attn.o_proj"].any()  # v is gone
    assert not seen["0.mlp.down_proj"].any()  # gate and up are gone
    alone = seen["1.self_attn.q_proj"]  # block 0 adds nothing: block 1 reads the embeddings
    embedded = model.model.embed_tokens(data.ids)[data.attention_mask.bool()]
    torch.testing.assert_close(alone, model.model.layers[1].input_layernorm(embedded))


def test_chunks_do_not_change_the_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, data = tiny_llada(), ragged(rows=7)
    name = "model.layers.1.mlp.down_proj"
    whole = captured(lm.model, data)[name]
    monkeypatch.setattr("dllm_qbench.quant.capture._CHUNK_TOKENS", 20)
    with torch.no_grad():
        runner = BlockRunner(lm.model, data)
        assert len(runner.hidden()) == 4
    torch.testing.assert_close(captured(lm.model, data)[name], whole, rtol=1e-5, atol=1e-6)
    parts = list(whole.split(5))
    expected = whole.double().T @ whole.double()
    torch.testing.assert_close(second_moment(parts), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(0, 4).long(), torch.zeros(0, 4).long(), "N > 0"),
        (torch.zeros(4).long(), torch.ones(4).long(), "must share a shape"),
        (torch.zeros(2, 4).long(), torch.ones(2, 3).long(), "must share a shape"),
        (torch.zeros(1, 4).long(), torch.zeros(1, 4).long(), "all padding"),
    ],
)
def test_unusable_data_is_an_error(ids: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        BlockRunner(tiny_llada().model, Calibration(ids, mask, {}))


def test_token_cap_leaves_ordinary_tokens_alone_bit_by_bit() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(second_moment([x[:80], x[80:]], 4.0), second_moment([x[:80], x[80:]]))


def test_token_cap_bounds_what_a_massive_token_weighs() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[17, 5] = 1e4
    kept = x.clone()
    usual = float(x.norm(dim=1).median())
    expected = x.clone()
    expected[17] *= 4 * usual / float(x[17].norm())
    torch.testing.assert_close(second_moment([x[:80], x[80:]], 4.0), expected.T @ expected)
    assert torch.equal(x, kept)
    assert float(second_moment([x])[5, 5]) > 1e7


def test_token_cap_of_mostly_silent_tokens_is_no_cap() -> None:
    x = torch.zeros(9, 3, dtype=torch.float64)
    x[0] = torch.tensor([3.0, 0.0, 4.0])
    assert torch.equal(second_moment([x], 4.0), second_moment([x]))
