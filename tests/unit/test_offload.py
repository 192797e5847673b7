"""Computing block by block, on a device of its own and with inputs computed anew, changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dllm_qbench as qb
from dllm_qbench.errors import QBenchError
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant import capture
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.capture import BlockRunner, Streamed, mapped, second_moment
from dllm_qbench.quant.layers import blocks
from dllm_qbench.quant.methods.gptq import inverse_factor, solve
from dllm_qbench.quant.methods.rtn import round_weight
from dllm_qbench.quant.offload import change_rows, lent, visited
from dllm_qbench.quant.scheme import Scheme
from tests.helpers.layers import correlated_layer
from tests.helpers.tiny import tiny_dream, tiny_dream_config, tiny_llada
from tools.device_memory import Counted, count

METHODS = {
    "rtn": "W3A16-g20",
    "gptq": "W3A16-g20",
    "awq": "W3A16-g20",
    "smoothquant": "W4A4",
    "quarot": "W4A4",
    "duquant": "W4A4",
}
TOKENS = 12


def data(lm: DiffusionLM, sequences: int = 70) -> Calibration:
    return qb.calibration(lm, sequences=sequences, length=TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dream", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_inputs_computed_anew_give_the_bits_of_inputs_kept(
    method: str, dream: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = (tiny_dream if dream else tiny_llada)(dtype=dtype)
    if method == "duquant" and dtype == torch.float32:
        monkeypatch.setattr(
            capture, "_CHUNK_TOKENS", 10_000
        )  # one chunk: kept inputs are turned whole
    else:
        monkeypatch.setattr(capture, "_CHUNK_TOKENS", 20 * TOKENS)
    kept = qb.quantize(lm, method, METHODS[method], data(lm))
    monkeypatch.setattr(capture, "_KEPT_BYTES", 0)
    streamed = qb.quantize(lm, method, METHODS[method], data(lm))
    assert streamed.fingerprint() == kept.fingerprint()
    assert streamed.fingerprint() != lm.fingerprint()


@torch.no_grad()
def test_a_stage_of_many_inputs_holds_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_llada()
    monkeypatch.setattr(capture, "_KEPT_BYTES", 0)
    monkeypatch.setattr(capture, "_CHUNK_TOKENS", 2 * TOKENS)
    runner = BlockRunner(lm.model, data(lm, 6))
    for _, inputs in runner.stages(blocks(lm.model)[0]):
        assert isinstance(inputs, Streamed)
        first, second = list(inputs), list(inputs)
        assert len(first) == len(inputs) == 3
        assert all(torch.equal(x, y) and x is not y for x, y in zip(first, second, strict=True))
        doubled = mapped(inputs, lambda x: 2 * x)
        assert torch.equal(torch.cat(list(doubled)), 2 * torch.cat(first))


class Moving(nn.Linear):
    """Remembers where it was moved."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.moves: list[str] = []

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.moves.append(str(args[0]))
        return super().to(*args, **kwargs)


def test_a_block_comes_home_whatever_happens() -> None:
    block = Moving()

    def fail() -> None:
        with lent(block, torch.device("meta")):
            assert block.weight.is_meta
            raise KeyError

    with Counted(), pytest.raises(KeyError):
        fail()
    assert block.moves == ["meta", "cpu"]
    assert block.weight.device.type == "cpu"


def test_at_home_nothing_moves() -> None:
    block = Moving()
    for device in (None, torch.device("cpu")):
        with lent(block, device):
            pass
    assert block.moves == []


def test_blocks_are_lent_one_at_a_time() -> None:
    model = tiny_llada().model
    with Counted():
        for index, block in visited(model, torch.device("meta")):
            there = [next(b.parameters()).is_meta for b in blocks(model)]
            assert there == [i == index for i in range(2)]
            assert block is blocks(model)[index]


def test_rows_are_changed_in_parts_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm_qbench.quant.offload._VALUES_AT_ONCE", 8)
    x = torch.arange(20.0).view(5, 4)
    seen: list[int] = []

    def change(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows.double() + 1

    change_rows(x, change, None)
    assert seen == [2, 2, 1]
    assert torch.equal(x, torch.arange(20.0).view(5, 4) + 1)


@pytest.mark.parametrize("scheme", ["W4A16-g8", "W8A8"])
def test_rows_are_rounded_in_parts_to_the_bits_of_the_whole(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(7, 20, generator=torch.Generator().manual_seed(0))
    whole, grid = round_weight(weight, Scheme.parse(scheme), False)
    monkeypatch.setattr("dllm_qbench.quant.methods.rtn._VALUES_AT_ONCE", 45)
    parts, same = round_weight(weight, Scheme.parse(scheme), False)
    assert torch.equal(parts, whole)
    assert grid is not None
    assert same is not None
    assert torch.equal(same.scale, grid.scale)
    assert torch.equal(same.zero, grid.zero)


def test_unusable_device_is_an_error() -> None:
    with pytest.raises(QBenchError, match="device 'nowhere' cannot be used"):
        qb.quantize(tiny_llada(), "rtn", "W4A16", device="nowhere")


def test_device_is_no_part_of_the_recipe() -> None:
    lm = tiny_llada()
    here, there = (qb.quantize(lm, "rtn", "W4A16", device=device) for device in (None, "cpu"))
    assert here.recipe == there.recipe
    assert here.fingerprint() == there.fingerprint()


def test_second_moment_adds_up_in_float32_for_half_precision_alone() -> None:
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    assert second_moment([x]).dtype == torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        H = second_moment([x[:100].to(dtype), x[100:].to(dtype)])
        assert H.dtype == torch.float32
        exact = x.to(dtype).double().T @ x.to(dtype).double()
        torch.testing.assert_close(H.double(), exact, rtol=1e-5, atol=1e-3)


def test_hessian_that_needs_more_damping_names_the_layer() -> None:
    weight, hessian = correlated_layer(rows=4, columns=8, seed=0)
    hessian[0, 1] = hessian[1, 0] = 3 * hessian.diagonal().max()
    with pytest.warns(
        RuntimeWarning, match=r"gptq: model.layers.3.mlp.down_proj: the Hessian is not"
    ):
        solve(
            weight,
            hessian,
            Scheme.parse("W4A16"),
            False,
            0.01,
            False,
            "model.layers.3.mlp.down_proj",
        )


# --- memory, counted ----------------------------------------------------------------------------


def test_count_follows_what_is_alive() -> None:
    with Counted() as counted:
        a = torch.empty(1000, device="meta", dtype=torch.float32)
        b = a.double()
        view = b[10:]
        assert counted.alive == counted.peak == 12_000
        del b
        assert counted.alive == 12_000  # the view holds it
        del view
        assert (counted.alive, counted.peak) == (4_000, 12_000)
        a += 1
        assert counted.peak == 12_000
        assert float(a.sum()) == 1.0
        assert torch.equal(a.cpu(), torch.zeros(1000))


@pytest.mark.parametrize("act_order", [False, True])
def test_solver_holds_two_matrices_of_the_hessians_size_beside_it(act_order: bool) -> None:
    size = 512
    with Counted() as counted:
        H = torch.empty(size, size, device="meta", dtype=torch.float64)
        order = torch.arange(size, device="meta") if act_order else None
        inverse_factor(H, 0.01, order)
    matrices = counted.peak / (size * size * 8)
    # The third and fourth are short-lived: the reordered H, or the factor that is turned around.
    assert matrices <= 4.1


FEW = {"awq": {"ratios": 2, "clip_steps": 2}, "duquant": {"tokens": 16, "steps": 1}}


@pytest.mark.parametrize("method", METHODS)
def test_device_holds_one_block_and_one_chunk_however_long_the_calibration(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_KEPT_BYTES", 0)
    monkeypatch.setattr(capture, "_CHUNK_TOKENS", 8 * TOKENS)

    def peak(sequences: int, layers: int) -> int:
        shape = tiny_dream_config(
            hidden_size=32, intermediate_size=48, vocab_size=256, num_hidden_layers=layers
        )
        few: dict[str, Any] = FEW.get(method, {})
        return count(shape, method, METHODS[method], sequences, TOKENS, **few).peak

    usual = peak(16, 1)
    chunk = 8 * TOKENS * 32 * 2  # bytes of a chunk's hidden states
    assert usual > chunk
    # Up to four numbers a token (norms, maxima, their order), not its activations: those of the narrowest
    # place alone are 32 halves.
    assert peak(48, 1) - usual <= 32 * TOKENS * 4 * 8
    # SmoothQuant's factors, vectors too, wait for all blocks; a block's weights would be 15 kB.
    assert peak(16, 3) - usual < 7_000
