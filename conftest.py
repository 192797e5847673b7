"""Set-up shared by the regression matrix in ``tests/`` and by the tests of the suite itself."""

from __future__ import annotations

import os
import sys

from hypothesis import HealthCheck, settings

# Installed, the plugin comes through its entry point, before this file. From a source tree that is
# not installed it is registered here, so that the options exist either way and never twice.
pytest_plugins = ["pytester", "tests.benchmarks.plugin"]
if "dllm_qbench.pytest_plugin" not in sys.modules:
    pytest_plugins.append("dllm_qbench.pytest_plugin")

# Models, items and tasks come with the package: a look-up on a hub would be a mistake, so it fails.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# The same examples on each run: a change that fails, fails for everybody. `thorough` looks further
# (pytest --hypothesis-profile=thorough; with -n, --dist worksteal shares a file out). No deadline: the
# first example of a test may import torch.
settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), print_blob=True)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=1000
)
settings.load_profile("ci" if os.environ.get("CI") else "default")
