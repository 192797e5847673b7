"""The sandbox: programs that try to get out, to stay, to lie; and expressions in x."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation import sandbox
from dllm_qbench.evaluation.sandbox import Outcome, run_programs
from dllm_qbench.evaluation.sandbox.expressions import parse, run_expressions

# name: (program, statuses it may end with)
ESCAPES = {
    "write a file": ("open('{there}', 'w').write('x')", "forbidden"),
    "write by descriptor": ("import os\nos.open('{there}', os.O_CREAT | os.O_WRONLY)", "forbidden"),
    "append": ("open('{victim}', 'a').write('x')", "forbidden"),
    "delete": ("import os\nos.remove('{victim}')", "forbidden"),
    "rename": ("import os\nos.rename('{victim}', '{there}')", "forbidden"),
    "make a folder": ("import os\nos.mkdir('{there}')", "forbidden"),
    "make a folder here": ("import os\nos.mkdir('inside')", "forbidden"),
    "link": ("import os\nos.symlink('{victim}', '{there}')", "forbidden"),
    "pipe file": ("import os\nos.mkfifo('{there}')", "error"),
    "read a file": ("result = open('{victim}').read()", "forbidden"),
    "read by bytes": ("result = open(b'{victim}').read()", "forbidden"),
    "read through dots": (
        "import os\nopen(os.__file__ + '/../../../../../etc/passwd')",
        "forbidden",
    ),
    "lying path": (
        "import os\nclass P(str):\n  def startswith(self, *a): return True\nopen(P('{victim}'))",
        "forbidden",
    ),
    "list a folder": ("import os\nresult = os.listdir('/')", "forbidden"),
    "shell": ("import os\nos.system('touch {there}')", "forbidden"),
    "subprocess": ("import subprocess\nsubprocess.run(['touch', '{there}'])", "forbidden"),
    "exec": ("import os\nos.execv('/bin/sh', ['sh', '-c', 'touch {there}'])", "forbidden"),
    "spawn": ("import os\nos.posix_spawn('/bin/true', ['true'], dict())", "forbidden"),
    "fork": ("import os\nos.fork()", "forbidden"),
    "socket": ("import socket\nsocket.socket()", "forbidden"),
    "name look-up": ("import socket\nsocket.getaddrinfo('example.org', 80)", "forbidden"),
    "ctypes": ("import ctypes", "forbidden"),
    "kill": ("import os\nos.kill(os.getppid(), 9)", "forbidden"),
    "find objects": ("import gc\ngc.get_objects()", "forbidden"),
    "swap builtins": (
        "import builtins\nbuiltins.type = builtins.str = None\nopen('{victim}')",
        "forbidden",
    ),
    "dunder walk": (
        "todo = [().__class__.__base__]\n"
        "for k in todo:\n"
        "  todo += type.__subclasses__(k)\n"
        "  if k.__name__ == 'FileIO': k('{there}', 'w')",
        "forbidden",
    ),
    "loader": (
        "__loader__ = [k for k in ().__class__.__base__.__subclasses__()"
        " if k.__name__ == 'BuiltinImporter'][0]\n"
        "__loader__.load_module('posix').open('{there}', 65)",
        "forbidden",
    ),
}


def test_no_program_gets_out(tmp_path: Path) -> None:
    victim, there = tmp_path / "victim", tmp_path / "there"
    victim.write_text("kept")
    programs = [
        p.replace("{victim}", str(victim)).replace("{there}", str(there))
        for p, _ in ESCAPES.values()
    ]
    outcomes = run_programs(programs)
    ended = {name: outcome.status for name, outcome in zip(ESCAPES, outcomes, strict=True)}
    assert ended == {name: status for name, (_, status) in ESCAPES.items()}
    assert victim.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [victim]


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("while True: pass", "timeout"),
        ("result = 9 ** 9 ** 9", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("import signal\nsignal.alarm(0)\nwhile True: pass", "timeout"),
        ("x = 'a' * 10 ** 10", "memory"),
        ("x = []\nwhile True: x.append(bytearray(10 ** 7))", "memory"),
    ],
)
def test_programs_that_would_stay_or_grow_are_ended(program: str, status: str) -> None:
    started = time.monotonic()
    (outcome,) = run_programs([program], seconds=1.5, memory_mb=100)
    assert outcome.status == status
    assert time.monotonic() - started < 20  # 1.5 s and the interpreter's start on a busy machine


def test_a_program_that_is_ended_does_not_harm_the_next() -> None:
    programs = [
        "result = 1",
        "import os\nos.abort()",
        "while True: pass",
        "result = 2",
        "1 / 0",
        "result = 3",
    ]
    outcomes = run_programs(programs, seconds=0.5)
    assert [o.status for o in outcomes] == ["ok", "crashed", "timeout", "ok", "error", "ok"]
    assert [o.value for o in outcomes if o.status == "ok"] == [1, 2, 3]
    assert outcomes[4].detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "program",
    [
        'print(\'["ok", 1, ""]\', flush=True)\nimport os\nos._exit(0)',
        'import os\nfor fd in range(64):\n  try: os.write(fd, b\'["ok", 1, ""]\')\n'
        "  except OSError: pass\nos._exit(0)",
        'import sys\nsys.stdout = sys.__stdout__\nsys.stdout.write(\'[["ok", 1, ""]]\')\nassert False',
        "raise SystemExit(0)",
        "import os\nos._exit(77)",
    ],
)
def test_printing_or_leaving_early_is_not_a_result(program: str) -> None:
    (outcome,) = run_programs([program])
    assert outcome.status in ("error", "crashed")
    assert outcome.value is None


def test_programs_start_with_nothing_of_this_process() -> None:
    os.environ["QBENCH_SECRET"] = "x"
    try:
        program = (
            "import os, sys\nresult = [dict(os.environ), sys.argv[1:], 'torch' in sys.modules]"
        )
        (outcome,) = run_programs([program])
    finally:
        del os.environ["QBENCH_SECRET"]
    environment, arguments, torch = outcome.value
    assert set(environment) <= {"LC_CTYPE"}  # Python's own, for UTF-8
    assert (arguments, torch) == ([], False)
    (packages,) = run_programs(["import pytest"])
    assert packages.detail == "ModuleNotFoundError: No module named 'pytest'"


def test_what_benchmark_programs_import_is_there() -> None:
    names = (
        "bisect collections copy dataclasses datetime decimal fractions functools hashlib heapq itertools"
        " json math operator random re statistics string textwrap typing unicodedata"
    )
    program = f"import {', '.join(names.split())}\nresult = math.gcd(12, 18)"
    assert run_programs([program]) == [Outcome("ok", 6, "")]


def test_humaneval_style_checks_pass_or_fail() -> None:
    head, check = (
        "def add(a, b):\n    return ",
        "\ndef check(f):\n    assert f(2, 3) == 5\ncheck(add)",
    )
    right, wrong = run_programs([head + "a + b" + check, head + "a - b" + check])
    assert (right.status, wrong.status) == ("ok", "error")
    assert wrong.detail.startswith("AssertionError")


def test_results_that_are_too_large_or_not_json_are_errors() -> None:
    large, strange = run_programs(["result = 'a' * 2 ** 21", "result = {1, 2}"])
    assert (large.status, large.detail) == ("error", "the result is too large")
    assert strange.status == "error"
    (fits,) = run_programs(["result = 'a' * 2 ** 19"])  # more than a pipe holds at once
    assert fits.value == "a" * 2**19


def test_a_dead_sandbox_is_an_infrastructure_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "jail.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(sandbox, "_JAIL", broken)
    with pytest.raises(
        QBenchError, match=r"exit status 3.*infrastructure error, nothing was scored"
    ):
        run_programs(["result = 1"])


def test_landlock_alone_forbids_changes(tmp_path: Path) -> None:
    """The kernel's layer, without the audit hook before it; skipped where the kernel has none."""
    jail = Path(sandbox.__file__).with_name("jail.py")
    program = (
        "import ctypes, importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('jail', {str(jail)!r})\n"
        "jail = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(jail)\n"
        "if not jail.forbid_changes(ctypes.CDLL(None, use_errno=True)): sys.exit(77)\n"
        "for act in (lambda: open('new', 'w'), lambda: os.mkdir('folder')):\n"
        "    try: act()\n    except PermissionError: continue\n    sys.exit(1)\n"
    )
    code = subprocess.run(
        [sys.executable, "-I", "-c", program], check=False, cwd=tmp_path
    ).returncode
    if code == 77:
        pytest.skip("this kernel has no Landlock")
    assert code == 0
    assert not list(tmp_path.iterdir())


def test_500_programs_take_seconds() -> None:
    # CPU time of this process's children, so that a busy machine does not count; 1.5 s when written.
    before = os.times()
    outcomes = run_programs([f"result = {i} + 1" for i in range(500)])
    after = os.times()
    assert [outcome.value for outcome in outcomes] == list(range(1, 501))
    used = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    assert used < 5


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9",
        "x << 9",
        "x / 2",
        "x // 2",
        "__import__ ( 'os' )",
        "( ) . __class__",
        "x . real",
        "y",
        "True",
        "1.5",
        "'x' * 9",
        "9999999999 * x",
        "min ( x )",
        "min ( )",
        "min ( * x , 3 )",
        "max ( x , 3 , key = x )",
        "pow ( x , 9 )",
        "lambda : x",
        "[ x ]",
        "x if x else 3",
        "x < 3",
        "x = 3",
        "( x",
        "x +",
        "",
        "( " * 150 + "x" + " )" * 150,
        "- " * 190 + "x" + " + 1" * 60,
        "x\0",
    ],
)
def test_expressions_outside_the_language_have_no_value(text: str) -> None:
    assert parse(text) is None
    assert run_expressions([text], [[1, 2]]) == [[None, None]]


def test_expressions_are_computed_as_python_does() -> None:
    texts = [
        "min ( ( ( x + 3 ) * 2 ) , 9 )",
        "- x % 7",
        "max ( x , 3 , 5 )",
        "( x % 0 )",
        "x - - 2",
    ]
    assert run_expressions(texts, [[-7, 0, 5]] * 5) == [
        [-8, 6, 9],
        [0, 0, 2],
        [5, 5, 5],
        [None, None, None],
        [-5, 2, 7],
    ]


@given(
    st.lists(
        st.sampled_from([*"x+-*%(),", "min", "max", "7", "#", "=", "<mask>", "if"]), max_size=18
    )
)
def test_no_words_break_the_parser(words: list[str]) -> None:
    normal = parse(" ".join(words))
    assert normal is None or parse(normal) == normal


def test_a_bad_expression_does_not_touch_its_neighbours() -> None:
    values = run_expressions(["x + 1", "import os", "x + 2"], [[1], [1], [1]])
    assert values == [[2], [None], [3]]
