"""The pytest plugin: options, markers, fixtures, and what the run reports. Thin: torch comes later.

A cell is measured and judged inside its test. What came of it travels in the test's
``user_properties``, so that it survives pytest-xdist and reaches JUnit files. Only the process that
collects the reports writes: the record file, and with ``--qbench-update`` the baselines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import product
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

import pytest

from dllm_qbench import subject_cells, terminal
from dllm_qbench.errors import QBenchError
from dllm_qbench.progress import ProgressLine
from dllm_qbench.pytest_full import FullTier, pick_device
from dllm_qbench.pytest_options import Settings, add_options
from dllm_qbench.pytest_session import PROPERTY, Run

if TYPE_CHECKING:
    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.outcomes import Outcome
    from dllm_qbench.quant.calibration import Calibration
    from dllm_qbench.verdict.judge import Verdict

MARKERS: Final = {
    "quick": "the regression matrix on the embedded models: minutes on two cores",
    "full": "the regression matrix on real checkpoints: needs a GPU",
    "bench": "timings, asserted as ratios within one process",
    "faults": "planted faults that the suite has to catch",
    "scale": "many kills, several machines, models of a true size",
}
Quantizer = Callable[..., "DiffusionLM"]
Cell = Callable[..., "Verdict"]
SubjectQuantizer = Callable[..., "DiffusionLM"]
Job = Callable[[str, str, str], "Outcome"]


_RUN: Final = pytest.StashKey[Run]()
_FULL: Final = pytest.StashKey[FullTier]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The group ``qbench``."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and check the options before anything is collected."""
    _share_cores()
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.stash[_RUN] = run = Run(config)
    config.stash[_FULL] = FullTier(run)
    pick_device(config, run.settings)
    config.pluginmanager.register(run, "qbench-run")
    config.pluginmanager.register(config.stash[_FULL], "qbench-full-tier")
    _subjects_alone(config, run.settings)


def _share_cores() -> None:
    """Give each of xdist's workers its share of the cores: torch would start one thread a core in each.

    Read by torch when it is imported, which is later.
    """
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        share = (os.cpu_count() or 1) // int(workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def _subjects_alone(config: pytest.Config, settings: Settings) -> None:
    """Where ``--qbench-subject`` is all that was asked for, collect its cells and nothing else."""
    if settings.subjects and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = []


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the cells of ``--qbench-subject`` to what the session collects.

    Not by their file's path among the arguments: pytest would read every ``conftest.py`` above it.
    """
    report = yield
    if isinstance(collector, pytest.Session) and collector.config.stash[_RUN].settings.subjects:
        cells = Path(subject_cells.__file__)
        report.result = [*report.result, pytest.Module.from_parent(collector, path=cells)]
    return report


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Versions, model, items, baselines; for the full tier also its settings and its store."""
    settings = config.stash[_RUN].settings
    asked = _asks_for_full(config)
    models = settings.full_models if asked else settings.models
    baselines = _shown(config, settings.baselines)
    lines = terminal.header(models, settings.items, baselines, settings.execution)
    if asked:
        lines.append(terminal.full_header(settings.setup, _shown(config, settings.store)))
    return lines


def _shown(config: pytest.Config, path: Path) -> str:
    inside = path.is_relative_to(config.rootpath)
    return str(path.relative_to(config.rootpath) if inside else path)


def _asks_for_full(config: pytest.Config) -> bool:
    return "full" in str(config.getoption("markexpr"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses a model once for each model of ``--qbench-model``."""
    settings = metafunc.config.stash[_RUN].settings
    if "qbench_subject_cell" in metafunc.fixturenames:
        cells = list(product(settings.subjects, settings.schemes, settings.tasks))
        ids = [f"{subject.partition(':')[2]}-{scheme}-{task}" for subject, scheme, task in cells]
        metafunc.parametrize("qbench_subject_cell", cells, ids=ids)
    for fixture, models in (
        ("qbench_model", settings.models),
        ("qbench_full_model", settings.full_models),
    ):
        if fixture in metafunc.fixturenames:
            names = [PurePath(model).name or model for model in models]
            metafunc.parametrize(fixture, models, ids=names, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the full tier where ``-m`` does not ask for it."""
    asked = _asks_for_full(config) or any("::" in argument for argument in config.args)
    left_out = [] if asked else [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = {*map(id, left_out)}
        items[:] = [item for item in items if id(item) not in gone]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep cells that share a quantized model on one of pytest-xdist's workers, and on few workers all
    cells of a model: what they share is made once a process. Only where ``--dist`` was left at ``load``.
    """
    if config.getoption("dist", "no") != "load":
        return None
    from dllm_qbench.pytest_scheduling import ByQuantizedModel

    settings = config.stash[_RUN].settings
    models = [PurePath(model).name for model in (*settings.models, *settings.full_models)]
    return ByQuantizedModel(config, log, models)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table, when cells ran."""
    run = config.stash[_RUN]
    outcomes = list(run.outcomes.values())
    terminal.write_summary(terminalreporter, outcomes, run.notes(), run.failures())
    if run.page is not None and not outcomes:  # a run of the kernels alone
        for line in run.page.said:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def qbench_run(request: pytest.FixtureRequest) -> Run:
    """The session's state."""
    return request.config.stash[_RUN]


@pytest.fixture(scope="session")
def qbench_model(request: pytest.FixtureRequest, qbench_run: Run) -> Iterator[str]:
    """Name or folder of the model under test: each that ``--qbench-model`` gives, in turn."""
    model = str(request.param)
    yield model
    qbench_run.release(model)


@pytest.fixture(scope="session")
def qbench_full_model(request: pytest.FixtureRequest) -> str:
    """Name or folder of the full tier's model: each of the paper's, or of ``--qbench-model``."""
    return str(request.param)


@pytest.fixture(scope="session")
def qbench_lm(qbench_run: Run, qbench_model: str) -> DiffusionLM:
    """The model under test in full precision."""
    return qbench_run.runner(qbench_model).lm


@pytest.fixture(scope="session")
def qbench_calibration(qbench_run: Run, qbench_model: str) -> Calibration:
    """The calibration data that every method gets."""
    return qbench_run.runner(qbench_model).calibration


def _quantizer(method: str) -> Callable[[Run, str], Quantizer]:
    def fixture(qbench_run: Run, qbench_model: str) -> Quantizer:
        def quantizer(scheme: Any, **parameters: Any) -> DiffusionLM:
            return qbench_run.runner(qbench_model).quantized(method, scheme, **parameters)

        return quantizer

    fixture.__doc__ = f"``{method}(scheme)`` quantizes the model under test; each scheme once."
    return pytest.fixture(scope="session", name=method)(fixture)


rtn = _quantizer("rtn")
gptq = _quantizer("gptq")
awq = _quantizer("awq")
smoothquant = _quantizer("smoothquant")
quarot = _quantizer("quarot")
duquant = _quantizer("duquant")


@pytest.fixture(scope="session")
def qbench_subject(qbench_run: Run, qbench_model: str) -> SubjectQuantizer:
    """``qbench_subject(quantizer, scheme)`` runs a quantizer of your own on the model under test.

    ``quantizer(lm, scheme, calibration)`` gets a full-precision copy and returns the quantized model; it is
    given itself or as ``"package.module:function"``. ``method="name"`` says what to call it in cells.
    """

    def subject(quantizer: Any, scheme: Any, method: str | None = None) -> DiffusionLM:
        return qbench_run.runner(qbench_model).subject(quantizer, scheme, method)

    return subject


@pytest.fixture
def qbench_cell(request: pytest.FixtureRequest, qbench_run: Run, qbench_model: str) -> Cell:
    """``qbench_cell(quantized, task)`` audits, measures and judges one cell; returns its verdict.

    The test fails with the verdict's message where the cell does; ``quantized`` comes from a method's
    fixture, from ``qbench_subject``, or is a model of your own whose ``recipe`` names its method and
    scheme. ``like="gptq/W4A16"`` names the shipped cell whose band holds until one has a baseline.
    """

    def publish(outcome: Outcome) -> None:
        request.node.user_properties.append((PROPERTY, outcome.to_json()))
        qbench_run.collect(request.node.nodeid, outcome)

    def cell(quantized: DiffusionLM, task: str, like: str | None = None) -> Verdict:
        from dllm_qbench.outcomes import Outcome

        recipe = quantized.recipe
        if recipe is None:
            raise QBenchError(f"qbench_cell: {quantized.name} has no recipe, it is not quantized")
        name = f"{recipe['method']}/{recipe['scheme']}/{task}"
        progress = ProgressLine(request.config)
        record = None
        try:
            runner = qbench_run.runner(qbench_model)
            watch = qbench_run.watch(runner, quantized, name)
            record = runner.measure(quantized, task, progress, watch)
            look = partial(runner.symptom, quantized, task)
            judged = qbench_run.judge(record, watch, look, like)
        except Exception as error:
            publish(Outcome.of_error(name, quantized.name, error, record))
            raise
        finally:
            progress.close()
        publish(judged.outcome)
        if judged.wrong:
            pytest.fail(judged.wrong, pytrace=False)
        return judged.verdict

    return cell


@pytest.fixture
def qbench_job(request: pytest.FixtureRequest, qbench_full_model: str) -> Job:
    """``qbench_job(method, scheme, task)`` measures and judges one cell of the full tier.

    What was measured before is taken from the store. The test fails with the verdict's message, or with
    the reason why there is none: missing weights or data, too little memory.
    """

    def publish(outcome: Outcome) -> None:
        request.node.user_properties.append((PROPERTY, outcome.to_json()))
        request.config.stash[_RUN].collect(request.node.nodeid, outcome)

    def job(method: str, scheme: str, task: str) -> Outcome:
        progress = ProgressLine(request.config)
        try:
            outcome, wrong = request.config.stash[_FULL].run(
                qbench_full_model, method, scheme, task, progress
            )
        finally:
            progress.close()
        publish(outcome)
        if wrong:
            pytest.fail(wrong, pytrace=False)
        return outcome

    return job
