"""The report of a run as one HTML file: its data, its pictures, its page, and the records kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import write_atomic
from dllm_qbench.models.hub import EMBEDDED
from dllm_qbench.outcomes import Outcome
from dllm_qbench.report.data import build
from dllm_qbench.report.page import write_page
from dllm_qbench.summary_files import read_outcomes

if TYPE_CHECKING:
    from dllm_qbench.report.outlier_maps import OutlierMap


@dataclass(frozen=True)
class Sources:
    """What a page shows beside the run's own outcomes.

    Attributes:
        base: outcomes of the run to compare with, and ``base_name``: what to call it.
        baselines: folder of the models' baselines, for the layers' stored errors; ``data_dir``: folder with
            the paper's tasks, for their prompts.
        maps: outlier maps that were made before; ``shipped_maps``: make those of shipped models that have
            none, which takes seconds a model.
        kernels: a run of the benchmarks: pytest-benchmark's file, or what such a file holds.
        whole_run: sentences that fail the run as a whole, beside those that its outcomes show.
    """

    base: Sequence[Outcome] | None = None
    base_name: str = ""
    baselines: Path | None = None
    data_dir: Path | None = None
    maps: Sequence[OutlierMap] = ()
    shipped_maps: bool = True
    kernels: Path | Mapping[str, Any] | None = None
    whole_run: Sequence[str] = ()


def write_report(
    path: str | Path, outcomes: Sequence[Outcome], sources: Sources | None = None
) -> Path:
    """Write the page of a run; a reader sees the old page or the whole new one.

    Raises ``QBenchError`` when a source cannot be read or the file cannot be written.
    """
    given = sources or Sources()
    data = build(
        outcomes,
        base=given.base,
        base_name=given.base_name,
        baselines=given.baselines,
        data_dir=given.data_dir,
        whole_run=given.whole_run,
    )
    maps = [*given.maps]
    if given.shipped_maps:
        have = {found.model for found in maps}
        models = dict.fromkeys(outcome.model for outcome in outcomes)
        maps += [
            m for model in models if model in EMBEDDED and model not in have for m in _maps(model)
        ]
    if maps:
        from dllm_qbench.report.draw import page_entries

        data["outliers"] = page_entries(maps)
    if given.kernels is not None:
        from dllm_qbench.report.roofline import roofline

        data["roofline"] = roofline(given.kernels)
    write_page(data, path)
    return Path(path)


def _maps(model: str) -> Sequence[OutlierMap]:
    from dllm_qbench.models.loading import load
    from dllm_qbench.report.outlier_maps import outlier_maps

    return outlier_maps(load(model))


def kept_beside(page: Path) -> Path:
    """Where the records that a page shows are kept."""
    return page.with_suffix(".jsonl")


def previous(page: Path, say: Callable[[str], None]) -> list[Outcome] | None:
    """Read the outcomes of the run that a page showed last; ``None`` where there is none.

    What cannot be read is said and left out: that an old run is damaged is not this one's failure.
    """
    kept = kept_beside(page)
    if not kept.exists():
        return None
    try:
        return read_outcomes(kept)
    except QBenchError as error:
        say(f"not compared with the previous run: {error}")
        return None


def keep(page: Path, outcomes: Sequence[Outcome]) -> None:
    """Keep a run's outcomes beside its page, for the next run to be compared with."""
    write_atomic(kept_beside(page), "".join(f"{outcome.to_json()}\n" for outcome in outcomes))
