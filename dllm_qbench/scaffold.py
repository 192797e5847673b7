"""``qbench init``: the few lines that put a quantizer under the suite's checks. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.quant.scheme import Scheme

FILE: Final = "test_quantization.py"
_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LIKE: Final = re.compile(r"[\w-]+/[\w-]+")
_TEMPLATE: Final = '''"""The quantizer's gate: each cell against its baseline, or one like it."""

import pytest

from {module} import {function}


@pytest.mark.parametrize("task", ["general", "math", "code"])
@pytest.mark.parametrize("scheme", [{schemes}])
def test_quantized_model_is_as_its_baseline_says(scheme, task, qbench_subject, qbench_cell):
    qbench_cell(qbench_subject({function}, scheme), task{like})
'''


@dataclass(frozen=True)
class Scaffold:
    """What was written, and what to do next."""

    path: Path
    next_steps: tuple[str, ...]


def scaffold(
    folder: Path, subject: str, schemes: tuple[str, ...], like: str | None = None
) -> Scaffold:
    """Write the test module of a quantizer's gate.

    Args:
        folder: where tests are; made if missing.
        subject: the quantizer, ``package.module:function``.
        schemes: what it is asked for.
        like: the shipped cell whose band holds until baselines are recorded.

    Raises:
        QBenchError: a name of another form, a file that is there already, or a folder that cannot be
            written.
        SchemeError: a scheme that does not follow the grammar.
    """
    if not _NAME.fullmatch(subject):
        raise QBenchError(
            f"--subject is {subject!r}, expected package.module:function, such as"
            " my_package.quantizer:quantize"
        )
    if not schemes:
        raise QBenchError("--schemes is empty, expected one or more, such as W4A16-g64")
    for scheme in schemes:
        Scheme.parse(scheme)
    if like is not None and not _LIKE.fullmatch(like):
        raise QBenchError(f"--like is {like!r}, expected method/scheme, such as gptq/W4A16")
    module, _, function = subject.partition(":")
    path = folder / FILE
    text = _TEMPLATE.format(
        module=module,
        function=function,
        schemes=", ".join(f'"{scheme}"' for scheme in schemes),
        like="" if like is None else f', like="{like}"',
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise QBenchError(
            f"{path}: is there already; remove it, or name another --folder"
        ) from error
    except OSError as error:
        raise QBenchError(f"{path}: cannot be written ({error})") from error
    judged = "judge it" + (f" by the bands of {like}" if like else "")
    steps = (
        (f"pytest {path}", judged),
        (f"pytest {path} --qbench-update-pass", "record its own baselines in baselines/"),
        ("git add baselines", "from now on, a change of the quantizer shows"),
    )
    width = max(len(command) for command, _ in steps)
    return Scaffold(path, tuple(f"{command:<{width}}  # {what}" for command, what in steps))
