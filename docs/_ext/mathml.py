"""Formulas as MathML, which browsers draw themselves: no script, no font, no network.

Docutils turns the LaTeX of ``$...$`` and ``$$...$$`` into MathML; what it cannot read is an error.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: nodes.math) -> None:
    _write(translator, node, False)


def _block(translator: Any, node: nodes.math_block) -> None:
    _write(translator, node, True)


def _write(translator: Any, node: nodes.Element, block: bool) -> None:
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        raise ExtensionError(f"{node.source}:{node.line}: {error} in {node.astext()!r}") from error
    raise nodes.SkipNode
