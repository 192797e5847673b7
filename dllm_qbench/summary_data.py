"""A run's summary as plain JSON values: what ``qbench summary --json`` prints. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dllm_qbench.outcomes import Outcome
from dllm_qbench.run_view import rank, whole_run
from dllm_qbench.summary import why
from dllm_qbench.summary_changes import Changes


def summary_data(outcomes: Sequence[Outcome], compared: Changes | None = None) -> dict[str, Any]:
    """Whether the run fails, by how many cells and why, and what changed; the worst first.

    ``base`` is ``None`` where there is no other run to compare with.
    """
    ranked = sorted(outcomes, key=rank)
    whole = [finding.text for finding in whole_run(outcomes)]
    failing = [outcome for outcome in ranked if outcome.fails]
    return {
        "fails": bool(failing or whole),
        "cells": len(ranked),
        "counts": dict(Counter(outcome.status for outcome in ranked)),
        "failing": [
            {"model": o.model, "cell": o.cell, "status": o.status, "why": why(o).splitlines()}
            for o in failing
        ],
        "whole_run": whole,
        "base": None if compared is None else asdict(compared),
    }
