"""Settings of the documentation; `make docs` builds it, and a warning is an error."""

from importlib.metadata import version as version_of

project = "trainwell"
author = "the trainwell contributors"
project_copyright = "the trainwell contributors, Apache-2.0"
version = release = version_of("trainwell")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings are written once for `help()` and for these pages: `x` in single backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"trainwell {release}"
