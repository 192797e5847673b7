"""A program and its test in two processes: values cross between them, objects and code do not.

The program's process serves requests (:func:`serve`); the test's process sees the program's functions as
:class:`Remote` stand-ins. Standard library only: ``runner.py`` loads this file by its path.

Notable:
- the expected answers are only in the test's process, which the program cannot look into;
- a result arrives as JSON and is rebuilt from plain types, so that an object that claims to equal
  everything does not; what is not data stays with the program, and equals nothing here;
- a test that looks at an argument after the call finds it unchanged: values are copied.
"""

from __future__ import annotations

import ast
import builtins
import collections
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

# What tests take from the standard library and leave to the program's imports. Not from the program: a
# value that a test builds to compare with is nothing that the program should see, or make.
_KNOWN: dict[str, Any] = {
    **{name: getattr(collections, name) for name in collections.__all__},
    "Decimal": Decimal,
    "Fraction": Fraction,
}
_LARGEST = 2**24  # bytes of one message
_EXACT = 2**53  # JSON readers agree on integers below; larger ones go as text

Message = list[Any]


class Ended(Exception):
    """The program's process is gone."""


def send(channel: int, message: Message) -> None:
    """Write a message: its length in eight bytes, then JSON."""
    body = json.dumps(message).encode()
    body = len(body).to_bytes(8, "big") + body
    while body:
        body = body[os.write(channel, body) :]


def receive(channel: int) -> Message | None:
    """Read a message; ``None`` where the other end closed."""
    head = _exactly(channel, 8)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > _LARGEST:
        raise Ended(f"a value of {length} bytes; at most {_LARGEST} are taken")
    body = _exactly(channel, length)
    found = None if body is None else json.loads(body)
    return found if isinstance(found, list) else None


def _exactly(channel: int, count: int) -> bytes | None:
    """Read so many bytes and not one more; ``None`` where there are fewer."""
    parts, missing = [], count
    while missing:
        part = os.read(channel, min(missing, 65536))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Return JSON for plain data; for anything else the number under which ``keep`` remembers it."""

    def each(values: Any) -> list[Any]:
        return [encode(entry, keep) for entry in values]

    match value:
        case Remote():
            return {"kept": value._number}
        case str() | bytes() | bytearray() if len(value) > _LARGEST:
            # Refused before it is written out as JSON, which would use up the program's CPU time.
            raise ValueError(f"a value of {len(value)} characters; at most {_LARGEST} are taken")
        case None | bool() | float() | str():
            return value
        case int():
            return int(value) if abs(value) < _EXACT else {"int": hex(value)}
        case list():
            return each(value)
        case tuple():
            return {"tuple": each(value)}
        case dict():
            return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
        case set():
            return {"set": each(value)}
        case frozenset():
            return {"frozenset": each(value)}
        case deque():
            return {"deque": each(value)}
        case bytes() | bytearray():
            return {type(value).__name__: value.hex()}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case complex():
            return {"complex": [value.real, value.imag]}
        case Fraction() | Decimal():
            return {type(value).__name__: str(value)}
        case datetime() | date() | time():
            return {type(value).__name__: value.isoformat()}
        case timedelta():
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
    return {"iterator" if hasattr(value, "__next__") else "kept": keep(value)}


_REBUILD: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda parts: range(*parts),
    "complex": lambda parts: complex(*parts),
    "Fraction": Fraction,
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
}
_GATHER: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}


def decode(node: Any, kept: Callable[[int, bool], Any]) -> Any:
    """Rebuild a value; ``kept(number, is an iterator)`` stands for what is not data.

    Raises:
        ValueError: not what :func:`encode` writes.
    """
    if isinstance(node, list):
        return [decode(entry, kept) for entry in node]
    if not isinstance(node, dict):
        return node
    if len(node) != 1:
        raise ValueError("a value of an unknown kind")
    ((kind, payload),) = node.items()
    if kind == "dict":
        return {decode(k, kept): decode(v, kept) for k, v in payload}
    if kind in _GATHER:
        return _GATHER[kind](decode(entry, kept) for entry in payload)
    if kind in _REBUILD:
        return _REBUILD[kind](payload)
    if kind in ("kept", "iterator"):
        return kept(int(payload), kind == "iterator")
    raise ValueError(f"a value of an unknown kind {kind!r}")


def serve(space: dict[str, Any], requests: int, replies: int) -> None:
    """Answer requests about a program's globals until the other end closes."""
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def perform(request: Message) -> Any:
        what, first, *rest = request
        if what == "name":
            return space[first]
        target = objects[first]
        if what == "attribute":
            return getattr(target, rest[0])
        if what == "next":
            return next(target)
        positional, named = decode(rest[0], lambda number, _: objects[number])
        return target(*positional, **named)

    while (request := receive(requests)) is not None:
        try:
            reply: Message = ["value", encode(perform(request), keep)]
        except BaseException as error:
            reply = ["raised", type(error).__name__, str(error)[:200]]
        send(replies, reply)


class Client:
    """The test's end of the channel."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies

    def wait(self) -> Any:
        """Return the value of the next reply, or raise what was raised there."""
        reply = receive(self._replies)
        if reply is None:
            raise Ended("the program's process ended before it answered")
        if reply[0] == "value":
            return decode(reply[1], self._kept)
        kind = getattr(builtins, str(reply[1]), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                raised = kind(str(reply[2]))
            except TypeError:  # UnicodeDecodeError and its like want more
                raised = Exception(str(reply[2]))
        else:
            raised = Exception(f"{reply[1]}: {reply[2]}")
        raise raised

    def ask(self, *request: Any) -> Any:
        """Send a request; return the value."""
        try:
            send(self._requests, list(request))
        except OSError as error:
            raise Ended("the program's process ended") from error
        return self.wait()

    def call(self, number: int, positional: Any, named: Any) -> Any:
        """Call what the program keeps under a number."""
        return self.ask("call", number, encode([list(positional), named], _not_data))

    def _kept(self, number: int, iterates: bool) -> Remote:
        return (RemoteIterator if iterates else Remote)(self, number)


class Remote:
    """Something of the program's that is not data: a function, a class, an object."""

    def __init__(self, client: Client, number: int) -> None:
        self._client, self._number = client, number

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call it where it is."""
        return self._client.call(self._number, positional, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._client.ask("attribute", self._number, name)


class RemoteIterator(Remote):
    """An iterator of the program's, possibly without an end."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._client.ask("next", self._number)


def _not_data(value: Any) -> int:
    raise TypeError(f"a {type(value).__name__} cannot be handed to the program")


def prepare(prelude: str, test: str, entry: str) -> Callable[[Client], None]:
    """Return what runs a test against the program behind a client; whatever goes wrong is raised there.

    Before the audit hook: Python looks for the file of a text with a syntax error. Nothing is run yet.

    Args:
        prelude: the task's own text before the answer (HumanEval's prompt): its helpers are run on the
            test's side, so that a program cannot redefine what its test relies on.
        test: asserts, or for an ``entry`` the function ``check``.
        entry: the function that is handed to ``check``; empty where the test calls it by name.
    """
    try:
        before = compile(_closed(prelude), "<prelude>", "exec")
        asserts = compile(test, "<test>", "exec")
    except (SyntaxError, ValueError) as error:
        broken = f"the task's own text is no Python: {error}"

        def refuse(_: Client) -> None:
            raise ValueError(broken)

        return refuse

    def examine(client: Client) -> None:
        client.wait()  # the first reply says that the program's text has run
        space: dict[str, Any] = {"__name__": "test"}
        exec(before, space)  # noqa: S102 - the task's own
        for name in unbound(test, space):
            space[name] = _KNOWN.get(name) or _module(test, name) or client.ask("name", name)
        if entry:
            space[entry] = client.ask("name", entry)
        exec(asserts, space)  # noqa: S102 - the task's own
        if entry:
            space["check"](space[entry])

    return examine


def _closed(prelude: str) -> str:
    """Give the last function of a prompt a body where it has none."""
    try:
        compile(prelude, "<prelude>", "exec")
    except SyntaxError:
        return f"{prelude}\n    pass\n"
    return prelude


def unbound(test: str, space: dict[str, Any]) -> list[str]:
    """Return the names that a test reads and neither binds itself, nor finds in ``space`` or builtins."""
    nodes = list(ast.walk(ast.parse(test)))
    bound = {*space, *dir(builtins)}
    read = []
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.append(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=alias):
                bound.add(alias or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
    return [name for name in dict.fromkeys(read) if name not in bound]


def _module(test: str, name: str) -> Any:
    """Return the standard module that a test means by ``name.something`` without importing it."""
    if name not in sys.stdlib_module_names:
        return None
    nodes = list(ast.walk(ast.parse(test)))
    reads = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    dotted = sum(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
        for node in nodes
    )
    return __import__(name) if reads == dotted else None
