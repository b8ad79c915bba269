# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration of the documentation site; scripts/build_docs.sh builds it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "vtseg_ros"
author = "vtseg_ros contributors"
copyright = author  # noqa: A001
release = re.search(r'__version__ = "(.+)"', (ROOT / "vtseg_ros" / "__init__.py").read_text())[1]
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "generated_reference",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
smartquotes = False  # options start with two hyphens
# Packages that the documented modules import and a documentation build need not have.
OPTIONAL = (
    "rclpy",
    "rcl_interfaces",
    "lifecycle_msgs",
    "diagnostic_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "rosgraph_msgs",
    "vision_msgs",
    "cv_bridge",
    "vtseg_ros.msg",
    "panda3d",
    "direct",
    "openvino",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "lightning_fabric",
    "tensorboard",
)
autodoc_mock_imports = list(OPTIONAL)

html_theme = "furo"
html_title = f"vtseg_ros {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d4ed8", "color-brand-content": "#1d4ed8"},
    "dark_css_variables": {"color-brand-primary": "#93c5fd", "color-brand-content": "#93c5fd"},
}
