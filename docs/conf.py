"""How Sphinx makes a site of these pages: tox -e docs."""

from __future__ import annotations

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import cagent_session

project = "cagent-session"
author = "The cagent-session developers"
release = version = cagent_session.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_enable_extensions = ["tasklist"]
myst_heading_anchors = 3
myst_html_meta = {
    "description": "Every LLM call of a Python agent tells the models gateway which agent session"
    " made it, and tells no other host: for requests, urllib3, httpx, aiohttp and SDKs on them.",
}

# Pygments stumbles over braces in a string of nginx' configuration, and highlights the rest.
suppress_warnings = ["misc.highlighting_failure"]

toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"cagent-session {release}"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

# One parameter a line, with its type, as soon as there are a few.
python_maximum_signature_line_length = 60
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

nitpicky = True
# The site is built without a network, so other projects' names lead nowhere.
nitpick_ignore_regex = [
    ("py:.*", r"(celery|collections|concurrent|contextlib|email|httpx2?|requests|urllib3)\..*"),
    # Type variables.
    ("py:class", r"(cagent_session\.[\w.]+\.|~)?_[A-Z]\w*"),
    # From urllib3, for type checkers alone.
    ("py:class", r"Retry"),
    # What a respond= gives back, which the text next to it says.
    ("py:class", r"Given"),
]


def setup(app: Sphinx) -> None:
    app.add_lexer("haproxy", TextLexer)  # Pygments knows nginx' configuration, but not this one
