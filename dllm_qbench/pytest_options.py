"""The options of a pytest run: what there is, and what one run was given. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from dllm_qbench.baseline_paths import in_ci
from dllm_qbench.engine.jobs import DTYPES, Audits, Profile, Setup
from dllm_qbench.errors import QBenchError
from dllm_qbench.models.released import PAPER_MODELS
from dllm_qbench.quant.scheme import Scheme
from dllm_qbench.tasks import TASKS

ENGINES: Final = ("local", "ray")
EXECUTIONS: Final = ("fake", "packed")
STORE: Final = ".qbench/store"
"""Where the full tier keeps what it measured, from the root folder, if nothing else is said."""

# name, help, default, metavar; each has a twin in the configuration file.
_VALUES: Final = (
    (
        "model",
        "models, separated by commas; each cell runs on each: shipped ones, checkpoint folders,"
        " or, in the full tier, names such as llada-1.5 (qbench doctor lists them)",
        "llada-embedded,dream-embedded",
        "NAMES",
    ),
    (
        "subject",
        "quantizers of your own, package.module:function, separated by commas: adds a cell for each, each"
        " scheme and each task",
        None,
        "NAMES",
    ),
    ("schemes", "what the subjects are asked for, separated by commas", "W4A16-g64", "SCHEMES"),
    (
        "tasks",
        "what the subjects are measured on, separated by commas",
        "general,math,code",
        "TASKS",
    ),
    (
        "like",
        "method/scheme of the shipped baselines, such as gptq/W4A16, whose bands hold for cells that"
        " have no baseline of their own yet",
        None,
        "CELL",
    ),
    ("items", "items a cell of the quick tier", "500", "N"),
    ("device", "where the models run, as torch names it: cpu, cuda, cuda:1", "cpu", "DEVICE"),
    (
        "execution",
        "how quantized models of the quick tier run: fake, on float weights, or packed, on kernels",
        "fake",
        "HOW",
    ),
    ("baselines", "folder of the baselines, from the root folder", "baselines", "DIR"),
    ("records", "write every cell's record and verdict to this JSON Lines file", None, "PATH"),
    (
        "html",
        "write a page that shows the run; its records are kept beside it (.jsonl), and the next run with"
        " the same PATH is compared with them",
        None,
        "PATH",
    ),
    ("base", "records of the run that the page compares this one with", None, "PATH"),
    ("limit", "full tier: at most so many items a task, from the first", None, "N"),
    ("models-dir", "full tier: folder with checkpoints, instead of the hub's cache", None, "DIR"),
    ("data-dir", "full tier: folder with the tasks' data, instead of the cache", None, "DIR"),
    ("dtype", "full tier: data type of full precision", "bfloat16", "TYPE"),
    ("store", "full tier: keep answers and records here, and go on from there", STORE, "DIR"),
    ("shard", "run the i-th of N parts of the cells; qbench merge joins the records", None, "i/N"),
    ("engine", "full tier: where cells run, local or ray", "local", "ENGINE"),
    (
        "ray-address",
        "address of a running Ray cluster; without, a cluster of this machine",
        None,
        "A",
    ),
    ("gpus-per-cell", "GPUs that Ray sets aside for a quantized model", "1", "N"),
    (
        "profile",
        "full tier: settings of the paper, of the models' release (chat template), or brief ones (few"
        " samples and steps: the path, not the figures)",
        "paper",
        "WHICH",
    ),
    (
        "audits",
        "full tier: all audits, or the cheap ones, which do not quantize again",
        "cheap",
        "W",
    ),
)
_FLAGS: Final = (
    ("strict", "fail on any verdict but 'equivalent' (changed, inconclusive)"),
    ("sequential", "stop a cell as soon as its verdict is settled, at the same error rates"),
    ("run-programs", "full tier: let HumanEval and MBPP run generated programs, in a sandbox"),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare the group ``qbench``; all but the update flags have a twin in the configuration file."""
    group = parser.getgroup("qbench", "quantization fidelity (dllm-qbench)")
    for name, text, default, metavar in _VALUES:
        shown = f" (default: {default})" if default else ""
        group.addoption(f"--qbench-{name}", metavar=metavar, help=text + shown)
        parser.addini(f"qbench_{_plain(name)}", text, default=default or "")
    for name, text in _FLAGS:
        group.addoption(f"--qbench-{name}", action="store_true", help=text)
        parser.addini(f"qbench_{_plain(name)}", text, type="bool", default=False)
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


@dataclass(frozen=True)
class Settings:
    """The options of one run; command line before configuration file.

    Attributes:
        models: of the quick tier; ``full_models``: of the full tier.
        subjects, schemes, tasks: quantizers of the user's own, and the cells that each gets.
        like: whose bands hold for cells without a baseline.
        html: page to write at the end; ``base``: records of the run that it is compared with.
        setup: how the full tier's cells are measured; ``store``: where what it measured is kept.
        shard: (i, N), or ``None`` for all cells.
    """

    models: tuple[str, ...]
    full_models: tuple[str, ...]
    subjects: tuple[str, ...]
    schemes: tuple[str, ...]
    tasks: tuple[str, ...]
    like: str | None
    device: str
    items: int
    execution: str
    baselines: Path
    records: Path | None
    html: Path | None
    base: Path | None
    strict: bool
    sequential: bool
    update: bool
    update_pass: bool
    setup: Setup
    store: Path
    shard: tuple[int, int] | None
    engine: str
    ray_address: str | None
    gpus_per_cell: float

    @classmethod
    def of(cls, config: pytest.Config) -> Settings:
        """Read and check the options; ``pytest.UsageError`` on a bad one."""
        models = _list(config, "model")
        if not models:
            raise pytest.UsageError("--qbench-model is empty, expected one or more models")
        given = config.getoption("qbench_model") is not None
        update_pass = bool(config.getoption("qbench_update_pass"))
        settings = cls(
            models=models,
            full_models=models if given else PAPER_MODELS,
            subjects=_list(config, "subject"),
            schemes=_schemes(config),
            tasks=_tasks(config),
            like=_option(config, "like") or None,
            device=str(_option(config, "device")),
            items=_count(config, "items"),
            execution=_one_of(config, "execution", EXECUTIONS),
            baselines=config.rootpath / str(_option(config, "baselines")),
            records=_path(config, "records"),
            html=_path(config, "html"),
            base=_path(config, "base"),
            strict=_flag(config, "strict"),
            sequential=_flag(config, "sequential"),
            update=bool(config.getoption("qbench_update")) or update_pass,
            update_pass=update_pass,
            setup=_setup(config),
            store=config.rootpath / str(_option(config, "store")),
            shard=_shard(_option(config, "shard")),
            engine=_one_of(config, "engine", ENGINES),
            ray_address=_option(config, "ray-address") or None,
            gpus_per_cell=_number(config, "gpus-per-cell"),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if self.sequential and self.update:
            raise pytest.UsageError(
                "--qbench-sequential stops cells early; a baseline needs all items: drop one of the two"
            )
        if self.update and self.execution != "fake":
            raise pytest.UsageError(
                f"--qbench-execution={self.execution} is held to the baselines of fake quantization, and"
                " does not write them: drop one of the two"
            )
        for name, path in (("records", self.records), ("html", self.html)):
            if path and path.is_dir():
                raise pytest.UsageError(f"--qbench-{name}: {path} is a folder")
        if self.html and self.html.suffix == ".jsonl":
            raise pytest.UsageError(
                f"--qbench-html: {self.html}: the page's records go to a file of this name; expected a name"
                " such as report.html"
            )
        if self.base and not self.html:
            raise pytest.UsageError("--qbench-base is what --qbench-html compares with: give both")
        if self.update and not self.update_pass and in_ci():
            raise pytest.UsageError(
                "--qbench-update is refused under CI=true, where nobody reviews what it writes; "
                "--qbench-update-pass insists"
            )
        if self.update and self.setup.profile != "paper":
            raise pytest.UsageError(
                f"--qbench-profile={self.setup.profile} measures other settings than the published ones; a"
                " baseline of them would mislead: drop one of the two"
            )
        if self.store.exists() and not self.store.is_dir():
            raise pytest.UsageError(f"--qbench-store: {self.store} is not a folder")


def _setup(config: pytest.Config) -> Setup:
    folders = {}
    for name in ("models-dir", "data-dir"):
        folder = _path(config, name)
        if folder is not None and not folder.is_dir():
            raise pytest.UsageError(f"--qbench-{name}: {folder} is no folder")
        folders[_plain(name)] = None if folder is None else str(folder.resolve())
    dtype = _one_of(config, "dtype", DTYPES)
    audits: Any = _one_of(config, "audits", get_args(Audits))
    profile: Any = _one_of(config, "profile", get_args(Profile))
    try:
        return Setup(
            device=str(_option(config, "device")),
            dtype=dtype,
            items=_count(config, "limit") if _option(config, "limit") else None,
            profile=profile,
            run_programs=_flag(config, "run-programs"),
            audits=audits,
            **folders,
        )
    except QBenchError as error:
        raise pytest.UsageError(str(error)) from error


def _path(config: pytest.Config, name: str) -> Path | None:
    """Read a path, which is given from where pytest was started."""
    given = _option(config, name)
    return config.invocation_params.dir / str(given) if given else None


def _list(config: pytest.Config, name: str) -> tuple[str, ...]:
    """Read what is separated by commas; each once, in the order given."""
    parts = str(_option(config, name) or "").split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _schemes(config: pytest.Config) -> tuple[str, ...]:
    schemes = _list(config, "schemes")
    try:
        for scheme in schemes:
            Scheme.parse(scheme)
    except QBenchError as error:
        raise pytest.UsageError(f"--qbench-schemes: {error}") from error
    if not schemes:
        raise pytest.UsageError(
            "--qbench-schemes is empty, expected one or more, such as W4A16-g64"
        )
    return schemes


def _tasks(config: pytest.Config) -> tuple[str, ...]:
    tasks = _list(config, "tasks")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise pytest.UsageError(
            f"--qbench-tasks is {','.join(tasks)!r}, expected one or more of {', '.join(TASKS)}"
        )
    return tasks


def _shard(given: Any) -> tuple[int, int] | None:
    if not given:
        return None
    from dllm_qbench.engine.merge import parse_shard

    try:
        return parse_shard(str(given))
    except (QBenchError, ValueError) as error:
        raise pytest.UsageError(f"--qbench-shard: {error}") from error


def _count(config: pytest.Config, name: str) -> int:
    given = _option(config, name)
    if not str(given).isdecimal() or int(given) < 1:
        raise pytest.UsageError(f"--qbench-{name} is {given!r}, expected a count of at least 1")
    return int(given)


def _number(config: pytest.Config, name: str) -> float:
    given = _option(config, name)
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise pytest.UsageError(f"--qbench-{name} is {given!r}, expected a number from 0 on")
    return value


def _one_of(config: pytest.Config, name: str, known: tuple[str, ...]) -> str:
    given = str(_option(config, name))
    if given not in known:
        raise pytest.UsageError(f"--qbench-{name} is {given!r}, expected one of {', '.join(known)}")
    return given


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _option(config: pytest.Config, name: str) -> Any:
    given = config.getoption(f"qbench_{_plain(name)}")
    return config.getini(f"qbench_{_plain(name)}") if given is None else given


def _flag(config: pytest.Config, name: str) -> bool:
    plain = f"qbench_{_plain(name)}"
    return bool(config.getoption(plain) or config.getini(plain))
