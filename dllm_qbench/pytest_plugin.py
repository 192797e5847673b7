"""The pytest plugin: options, markers, fixtures, and what the run reports. Thin: torch comes later.

A cell is measured and judged inside its test. What came of it travels in the test's
``user_properties``, so that it survives pytest-xdist and reaches JUnit files. Only the process that
collects the reports writes: the record file, and with ``--qbench-update`` the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import pytest

from dllm_qbench import terminal
from dllm_qbench.errors import QBenchError
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
    "scale": "several processes or machines",
}
Quantizer = Callable[..., "DiffusionLM"]
Cell = Callable[["DiffusionLM", str], "Verdict"]


_RUN: Final = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The group ``qbench``; all but the update flags have a twin in the configuration file."""
    group = parser.getgroup("qbench", "quantization fidelity (dllm-qbench)")

    def option(name: str, text: str, default: str | None, metavar: str) -> None:
        shown = f" (default: {default})" if default else ""
        group.addoption(f"--qbench-{name}", metavar=metavar, help=text + shown)
        parser.addini(f"qbench_{name}", text, default=default or "")

    text = "shipped models or checkpoint folders, separated by commas; each cell runs on each"
    option("model", text, "llada-embedded,dream-embedded", "NAMES")
    option("items", "items a cell", "500", "N")
    option("device", "where the models run, as torch names it: cpu, cuda, cuda:1", "cpu", "DEVICE")
    option("baselines", "folder of the baselines, from the root folder", "baselines", "DIR")
    option("records", "write every cell's record and verdict to this JSON Lines file", None, "PATH")
    text = "fail on any verdict but 'equivalent' (changed, inconclusive)"
    group.addoption("--qbench-strict", action="store_true", help=text)
    parser.addini("qbench_strict", text, type="bool", default=False)
    text = "stop a cell as soon as its verdict is settled, at the same error rates"
    group.addoption("--qbench-sequential", action="store_true", help=text)
    parser.addini("qbench_sequential", text, type="bool", default=False)
    group.addoption(
        "--qbench-update",
        action="store_true",
        help="write the baselines of the cells that run, and fail so that the change is reviewed; "
        "refused under CI=true",
    )
    group.addoption(
        "--qbench-update-pass",
        action="store_true",
        help="write the baselines of the cells that run, and pass",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and check the options before anything is collected."""
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.stash[_RUN] = Run(config)
    config.pluginmanager.register(config.stash[_RUN], "qbench-run")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Versions, model, items, baselines."""
    settings = config.stash[_RUN].settings
    shown = settings.baselines
    if shown.is_relative_to(config.rootpath):
        shown = shown.relative_to(config.rootpath)
    return terminal.header(settings.models, settings.items, str(shown))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses a model once for each model of ``--qbench-model``."""
    if "qbench_model" in metafunc.fixturenames:
        models = metafunc.config.stash[_RUN].settings.models
        names = [PurePath(model).name or model for model in models]
        metafunc.parametrize("qbench_model", models, ids=names, indirect=True, scope="session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep cells that share a quantized model on one of pytest-xdist's workers, and on few workers all
    cells of a model: what they share is made once a process. Only where ``--dist`` was left at ``load``.
    """
    if config.getoption("dist", "no") != "load":
        return None
    from dllm_qbench.pytest_scheduling import ByQuantizedModel

    models = [PurePath(model).name for model in config.stash[_RUN].settings.models]
    return ByQuantizedModel(config, log, models)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table, when cells ran."""
    run = config.stash[_RUN]
    outcomes = list(run.outcomes.values())
    terminal.write_summary(terminalreporter, outcomes, run.notes(), run.failures())


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


@pytest.fixture
def qbench_cell(request: pytest.FixtureRequest, qbench_run: Run, qbench_model: str) -> Cell:
    """``qbench_cell(quantized, task)`` audits, measures and judges one cell; returns its verdict.

    The test fails with the verdict's message where the cell does; ``quantized`` comes from
    ``quantize`` or is a model of your own whose ``recipe`` names its method and scheme.
    """

    def publish(outcome: Outcome) -> None:
        request.node.user_properties.append((PROPERTY, outcome.to_json()))
        qbench_run.collect(request.node.nodeid, outcome)

    def cell(quantized: DiffusionLM, task: str) -> Verdict:
        from dllm_qbench.outcomes import Outcome

        recipe = quantized.recipe
        if recipe is None:
            raise QBenchError(f"qbench_cell: {quantized.name} has no recipe, it is not quantized")
        name = f"{recipe['method']}/{recipe['scheme']}/{task}"
        progress = terminal.ProgressLine(request.config)
        record = None
        try:
            runner = qbench_run.runner(qbench_model)
            watch = qbench_run.watch(runner, quantized, name)
            record = runner.measure(quantized, task, progress, watch)
            judged = qbench_run.judge(record, watch, partial(runner.symptom, quantized, task))
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
