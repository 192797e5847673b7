"""Quantizers and checkpoints that are not this package's own, brought under the suite's checks.

``adopt`` takes a model that another library quantized; ``Subject`` is a function that does so, run by the
suite; both give what ``qb.evaluate``, ``qb.audit`` and ``qb.judge`` take.
"""

from dllm_qbench.quant.adopted import AdoptedLinear
from dllm_qbench.subjects.adopt import adopt
from dllm_qbench.subjects.quantizers import Subject, find_subject

__all__ = ["AdoptedLinear", "Subject", "adopt", "find_subject"]
