"""Put the outliers of real diffusion LLMs into the embedded model, midway through its training.

Real checkpoints have *massive* activations at the input of down_proj on a few tokens, and
*channel* outliers behind the norms (arXiv 2508.14896, section 3). A model of 2 million parameters
grows only faint ones in minutes. So training stops once, the structure below is put in, and
training goes on freely with no auxiliary loss: the shipped weights have learned to depend on it
and nothing cancels exactly.

- massive: a direction ``u`` that ordinary tokens hardly use marks a few delimiters; in each layer
  the two least used neurons read ``u`` in gate and up and so fire hugely on those tokens, and write
  back along ``u``. A marked token has little room for anything else, so it must be one whose row
  predicts nothing: in LLaDA ``<bos>`` and ``?``, in Dream, where the row of ``?`` predicts the
  answer's first token, words inside the prompt;
- channel: a few gains of each block norm are multiplied by ``s`` and the columns that read them
  divided by ``s`` (this step alone leaves the function as it was).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm_qbench.models.dream import DreamForMaskedDiffusion
from dllm_qbench.models.llada import LladaForMaskedDiffusion
from dllm_qbench.seeding import derive

Model = LladaForMaskedDiffusion | DreamForMaskedDiffusion


@dataclass(frozen=True)
class Outliers:
    """Where and how strong: ``marked`` words carry the massive activations, ``massive`` is the one
    aimed at; ``gain`` is s, on ``channels`` channels a norm.
    """

    massive: float = 10000.0
    mark: float = 100.0
    gain: float = 5.0
    channels: int = 4
    low_variance: int = 24
    marked: tuple[str, ...] = ("<bos>", "?")


@torch.no_grad()
def insert(model: Model, ids_BT: Tensor, marked: list[int], strength: Outliers, seed: int) -> None:
    """Change the model in place.

    Args:
        ids_BT: training canvases ``[B, T]`` from which variances and neuron use are measured.
        marked: token ids that carry the massive activations.
        strength: see :class:`Outliers`.
        seed: of the random mix that makes ``u`` and of the choice of channels.
    """
    inputs, use = _measure(model, ids_BT)
    u_D = _quiet_direction(inputs, strength.low_variance, derive(seed, "direction"))
    embedding = model.model.embed_tokens.weight
    length = float(embedding.norm(dim=1).median())
    embedding -= (embedding @ u_D)[:, None] * u_D
    for token in marked:
        embedding[token] += strength.mark * length * u_D
    width = u_D.numel()
    reach = strength.massive**0.5  # gate and up each give the square root of the activation
    for index, layer in enumerate(model.model.layers):
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        seen_D = norm.weight * u_D * width**0.5  # what the linears read on a marked token
        row_D = seen_D * (reach / float(seen_D.norm()) ** 2)
        column = float(mlp.down_proj.weight.norm(dim=0).median())
        for neuron in use[index].argsort()[:2].tolist():
            mlp.gate_proj.weight[neuron] = row_D
            mlp.up_proj.weight[neuron] = row_D
            mlp.down_proj.weight[:, neuron] = u_D * column
        for norm, readers, name in (
            (
                layer.input_layernorm,
                (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                "qkv",
            ),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), "mlp"),
        ):
            generator = torch.Generator().manual_seed(derive(seed, "channels", index, name))
            chosen = torch.randperm(width, generator=generator)[: strength.channels].tolist()
            widen_channels(norm, readers, chosen, strength.gain)


@torch.no_grad()
def widen_channels(
    norm: nn.Module, readers: Iterable[nn.Module], channels: list[int], gain: float
) -> None:
    """Multiply gains of ``norm`` by ``gain`` and divide the columns that read them: the function
    stays.
    """
    norm.weight[channels] *= gain  # type: ignore[index, operator]
    for reader in readers:
        reader.weight[:, channels] /= gain  # type: ignore[index, operator]


def _measure(model: Model, ids_BT: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the norm inputs of every layer ``[N, D]`` and each neuron's contribution ``[F]``."""
    inputs: list[Tensor] = []
    use: list[Tensor] = []
    hooks = []
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            hooks.append(
                norm.register_forward_pre_hook(
                    lambda _m, args: inputs.append(args[0].flatten(0, -2))
                )
            )
        column_F = layer.mlp.down_proj.weight.norm(dim=0)
        hooks.append(
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _m, args, column_F=column_F: use.append(
                    args[0].flatten(0, -2).norm(dim=0) * column_F
                )
            )
        )
    model(input_ids=ids_BT)
    for hook in hooks:
        hook.remove()
    return inputs, use


def _quiet_direction(inputs: list[Tensor], count: int, seed: int) -> Tensor:
    """Return a unit vector ``[D]``: a random mix of the ``count`` directions of least variance."""
    unit = torch.cat([x_ND / x_ND.norm(dim=1, keepdim=True) for x_ND in inputs]).double()
    _, vectors = torch.linalg.eigh(unit.T @ unit)  # ascending eigenvalues
    weights = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u_D = vectors[:, :count] @ weights
    unit_D: Tensor = (u_D / u_D.norm()).float()
    return unit_D
