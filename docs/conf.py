"""Sphinx: the pages of this folder as a site, and the Python interface from its docstrings. `make docs` builds it."""

import sys
import tomllib
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

Options = import_module("atlas_edge.options").Options

project = "atlas-edge"
author = "The atlas-edge developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_links_external_new_tab = True

html_theme = "furo"
html_title = f"atlas-edge {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

# What a room exports is its interface; it is imported at first use, and so not there before it is asked for.
INTERFACE = ("atlas_edge", "atlas_edge.embed", "atlas_edge.slides", "atlas_edge.tiles")
for name in INTERFACE:
    module = import_module(name)
    for exported in module.__all__:
        setattr(module, exported, getattr(module, exported))

autodoc_default_options = {"exclude-members": "model_config"}
autodoc_member_order = "bysource"
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_use_ivar = True

nitpicky = True
# Libraries' own pages lie on the network; names of ours that no room exports have no page.
nitpick_ignore_regex = [(r"py:.*", r"(?!atlas_edge\.).*"), (r"py:class", r"atlas_edge(\.\w+)+\.[A-Z]\w+")]


def _signature(app: "Sphinx", what: str, name: str, found: Any, *_: Any) -> tuple[str, None] | None:
    """None but the fields' own list for models, options, protocols and enumerations: nobody constructs them."""
    if what != "class":
        return None
    listed = hasattr(found, "model_fields") or type(found) is not type or issubclass(found, Options)
    return ("", None) if listed else None


def _values(app: "Sphinx", what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    if isinstance(found, type) and issubclass(found, Enum):
        lines += ["", "One of " + ", ".join(f"`{member.value}`" for member in found)]


def setup(app: "Sphinx") -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _values)
