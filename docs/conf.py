"""How Sphinx builds these pages: `make docs`, which needs no network."""

from __future__ import annotations

import os
import re
import warnings

import matplotlib as mpl

import deepfeat

# Examples write their logs and bars nowhere, and draw without a screen.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
mpl.use("agg")
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "deepfeat"
author = "The deepfeat developers"
copyright = author  # noqa: A001 (Sphinx names it so)
version = release = deepfeat.__version__
language = "en"

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinxarg.ext",
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
templates_path = ["_templates"]
exclude_patterns = ["**.ipynb", "auto_examples/**.py"]

# Single backquotes in docstrings name things of deepfeat.
default_role = "py:obj"
# Names of commands are no targets of links.
suppress_warnings = ["myst.domains"]
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

#: Files of the repository that are pages here, under other names.
PAGES = {
    "README.md": "/index.md",
    "CHANGELOG.md": "/project/changes.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "SECURITY.md": "/project/security.md",
}
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "ignore_pattern": "^(?!plot_)",
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 0,
    "download_all_examples": False,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "abort_on_example_error": True,
    "backreferences_dir": "reference/uses",
    "doc_module": ("deepfeat",),
    "reset_modules": ("matplotlib",),
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"deepfeat {version}"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["deepfeat.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "deepfeat"},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_nav_level": 1,
    "navigation_with_keys": False,
    "search_as_you_type": True,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}


def _lead_to_pages(app: object, docname: str, source: list[str]) -> None:
    """Turn links to files, which a code host shows, into links to the pages that these files became."""

    def lead(match: re.Match[str]) -> str:
        name, section = match.groups()
        found = re.fullmatch(r"examples/(?:(plot_\w+)\.py)?", name)
        page = f"/auto_examples/{found[1] or 'index'}.rst" if found else PAGES.get(name)
        return f"]({page}{section or ''})" if page else match[0]

    source[0] = re.sub(r"\]\((?:\.\./)+([\w./]+)(#[\w-]+)?\)", lead, source[0])


def setup(app: object) -> None:
    """Hook the links in."""
    app.connect("source-read", _lead_to_pages)  # type: ignore[attr-defined]
