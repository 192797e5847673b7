"""``--qbench-html``: the page that a pytest session writes at its end. No torch until it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dllm_qbench.errors import QBenchError

if TYPE_CHECKING:
    from dllm_qbench.outcomes import Outcome
    from dllm_qbench.pytest_options import Settings


class ReportPage:
    """The page of one session.

    What it is compared with is read before the first test: ``--qbench-records`` may write the same file,
    and a base that cannot be read should cost nobody a run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kernels: Mapping[str, Any] | None = None
        self.said: list[str] = []
        self._base: Sequence[Outcome] | None = None
        self._base_name = ""
        if settings.html is None:
            return
        from dllm_qbench.report.write import previous
        from dllm_qbench.summary_files import read_outcomes

        if settings.base is None:
            self._base = previous(settings.html, self.said.append)
            self._base_name = "the previous run"
            return
        try:
            self._base = read_outcomes(settings.base)
        except QBenchError as error:
            raise pytest.UsageError(f"--qbench-base: {error}") from error
        self._base_name = settings.base.name

    def take_kernels(self, config: pytest.Config) -> None:
        """Take in what pytest-benchmark would save of the session's kernels, if some were timed."""
        if self.settings.html is not None:
            from dllm_qbench.report.roofline import session_run

            self.kernels = session_run(config)

    def write(self, outcomes: Sequence[Outcome], whole_run: Sequence[str]) -> str | None:
        """Write the page and keep the records beside it; return why it could not be done.

        The run's own results are safe whatever happens here: they are reported all the same.
        """
        page = self.settings.html
        if page is None or not (outcomes or self.kernels):
            return None
        from dllm_qbench.report.write import Sources, keep, kept_beside, write_report

        data_dir = self.settings.setup.data_dir
        sources = Sources(
            base=self._base,
            base_name=self._base_name,
            baselines=self.settings.baselines,
            data_dir=None if data_dir is None else Path(data_dir),
            kernels=self.kernels,
            whole_run=whole_run,
        )
        try:
            if outcomes and self.settings.records != kept_beside(page):
                keep(page, outcomes)
            write_report(page, outcomes, sources)
        except Exception as error:
            return f"--qbench-html: {page} was not written: {type(error).__name__}: {error}"
        self.said.append(f"report: {page}")
        return None
