"""A packed model's memory really falls: by the tensors that live, and by what the process holds.

In a process of its own, on a stack of layers large enough to stand out (7 million weights): all tensors
that the garbage collector knows, each memory counted once, and resident pages (``/proc/self/statm``) after
freed ones were handed back (``malloc_trim``; blocks from 64 KiB on are mapped one by one and unmapped when
freed, ``MALLOC_MMAP_THRESHOLD_``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import ctypes, gc, json, resource, torch
import dllm_qbench as qb
from dllm_qbench.quant.layers import QuantLinear
from tests.helpers.tiny import tiny_llada

def measured():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    known = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    pages = int(open("/proc/self/statm").read().split()[1])
    return {"tensors": sum(known.values()), "process": pages * resource.getpagesize()}

torch.set_num_threads(1)
lm = tiny_llada(d_model=512, mlp_hidden_size=1536, n_layers=2, n_heads=8, n_kv_heads=8)
model = qb.quantize(lm, "rtn", "W4A16-g128")
ids = list(range(4, 60))
del lm
model.logits(ids)
qb.pack(model).logits(ids)  # what is compiled or allocated once
fake = measured()
model = qb.pack(model)
model.logits(ids)
packed = measured()
weights = sum(m.in_features * m.out_features for m in model.model.modules() if isinstance(m, QuantLinear))
print(json.dumps({"fake": fake, "packed": packed, "weights": weights}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_falls_by_what_codes_are_narrower_than_floats() -> None:
    """Resident memory is the best of three runs: pages of libraries that come and go meanwhile count in it,
    on a machine short of memory more than weights do.
    """
    shares = []
    for _ in range(3):
        made = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout.splitlines()[-1])
        # 4 bits, and for each group of 128 a float32 scale and a zero point of 4 bits, instead of 32.
        expected = found["weights"] * (32 - (4 + 36 / 128)) / 8
        fell = {how: found["fake"][how] - found["packed"][how] for how in ("tensors", "process")}
        # A fake layer keeps scales and zero points beside its weights: a little more than expected falls.
        assert 0.98 * expected <= fell["tensors"] <= 1.03 * expected, found
        shares.append(fell["process"] / expected)
        if 0.9 <= shares[-1] <= 1.15:
            return
    raise AssertionError(
        f"resident memory fell by other than what weights take, as a share of it: {shares}"
    )
