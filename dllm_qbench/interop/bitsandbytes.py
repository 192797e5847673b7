"""bitsandbytes: NF4 and LLM.int8.

NF4's 16 levels are quantiles of a normal distribution, not steps of a scale: the subject declares that,
and the grid audit counts levels instead of looking for steps. LLM.int8 rounds inputs by token, but
for the channels that hold a value of 6 or more anywhere in the batch: these are multiplied in 16 bits.
So what it makes of a canvas depends on the canvases beside it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dllm_qbench.interop.library import WithWeight, foreign, group_of, need, replace_linears
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.quant.calibration import Calibration
from dllm_qbench.quant.scheme import Scheme

LIBRARY = "bitsandbytes"
THRESHOLD = 6.0  # the published one, and the library's recommendation
BFLOAT16_PRODUCTS = False


@foreign("bitsandbytes-nf4", LIBRARY, ("W4A16-g64",), grid="levels")
def nf4(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Put weights on the 16 levels of NF4, a scale for each group."""
    return replace_linears(lm, lambda _name, linear: four_bits(linear, group_of(scheme, linear)))


@foreign("bitsandbytes-int8", LIBRARY, ("W8A8",), threshold=THRESHOLD)
def llm_int8(lm: DiffusionLM, scheme: Scheme, calibration: Calibration) -> nn.Module:
    """Round weights by channel and inputs by token, outlier channels apart."""
    return replace_linears(lm, lambda _name, linear: eight_bits(linear, THRESHOLD))


def four_bits(linear: nn.Linear, group: int, kind: str = "nf4") -> WithWeight:
    """Return bitsandbytes' layer of 4 bits for a linear; ``kind``: ``nf4`` or ``fp4``."""
    bnb: Any = need("bitsandbytes", LIBRARY)
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type=kind,
        compress_statistics=False,
    )
    layer.weight = bnb.nn.Params4bit(
        linear.weight.detach().clone(),
        requires_grad=False,
        quant_type=kind,
        blocksize=group,
        compress_statistics=False,
    )
    layer.bias = linear.bias
    layer = layer.to(linear.weight.device).eval()  # moving it is what quantizes
    # On CPUs that have it, it would repack for products in bfloat16, whatever its compute type: outputs
    # 0.3 % off, and other figures on another machine.
    layer.support_avx512bf16_for_cpu = BFLOAT16_PRODUCTS
    state = layer.weight.quant_state
    return WithWeight(layer, bnb.functional.dequantize_4bit(layer.weight.data, state))


def eight_bits(linear: nn.Linear, threshold: float) -> WithWeight:
    """Return bitsandbytes' layer of LLM.int8 for a linear."""
    bnb: Any = need("bitsandbytes", LIBRARY)
    layer = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    weight = linear.weight.detach().clone()
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    # Moving it is what quantizes; in training mode, on a CPU, it would leave its inputs as they are.
    layer = layer.to(linear.weight.device).eval()
    codes, scale_O = layer.weight.CB, layer.weight.SCB
    read: Tensor = codes.float() * (scale_O.float() / 127)[:, None]
    return WithWeight(layer, read)
