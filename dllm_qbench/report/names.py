"""Names of files that are made of other names. No torch."""

from __future__ import annotations

import re


def file_name(*parts: str) -> str:
    """Join names by ``-`` without what a file system, a shell or a LaTeX path may refuse.

    >>> file_name("outliers", "../models/my model")
    'outliers-models_my_model'
    """
    return "-".join(
        re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("._") or "unnamed" for part in parts
    )
