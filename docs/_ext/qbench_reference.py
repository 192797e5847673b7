"""What is public and has no docstring of its own page: options, fixtures, markers, commands.

``{qbench-options}``, ``{qbench-fixtures}``, ``{qbench-markers}`` and ``{qbench-commands}`` are written from
the code when the site is built, so that they cannot be out of date. References to a class by the module
that it lives in (as annotations have it) lead to its public name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, Final, get_args, get_origin, get_type_hints

import pytest
import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from dllm_qbench import cli, pytest_options, pytest_plugin

_NOTHING: Final = (None, False, inspect.Parameter.empty)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the four directives and the public names."""
    for name, write in {
        "options": options,
        "fixtures": fixtures,
        "markers": markers,
        "commands": commands,
    }.items():
        app.add_directive(f"qbench-{name}", _directive(write))
    app.connect("missing-reference", public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _directive(write: Any) -> type[SphinxDirective]:
    class Written(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes("\n".join(write()), allow_section_headings=True)

    return Written


# --- the plugin --------------------------------------------------------------------------------


def options() -> Iterator[str]:
    """A list of the plugin's options, in the order of ``pytest --help``."""
    parser = pytest.Parser(_ispytest=True)
    pytest_options.add_options(parser)
    for option in parser.getgroup("qbench").options:
        given = option.attrs()
        name = option.names()[0]
        metavar = f"={given['metavar']}" if given.get("metavar") else ""
        yield f"`{name}{metavar}`"
        yield f": {_plain(given['help'])}\n"


def fixtures() -> Iterator[str]:
    """The plugin's fixtures with their docstrings."""
    for name, value in vars(pytest_plugin).items():
        if type(value).__name__ != "FixtureFunctionDefinition":
            continue
        text = inspect.cleandoc(value.__doc__ or inspect.unwrap(value).__doc__ or "")
        yield f"`{value.name or name}`"
        lines = text.replace("``", "`").splitlines()
        yield ": " + "\n  ".join(lines) + "\n"


def markers() -> Iterator[str]:
    """The plugin's markers."""
    for name, text in pytest_plugin.MARKERS.items():
        yield f"`{name}`\n: {_plain(text)}\n"


# --- the command line --------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Every command of ``qbench`` with arguments, options and their defaults."""
    yield from _commands("qbench", cli.app)


def _commands(prefix: str, app: typer.Typer) -> Iterator[str]:
    for command in sorted(app.registered_commands, key=_name):
        yield from _command(f"{prefix} {_name(command)}", command)
    for group in app.registered_groups:
        yield from _commands(f"{prefix} {group.name}", group.typer_instance)


def _name(command: CommandInfo) -> str:
    return command.name or command.callback.__name__.replace("_", "-")


def _command(name: str, command: CommandInfo) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield _plain(inspect.cleandoc(command.help or command.callback.__doc__ or "")) + "\n"
    hints = get_type_hints(command.callback, include_extras=True)
    for parameter in inspect.signature(command.callback).parameters.values():
        kind, *more = get_args(hints[parameter.name])
        info = next(one for one in more if isinstance(one, OptionInfo | ArgumentInfo))
        # Inside Annotated, typer has the first name of an option where its default would be.
        given = [info.default] if isinstance(info.default, str) else []
        given += info.param_decls or []
        plain = parameter.name.replace("_", "-")
        both = [f"--{plain}", f"--no-{plain}"]
        names = ", ".join(given or (both if kind is bool else both[:1]))
        if isinstance(info, ArgumentInfo):
            names = parameter.name.upper() + ("..." if get_origin(kind) is list else "")
        default = "" if parameter.default in _NOTHING else f"; by default `{parameter.default}`"
        yield f"`{names}`"
        yield f": {_plain((info.help or '').rstrip('.'))}{default}.\n"
    if command.epilog:
        yield f"For example: `{command.epilog.removeprefix('Example:').strip()}`\n"


def _plain(text: str) -> str:
    """Text of a help message as Markdown: nothing in it is markup, but for double backticks."""
    text = text.replace("``", "`")
    return re.sub(
        r"(--[a-z][a-z-]*(?:=\S+)?)(?![\w`-])", r"`\1`", re.sub(r"([<>*_\[\]])", r"\\\1", text)
    )


# --- public names ------------------------------------------------------------------------------


def public_name(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Node | None:
    """Lead a reference to ``dllm_qbench.quant.scheme.Scheme`` or ``Scheme`` to ``dllm_qbench.Scheme``.

    A name that a module of the package has and that is not public is said and not linked; a name that
    none has stays a warning.
    """
    if node.get("refdomain") != "py":
        return None
    module, _, name = str(node["reftarget"]).rpartition(".")
    for home in ("dllm_qbench", "dllm_qbench.kernels", "dllm_qbench.errors"):
        target = env.domains["py"].objects.get(f"{home}.{name}")
        if target is not None and (not module or module.startswith("dllm_qbench")):
            return make_refnode(
                app.builder, node["refdoc"], target.docname, target.node_id, content
            )
    first = str(node["reftarget"]).split(".")[0]
    known = [m for n, m in sys.modules.items() if n.startswith("dllm_qbench") and m is not None]
    if module.startswith("dllm_qbench"):
        found = hasattr(sys.modules.get(module), name)
    else:
        found = any(first in vars(one) for one in known)
    return content if found else None
