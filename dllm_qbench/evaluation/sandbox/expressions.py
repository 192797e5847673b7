"""Arithmetic expressions in ``x``, as the embedded code task generates them, run on given inputs.

An expression passes a whitelist of syntax before it goes to the sandbox: integers, ``x``, ``+ - * %``,
``min`` and ``max``. In this language nothing loops, allocates without bound or names anything else, so many
expressions share one sandboxed process.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from dllm_qbench.errors import QBenchError
from dllm_qbench.evaluation.sandbox import run_programs

_LONGEST = 400  # characters; keeps nesting and products small
_LARGEST = 10**6
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Mod)
_TOGETHER = 250
_PROGRAM = """
def run(function, inputs):
    values = []
    for x in inputs:
        try:
            values.append(function(x))
        except Exception:
            values.append(None)
    return values
result = [{calls}]
"""


def parse(text: str) -> str | None:
    """Return the expression in normal form, or ``None`` where it is not in the language."""
    if len(text) > _LONGEST:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return ast.unparse(tree) if _allowed(tree.body) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # too deep counts as malformed
        return None


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return type(value) is int and value <= _LARGEST
        case ast.Name(id=name):
            return name == "x"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _allowed(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return isinstance(operator, _OPERATORS) and _allowed(left) and _allowed(right)
        case ast.Call(func=ast.Name(id="min" | "max"), args=arguments, keywords=[]):
            return len(arguments) >= 2 and all(map(_allowed, arguments))
        case _:
            return False


def run_expressions(
    expressions: Sequence[str], inputs: Sequence[Sequence[int]]
) -> list[list[int | None]]:
    """Evaluate each expression on its own inputs.

    Args:
        expressions: as a model wrote them; anything may stand there.
        inputs: values of ``x``, for each expression.

    Returns:
        the values; ``None`` where there is none (not in the language, or a division by zero).

    Raises:
        QBenchError: the sandbox itself failed; nothing was scored.
    """
    parsed = [parse(text) for text in expressions]
    values: list[list[int | None]] = [[None] * len(inputs_of) for inputs_of in inputs]
    valid = [index for index, text in enumerate(parsed) if text is not None]
    groups = [valid[start : start + _TOGETHER] for start in range(0, len(valid), _TOGETHER)]
    programs = [
        _PROGRAM.format(
            calls=", ".join(
                f"run(lambda x: {parsed[index]}, {[int(x) for x in inputs[index]]})"
                for index in group
            )
        )
        for group in groups
    ]
    for group, outcome in zip(groups, run_programs(programs, seconds=20.0), strict=True):
        if outcome.status != "ok":
            raise QBenchError(
                f"the sandbox ended {len(group)} whitelisted expressions with {outcome.status!r}"
                f" ({outcome.detail}); this is an infrastructure error, nothing was scored"
            )
        for index, found in zip(group, outcome.value, strict=True):
            values[index] = found
    return values
