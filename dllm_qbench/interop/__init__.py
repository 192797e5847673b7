"""Quantizers of other libraries, as subjects of the suite: one module a library.

Each subject is called as a user's own quantizer is, ``subject(lm, scheme, calibration)``::

    pytest -m others --qbench-model=llada-embedded
    pytest --qbench-subject=dllm_qbench.interop.torchao:int8_weight_only ...

The libraries are optional and their pins conflict: install one into an environment of its own. Nothing
here imports a library before its subject is called; a missing one is an error with the pip command.
"""
