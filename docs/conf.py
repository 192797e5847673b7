"""The site: ``sphinx-build -W -n docs site``. Needs the extra ``docs``, and no network.

Warnings are errors, references that lead nowhere among them. What the site loads comes with it: no
fonts, scripts or formulas from elsewhere, so that it reads the same from a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import dllm_qbench  # noqa: E402  (the checkout beside this file, whatever is installed)

project = "dllm_qbench"
author = "the authors of dllm_qbench"
copyright = "the authors of dllm_qbench, Apache-2.0"
release = version = dllm_qbench.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "docstrings",
    "mathml",
    "qbench_reference",
    "sources",
]
exclude_patterns = ["_build"]
nitpicky = True
# Names of other projects: their inventories are on the network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|transformers|numpy|np|pandas|pd|collections|pathlib|typing|types)\..*"),
    (
        r"py:.*",
        r"PreTrained\w+|(str|int|float|bool|None|tuple|list|dict|object|ValueError|.*\]|.*\[.*)",
    ),
]

myst_enable_extensions = ["attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "dllm_qbench"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "tango"
