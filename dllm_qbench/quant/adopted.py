"""A quantized linear that another quantizer made: its own module runs, and what is known of it is beside.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from torch import Tensor, nn

from dllm_qbench.errors import QBenchError
from dllm_qbench.quant.grid import Grid
from dllm_qbench.quant.layers import QuantLinear
from dllm_qbench.quant.scheme import UNTOUCHED, Scheme

GridKind = Literal["uniform", "levels"]
"""``uniform``: whole steps of a scale, 0 among them. ``levels``: any 2^b levels, as of NF4 or of a zero
point that is no integer."""
KINDS: Final = ("uniform", "levels")


class AdoptedLinear(QuantLinear):
    """Another quantizer's layer in a linear's place.

    Attributes:
        module: the quantizer's own; called for every input. Not among this module's children, so that
            a block still has seven linears.
        kind: what its weight's levels are, see :data:`GridKind`.
        rounds_inputs: whether its outputs differ from its weight's product with the input as given.
        before_scaling: ``[O, I]``, the rounded values where the layer scales its inputs itself, so that
            ``weight`` is these times a factor for each input; ``None`` where ``weight`` is what is rounded.
    """

    kind: GridKind
    rounds_inputs: bool
    before_scaling: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        weight: Tensor,
        bias: Tensor | None,
        grid: Grid | None,
        scheme: Scheme,
        method: str,
    ) -> None:
        super().__init__(weight, bias, grid, scheme, method)
        self.__dict__["_held"] = (module,)
        self.kind = "uniform"
        self.rounds_inputs = False
        self.register_buffer("before_scaling", None)

    @property
    def module(self) -> nn.Module:
        """The quantizer's own layer."""
        held: tuple[nn.Module] = self.__dict__["_held"]
        return held[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., I]`` to ``[..., O]``, as the quantizer's layer does.

        Tokens ``[N, I]`` reach it as one sequence: compressed-tensors takes one scale for all of a
        tensor of two dimensions, where it says one for each token.
        """
        out: Tensor = self.module(x[None])[0] if x.dim() == 2 else self.module(x)
        return out

    @property
    def rounded(self) -> Tensor:
        """The values ``[O, I]`` that lie on the weight's grid."""
        return self.weight if self.before_scaling is None else self.before_scaling

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdoptedLinear:
        """Move or convert the quantizer's layer with this one."""
        for move in (self.module._apply, super()._apply):
            call: Any = move
            call(fn)
        return self

    def requantize(self, weight: Tensor, grid: Grid | None, scheme: Scheme) -> None:
        """Take what was read off; a quantizer's layer itself is never changed.

        Raises:
            QBenchError: the layer is in use already.
        """
        if "_held" in self.__dict__:
            raise QBenchError(
                f"{type(self.module).__name__}: an adopted layer cannot be requantized"
            )
        super().requantize(weight, grid, scheme)

    def extra_repr(self) -> str:
        """Return what ``repr(model)`` shows of this layer."""
        return f"{super().extra_repr()}, runs {type(self.module).__name__}"

    def wrong_inputs(self) -> str | None:
        """Return what is wrong with how the layer treats its inputs; ``None`` where nothing is."""
        wanted = self.scheme.act_bits
        if self.scheme.quantizes_activations and not self.rounds_inputs:
            return (
                f"does not round its inputs; expected {wanted} bits under {self.scheme}: its accuracy"
                " would be that of another scheme"
            )
        if wanted == UNTOUCHED and self.rounds_inputs:
            return (
                f"rounds its inputs; expected them untouched under {self.scheme}: say so in the scheme"
                " (W8A8), or leave activations alone"
            )
        return None
