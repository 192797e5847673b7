"""Programs that a model wrote, tested in the sandbox: right ones pass, no wrong one talks its way through."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation import sandbox
from dllm_qbench.evaluation.sandbox import Check, Outcome, run_checks
from dllm_qbench.evaluation.sandbox.remote import decode, encode, unbound
from dllm_qbench.tasks.paper import definitions
from dllm_qbench.tasks.paper_code import listed_samples, mbpp_check
from dllm_qbench.tasks.paper_settings import SETTINGS

HEAD = 'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """Add.\n    """\n'
TEST = (
    "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(0, 0) == 0\n"
    "    assert candidate(-1, 4) == 3\n"
)


def humaneval(body: str) -> Check:
    """A completion of ``add``, as HumanEval tests it."""
    return Check(program=HEAD + body, test=TEST, entry="add", prelude=HEAD)


def mbpp(code: str, *tests: str) -> Check:
    """A program with asserts, as MBPP tests it."""
    return Check(program=code, test="\n".join(tests))


def statuses(*checks: Check) -> list[str]:
    return [outcome.status for outcome in run_checks(checks)]


def test_right_and_wrong_programs() -> None:
    assert statuses(
        humaneval("    return a + b\n"),
        humaneval("    return a - b\n"),
        humaneval("    return a +\n"),
        humaneval("    pass\n"),
        humaneval("    return a + b\n\nif __name__ == '__main__':\n    raise SystemExit\n"),
        mbpp("def f(x):\r\n  return 2 * x", "assert f(2) == 4", "assert f(0) == 0"),
        mbpp("def f(x):\n  return 2 * x", "assert f(2) == 5"),
        mbpp("def g(x):\n  return 2 * x", "assert f(2) == 4"),
        mbpp("", "assert f(2) == 4"),
    ) == ["ok", "error", "error", "error", "ok", "ok", "error", "error", "error"]


def test_what_the_published_programs_import_is_there() -> None:
    names = (
        "bisect cmath collections copy datetime decimal fractions functools hashlib heapq itertools math"
        " operator os random re statistics string sys time typing"
    )
    program = f"import {', '.join(names.split())}\nfrom typing import *\n" + (
        "def f(text: Optional[str]) -> str:\n"
        "    return hashlib.md5(text.encode('ascii')).hexdigest() if text else ''\n"
    )
    test = "assert f('a') == '0cc175b9c0f1b6a831c399e269772661'"
    assert statuses(mbpp(program, test)) == ["ok"]


# Values that tests of the two data sets compare; each program returns one, each test expects it.
VALUES = (
    "None", "True", "1.5", "-0.0", "10 ** 400", "'text'", "b'bytes'", "(1, (2, 'a'))", "[1, [2]]", "{1, 2}",
    "frozenset({1})", "{'a': 1, 2: (3,)}", "complex(1, 2)", "range(3)", "float('inf')",
    "__import__('collections').Counter('aab')", "__import__('collections').OrderedDict(a=1)",
    "__import__('collections').deque([1, 2])", "__import__('fractions').Fraction(1, 3)",
    "__import__('decimal').Decimal('0.1')", "__import__('datetime').date(2024, 2, 29)",
    "__import__('datetime').timedelta(days=2)",
)  # fmt: skip


def test_values_come_back_as_what_they_are() -> None:
    same = [mbpp(f"def f():\n  return {v}", f"assert f() == {v}, f()") for v in VALUES]
    given_back = [mbpp("def f(x):\n  return x", f"assert f({v}) == {v}") for v in VALUES]
    assert run_checks([*same, *given_back]) == [Outcome("ok")] * 2 * len(VALUES)
    kinds = [
        mbpp("def f():\n  return (1, 2)", "assert f() == [1, 2]"),
        mbpp("def f():\n  return [1, 2]", "assert f() == (1, 2)"),
        mbpp("def f():\n  return '1'", "assert f() == 1"),
        mbpp("def f():\n  return float('nan')", "assert f() == f()"),
    ]
    assert statuses(*kinds) == ["error"] * 4


def test_what_is_no_value_stays_with_the_program() -> None:
    """As MBPP's tests have it: classes and globals of the program's, modules that only it imports."""
    pair = "class Pair:\n  def __init__(self, a, b): self.a, self.b = a, b\n"
    assert run_checks(
        [
            mbpp(f"{pair}def f(ps):\n  return sum(p.a for p in ps)",
                 "assert f([Pair(1, 2), Pair(3, 4)]) == 4"),
            mbpp(f"{pair}root = Pair(5, 6)\ndef f(p):\n  return p.b",
                 "assert f(root) == 6", "assert root.a == 5"),
            mbpp("import math\ndef f(x):\n  return x / 3",
                 "assert math.isclose(f(1), 0.3333, rel_tol=0.001)"),
            mbpp("from collections import Counter\ndef f(s):\n  return Counter(s)",
                 "assert f('aab') == Counter('aba')"),
            mbpp("def f(x):\n  yield from x", "assert list(f([1, 2])) == [1, 2]"),
            mbpp("import itertools\ndef f():\n  return itertools.count(7)", "assert next(f()) == 7"),
            mbpp("def f(x):\n  return lambda y: x + y", "assert f(1)(2) == 3"),
            mbpp("def f(x):\n  raise ValueError(x)",
                 "try:\n  f(1)\n  assert False\nexcept ValueError:\n  pass"),
            mbpp("def f(*a, k=0):\n  return len(a) + k", "assert f(1, 2, k=3) == 5"),
        ]
    ) == [Outcome("ok")] * 9  # fmt: skip


def test_a_prompts_helpers_are_the_prompts() -> None:
    """HumanEval/38 and others check an answer with a function that the prompt defines."""
    prompt = "def encode(x):\n    return x + 1\n\n\ndef decode(x):\n    '''Undo encode.'''\n"
    test = "def check(candidate):\n    assert candidate(encode(4)) == 4\n"
    right = Check(prompt + "    return x - 1\n", test, "decode", prompt)
    # Redefining the helper helps nobody.
    sly = Check(prompt + "    return x\n\nencode = lambda x: x\n", test, "decode", prompt)
    assert statuses(right, sly) == ["ok", "error"]
    bare = "def decode(x):\n    # no docstring\n"
    assert statuses(
        Check(bare + "    return 1\n", "def check(c):\n    assert c(0) == 1", "decode", bare)
    ) == ["ok"]


# --- programs that want to pass without being right, or do what they must not. None may be "ok".

FORGERIES = {
    "leave": "    import sys\n    sys.exit(0)\n",
    "leave at once": "    import os\n    os._exit(0)\n",
    "leave with the hook's status": "    import os\n    os._exit(77)\n",
    "equal to everything": (
        "    class E:\n        def __eq__(self, o): return True\n        def __ne__(self, o): return False\n"
        "    return E()\n"
    ),
    "a number equal to everything": (
        "    class E(int):\n        def __eq__(self, o): return True\n    return E(7)\n"
    ),
    "a list equal to everything": (
        "    class E(list):\n        def __eq__(self, o): return True\n    return E()\n"
    ),
    "own check": "    return 0\n\ndef check(candidate): pass\n",
    "own result": "    return 0\n\nresult = 'ok'\n",
    "print a verdict": "    print('[\"ok\", null, \"\"]', flush=True)\n    return 0\n",
    "write a verdict": (
        "    import os\n    for fd in range(64):\n"
        "        try: os.write(fd, b'[\"ok\", null, \"\"]\\n')\n        except OSError: pass\n"
        "    os._exit(0)\n"
    ),
    "answer before the question": (
        "    import os, json\n    body = json.dumps(['value', 5]).encode()\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, (len(body).to_bytes(8, 'big') + body) * 9)\n"
        "        except OSError: pass\n    return 5\n"
    ),
    "a reply that is none": (
        "    import os\n    for fd in range(3, 64):\n        try: os.write(fd, b'x' * 100)\n"
        "        except OSError: pass\n    return a + b\n"
    ),
    "a reply of terabytes": (
        "    import os\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, (2 ** 42).to_bytes(8, 'big'))\n"
        "        except OSError: pass\n    return a + b\n"
    ),
    "no assertions": (
        "    return 0\n\nimport builtins\nclass Never(BaseException): pass\n"
        "builtins.AssertionError = AssertionError = Never\n"
    ),
    "swallow the failure": (
        "    return 0\n\nclass D:\n    def __del__(self):\n        import os\n        os._exit(0)\n"
        "keep = D()\n"
        "import atexit\natexit.register(lambda: __import__('os')._exit(0))\n"
        "import sys\nsys.excepthook = lambda *a: None\n"
    ),
    "rewrite builtins": (
        "    return 0\n\nimport builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n"
        "builtins.getattr = lambda *a: (lambda *a: True)\n"
    ),
    "rewrite json": (
        "    return 0\n\nimport json\njson.dumps = lambda *a, **k: '[\"ok\", null, \"\"]'\n"
        "json.loads = lambda *a, **k: ['ok', None, '']\n"
    ),
    "look for the answer in the frames": (
        "    import sys\n    frame, seen = sys._getframe(), ''\n    while frame:\n"
        "        seen += str(frame.f_locals) + str(frame.f_globals)\n        frame = frame.f_back\n"
        "    return a + b if 'candi' + 'date' in seen else 6\n"
    ),
    "look for the answer in every object": "    import gc\n    return len(gc.get_objects())\n",
    "look for the answer in a module": (
        "    import sys\n    seen = ' '.join(str(vars(m)) for m in list(sys.modules.values()))\n"
        "    return a + b if 'candidate(2' in seen else 6\n"
    ),
    "read the input": (
        "    import sys\n    return a + b if 'candidate' in sys.stdin.read() else 6\n"
    ),
    "read a file": "    return len(open('/etc/passwd').read())\n",
    "read memory": "    return len(open('/proc/self/mem', 'rb').read(8))\n",
    "read the parent": "    import os\n    return len(open(f'/proc/{os.getppid()}/cmdline').read())\n",
    "write a file": "    open('here', 'w').write('x')\n    return a + b\n",
    "socket": "    import socket\n    socket.socket()\n    return a + b\n",
    "fork": "    import os\n    os.fork()\n    return a + b\n",
    "fork bomb": "    import os\n    while True: os.fork()\n",
    "subprocess": "    import subprocess\n    return subprocess.run(['true']).returncode + 5\n",
    "ctypes": "    import ctypes\n    return a + b\n",
    "signal the parent": "    import os\n    os.kill(os.getppid(), 9)\n    return a + b\n",
    "signal the group": "    import os\n    os.killpg(0, 9)\n    return a + b\n",
    "signal by descriptor": (
        "    import os, signal\n    signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)\n"
        "    return a + b\n"
    ),
    "a fresh posix": "    import sys\n    del sys.modules['posix']\n    import posix\n    return a + b\n",
    "deep recursion": "    return add(a, b)\n",
    "deep value": "    x = []\n    for _ in range(10 ** 5): x = [x]\n    return x\n",
    "own value": "    x = []\n    x.append(x)\n    return x\n",
    "memory bomb": "    x = []\n    while True: x.append(bytearray(10 ** 7))\n",
    "huge value": "    return 'a' * 10 ** 8\n",
    "raise the exit": "    raise BaseException('ok')\n",
    "generator exit": "    raise GeneratorExit\n",
    "debug": "    import sys\n    sys.settrace(lambda *a: None)\n    return 0\n",
    "code object": (
        "    import sys\n    code = sys._getframe().f_code\n    add.__code__ = code.replace(co_consts=(5,))\n"
        "    return a + b\n"
    ),
    "hang": "    import time\n    time.sleep(60)\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def forged() -> dict[str, Outcome]:
    checks = [humaneval(body) for body in FORGERIES.values()]
    return dict(zip(FORGERIES, run_checks(checks, seconds=4.0, cpu_seconds=1.0), strict=True))


@pytest.mark.parametrize("name", FORGERIES)
def test_nothing_but_being_right_passes(name: str, forged: dict[str, Outcome]) -> None:
    assert forged[name].status != "ok"
    assert "SyntaxError" not in forged[name].detail  # or it would prove nothing


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("read a file", "forbidden", "open /etc/passwd"),
        ("write a file", "forbidden", "open here"),
        ("socket", "forbidden", "socket.__new__"),
        ("fork", "forbidden", "os.fork"),
        ("fork bomb", "forbidden", "os.fork"),
        ("subprocess", "forbidden", "import _posixsubprocess"),
        ("ctypes", "forbidden", "import ctypes"),
        ("signal the parent", "forbidden", "os.kill"),
        ("look for the answer in every object", "forbidden", "gc.get_objects"),
        ("a fresh posix", "forbidden", "import posix"),
        ("memory bomb", "memory", "MemoryError"),
        ("hang", "timeout", "not finished after 4 s"),
        ("deep recursion", "error", "RecursionError"),
        ("leave", "error", "SystemExit"),
        ("leave at once", "error", "ended before it answered"),
        ("equal to everything", "error", "AssertionError"),
        ("huge value", "error", "a value of 100000000 characters; at most 16777216 are taken"),
    ],
)
def test_how_they_end(name: str, status: str, detail: str, forged: dict[str, Outcome]) -> None:
    assert forged[name].status == status
    assert detail in forged[name].detail


def test_the_audit_hook_alone_lets_none_pass(
    monkeypatch: pytest.MonkeyPatch, forged: dict[str, Outcome]
) -> None:
    """Where the kernel offers neither namespaces nor Landlock: the runner without its jail."""
    monkeypatch.setattr(sandbox, "_JAIL", Path(sandbox.__file__).with_name("runner.py"))
    names = [name for name in FORGERIES if name not in ("hang", "memory bomb")]
    found = run_checks([humaneval(FORGERIES[name]) for name in names], seconds=4.0, cpu_seconds=1.0)
    ended = {name: outcome.status for name, outcome in zip(names, found, strict=True)}
    assert ended == {name: forged[name].status for name in names}


def test_endless_programs_use_up_their_cpu_time() -> None:
    started = time.monotonic()
    checks = [
        mbpp("def f():\n  while True: pass", "assert f()"),
        mbpp("while True: pass", "assert f()"),
        mbpp("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "assert f()"),
    ]  # fmt: skip
    found = run_checks(checks, seconds=8.0, cpu_seconds=1.0)
    assert [outcome.status for outcome in found][:2] == ["timeout", "timeout"]
    assert "ok" not in [outcome.status for outcome in found]
    assert time.monotonic() - started < 45


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No file, no process, no word of this process's environment."""
    before = set(os.listdir("/proc")) if Path("/proc").is_dir() else set()
    there = tmp_path / "there"
    lingering = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def f():\n  return 1"
    )
    writing = f"def f():\n  open({str(there)!r}, 'w')\n  return 1"
    loud = "print('x' * 10 ** 7)\nimport sys\nsys.stderr.write('y' * 10 ** 7)\ndef f():\n  return 1"
    nosy = "import os\ndef f():\n  return sorted(os.environ)"
    os.environ["QBENCH_SECRET"] = "x"
    try:
        found = run_checks(
            [
                mbpp(lingering, "assert f() == 1"),
                mbpp(writing, "assert f() == 1"),
                mbpp(loud, "assert f() == 1"),
                mbpp(nosy, "assert 'QBENCH_SECRET' not in f()"),
            ]
        )
    finally:
        del os.environ["QBENCH_SECRET"]
    assert [outcome.status for outcome in found] == ["ok", "forbidden", "ok", "ok"]
    assert not list(tmp_path.iterdir())
    for name in set(os.listdir("/proc")) - before if before else ():
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                parent = Path(f"/proc/{name}/status").read_text().split("PPid:")[1].split()[0]
            except OSError:  # it has ended
                continue
            assert not (b"runner.py" in command and int(parent) in (1, os.getpid()))


def test_a_test_that_is_broken_does_not_pass() -> None:
    right = "def f():\n  return 1"
    assert statuses(mbpp(right, "assert f( == 1"), mbpp(right, "assert g() == 1")) == ["error"] * 2
    assert statuses(Check(right, "x = 1", "f")) == ["error"]  # no check


def test_text_that_is_no_program_is_wrong_like_any_other() -> None:
    texts = ("\ud800", "x = '\ud800'\0", "\0", "\ufeff", "(" * 10**5, "", "\x0c\r\n\t", "é = 1")
    assert statuses(*[mbpp(text, "assert f() == 1") for text in texts]) == ["error"] * len(texts)
    assert statuses(mbpp("def f():\r  return 'é\\ud800'", "assert f()[0] == 'é'")) == ["ok"]


def test_lm_evals_own_mbpp_examples_pass() -> None:
    """Three published records, with their line ends and blanks; the code of one is wrong for another."""
    utils = definitions(SETTINGS["mbpp"])[0].with_name("utils.py")
    docs = listed_samples(utils)
    checks = [mbpp_check(doc, other["code"], chat=False) for doc in docs for other in docs]
    expected = ["ok" if doc is other else "error" for doc in docs for other in docs]
    assert statuses(*checks) == expected


def test_neighbours_are_not_harmed() -> None:
    right, wrong = humaneval("    return a + b\n"), humaneval("    import os\n    os.abort()\n")
    assert statuses(right, wrong, right, wrong, right) == ["ok", "error", "ok", "error", "ok"]


def test_one_jail_serves_many_programs() -> None:
    """CPU time of this process's children; 100 checks took 0.9 s when this was written."""
    before = os.times()
    assert (
        statuses(*[humaneval(f"    return a + b + {n} - {n}\n") for n in range(100)])
        == ["ok"] * 100
    )
    after = os.times()
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system
        < 10
    )


FAKE = """
import json, os, sys
def part():
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "big")).decode()
for kind in json.loads(part())["kinds"]:
    program = part()
    if kind == "check":
        part()
    if "kill" in program and (not "once" in program or not os.path.exists({flag!r})):
        open({flag!r}, "w").close()
        os.kill(os.getpid(), 9)
    if "leave" in program:
        sys.exit(5)
    sys.stdout.write(json.dumps(["ok", None, program]) + "\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jail that dies on the word of a program."""
    jail = tmp_path / "jail.py"
    jail.write_text(FAKE.replace("{flag!r}", repr(str(tmp_path / "flag"))))
    monkeypatch.setattr(sandbox, "_JAIL", jail)


@pytest.mark.usefixtures("fake")
def test_a_program_that_takes_the_sandbox_down_is_the_only_one_to_suffer() -> None:
    found = run_checks([mbpp(p, "") for p in ("a", "kill", "b", "kill", "c")])
    assert [outcome.status for outcome in found] == ["ok", "crashed", "ok", "crashed", "ok"]
    assert found[1].detail == "took the sandbox down, signal 9"
    assert [outcome.detail for outcome in found[::2]] == ["a", "b", "c"]


@pytest.mark.usefixtures("fake")
def test_a_sandbox_that_is_killed_from_outside_starts_again() -> None:
    found = run_checks([mbpp(p, "") for p in ("a", "kill once", "b")])
    assert [outcome.status for outcome in found] == ["ok"] * 3


@pytest.mark.usefixtures("fake")
def test_a_sandbox_that_leaves_is_an_infrastructure_error() -> None:
    with pytest.raises(QBenchError, match=r"answered for 1 of 3 programs \(exit status 5\)"):
        run_checks([mbpp(p, "") for p in ("a", "leave", "b")])


def test_nothing_to_run_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_JAIL", Path("/nowhere"))
    assert run_checks([]) == []


# --- the parts

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(_plain)
def test_plain_values_survive_the_crossing(value: object) -> None:
    def unexpected(*_: object) -> int:
        raise AssertionError("plain data are not kept")

    back = decode(encode(value, unexpected), unexpected)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("node", [{}, {"a": 1, "b": 2}, {"unheard": 1}])
def test_replies_that_encode_never_writes(node: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a value of an unknown kind"):
        decode(node, lambda *_: None)


@pytest.mark.parametrize(
    ("test", "names"),
    [
        ("assert f(1) == 2", ["f"]),
        ("x = f(1)\nassert x == len(g)", ["f", "g"]),
        ("assert all(f(i) for i in range(3))", ["f"]),
        ("def check(c):\n  assert c(1) == helper(2)", ["helper"]),
        ("import math\nfrom re import sub as s\nassert math.floor(f(1)) == s", ["f"]),
        ("assert list(map(lambda y: y + k, f()))", ["k", "f"]),
    ],
)
def test_names_that_a_test_takes_from_the_program(test: str, names: list[str]) -> None:
    assert sorted(unbound(test, {})) == sorted(names)
