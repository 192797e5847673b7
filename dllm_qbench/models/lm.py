"""A diffusion language model as the rest of the suite sees it: logits, likelihood, generation."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dllm_qbench.errors import NonFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]]

_CPU_TOKENS, _OTHER_TOKENS = 1024, 4096
_PIECE = (
    2**22
)  # weights looked at together; an embedding of 8B holds 5 * 10^8, and a check copies them


def tokens_at_once(device: torch.device) -> int:
    """Return how many tokens one forward pass takes by default.

    On a CPU what a block works on should stay in the core's cache: with 1,024 tokens the embedded
    models' tasks ran in 0.76 to 1.03 of the time that 4,096 took, by task and model, with the same bits.
    An accelerator wants more.
    """
    return _CPU_TOKENS if device.type == "cpu" else _OTHER_TOKENS


@dataclass(eq=False)
class DiffusionLM:
    """A masked diffusion model with what is needed to run it.

    Attributes:
        model: the native transformers model, in evaluation mode.
        tokenizer: ``None`` where the checkpoint folder has no tokenizer files (ids in, ids out).
        mask_id: the id of ``[MASK]``.
        name: what the model is called in cells and baselines.
        recipe: ``None`` for full precision, else how it was quantized.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast | None
    mask_id: int
    name: str
    recipe: Mapping[str, Any] | None = None
    _fingerprint: str | None = field(default=None, repr=False)

    @property
    def config(self) -> Any:
        """The model's configuration (transformers' spelling)."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the embeddings."""
        return next(self.model.parameters()).dtype

    @property
    def eos_id(self) -> int:
        """End of text; also what fills the rest of an answer."""
        eos = self.config.eos_token_id
        return int(eos[0] if isinstance(eos, list) else eos)

    @property
    def pad_id(self) -> int:
        """Padding; falls back to the end of text."""
        pad = self.config.pad_token_id
        return self.eos_id if pad is None else int(pad)

    @property
    def bos_id(self) -> int | None:
        """Start of text, where the tokenizer has one."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    @property
    def first_maskable(self) -> int:
        """The first position that may hold ``[MASK]``: 1 where no row of the logits predicts
        token 0.
        """
        return int(getattr(self.model, "shifted_logits", False))

    @property
    def closed_targets(self) -> bool:
        """Whether an end of text follows a target whose likelihood is estimated."""
        return bool(getattr(self.model, "closed_targets", False))

    def logits(self, ids: Ids, attention_mask: Tensor | None = None) -> Tensor:
        """Score every position of a canvas; row i scores token i.

        Args:
            ids: token ids ``[T]`` or ``[B, T]``, a list or a tensor.
            attention_mask: ``[B, T]``, 1 for real tokens and 0 for padding; ``None`` means all
                real.

        Returns:
            float32 logits with the leading shape of ``ids``: ``[T, V]`` or ``[B, T, V]``. A model
            of shifted logits (Dream) predicts token i + 1 in row i; here its rows are moved by one,
            and row 0, which nothing predicts, repeats row 1.

        Raises:
            ValueError: ids outside the vocabulary, or position 0 is masked and the model's logits
                are shifted.
        """
        tokens = self.as_ids(ids)
        flat = tokens[None] if tokens.dim() == 1 else tokens
        if self.first_maskable and flat.numel() and bool((flat[:, 0] == self.mask_id).any()):
            raise ValueError(
                f"{self.name}: position 0 is [MASK] ({self.mask_id}), and no row of shifted logits"
                " predicts it; start every canvas with a real token, such as the begin-of-text one"
            )
        if attention_mask is not None:
            attention_mask = attention_mask.to(self.device).reshape(flat.shape)
        with torch.inference_mode():
            out: Tensor = self.model(input_ids=flat, attention_mask=attention_mask).logits
            if self.first_maskable:
                out = torch.cat((out[:, :1], out[:, :-1]), dim=1)
        out = out if out.dtype == torch.float64 else out.float()
        return out[0] if tokens.dim() == 1 else out

    def log_likelihood(
        self, context_ids: Ids, target_ids: Ids, samples: int = 128, seed: int = 0
    ) -> float:
        """Monte Carlo estimate of log p(target | context) in nats: LLaDA's, exact for a
        single-token target, or Dream's.
        """
        from dllm_qbench.diffusion.by_model import log_likelihoods

        context = self.as_ids(context_ids).flatten().tolist()
        target = self.as_ids(target_ids).flatten().tolist()
        return log_likelihoods(self, [(context, target, seed)], samples=samples)[0]

    def generate(
        self,
        prompt_ids: Ids,
        gen_length: int,
        steps: int,
        block_length: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        algorithm: str | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        alg_temp: float | None = None,
    ) -> Tensor:
        """Fill ``gen_length`` masks after the prompt; returns the ids, prompt included.

        Args:
            prompt_ids: ``[T]`` or ``[B, T]``.
            gen_length: how many tokens to generate.
            steps: denoising steps in all, divided evenly over the blocks.
            block_length: must divide ``gen_length``; blocks are filled left to right. ``None``: one
                block, as Dream's own sampler has it.
            temperature: 0 takes the most likely token; above, Gumbel noise in float64.
            seed: of the noise; row b of a batch draws from its own stream.
            algorithm: LLaDA has one, ``"low_confidence"``. Dream has ``"entropy"`` (its default),
                ``"topk_margin"``, ``"maskgit_plus"`` and ``"origin"``.
            top_p, top_k: Dream's: drop all but the most likely tokens.
            alg_temp: Dream's: draw the positions too, with this temperature.

        Raises:
            ValueError: lengths that do not divide, or an algorithm or a setting that the model's
                sampler does not have.
        """
        from dllm_qbench.diffusion.by_model import generate
        from dllm_qbench.seeding import derive

        tokens = self.as_ids(prompt_ids)
        prompts = [tokens.tolist()] if tokens.dim() == 1 else tokens.tolist()
        rows = generate(
            self,
            prompts,
            gen_length,
            steps,
            gen_length if block_length is None else block_length,
            temperature,
            [derive(seed, "generate", row) for row in range(len(prompts))],
            algorithm=algorithm,
            top_p=top_p,
            top_k=top_k,
            alg_temp=alg_temp,
        )
        return torch.tensor(rows[0] if tokens.dim() == 1 else rows, device=self.device)

    def as_ids(self, ids: Ids) -> Tensor:
        """Return ids as a long tensor on the model's device, checked against the vocabulary."""
        tokens = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        vocabulary = int(self.config.vocab_size)
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
            raise ValueError(
                f"token ids must lie in 0..{vocabulary - 1},"
                f" found {int(tokens.min())}..{int(tokens.max())}"
            )
        if tokens.dim() not in (1, 2) and tokens.numel():
            raise ValueError(f"token ids must have shape [T] or [B, T], found {list(tokens.shape)}")
        return tokens

    def fingerprint(self) -> str:
        """Sha256 over names, dtypes, shapes and bytes of every weight; computed once."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                for piece_N in tensor.detach().reshape(-1).split(_PIECE):
                    digest.update(piece_N.cpu().view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def clone(self) -> DiffusionLM:
        """Return a deep copy whose weights can be changed freely."""
        return DiffusionLM(
            copy.deepcopy(self.model), self.tokenizer, self.mask_id, self.name, self.recipe
        )

    def check_finite(self, where: str) -> None:
        """Raise :class:`NonFiniteError` naming the first parameter that holds a NaN or an
        infinity.
        """
        for name, tensor in self.model.named_parameters():
            pieces = tensor.detach().reshape(-1).split(_PIECE)
            bad = sum(int((~torch.isfinite(piece_N)).sum()) for piece_N in pieces)
            if bad:
                raise NonFiniteError(
                    f"{where}: {name} holds {bad} non-finite value(s) of {tensor.numel()}"
                )
