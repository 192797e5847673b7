"""Quantized checkpoints in the formats that people publish: read, and our own written.

======================  =============================================================================
compressed-tensors      ``pack-quantized``, ``int-quantized``, ``naive-quantized`` integer weights
GPTQ                    ``qweight``, ``qzeros``, ``scales``, ``g_idx``; version 1 and ``gptq_v2``
AWQ                     ``qweight``, ``qzeros``, ``scales`` of the ``gemm`` kernel
our own                 ``recipe.json`` beside packed blocks, see ``quant/checkpoint.py``
======================  =============================================================================

``reading.py`` finds out which of them a folder holds; each format is one module that turns a layer's
tensors into codes and a grid (``codes.py``), which are the same for all.
"""
