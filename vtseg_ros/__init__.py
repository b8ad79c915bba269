# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Video semantic segmentation for ROS 2: VTSeg, streaming inference, training and nodes."""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtseg_ros.inference import CameraFrame, Result, VideoPredictor

# The generated messages (vtseg_ros.msg) are in the install space; Python in the source tree finds them next to
# these modules.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
__all__ = ["CameraFrame", "Result", "VideoPredictor"]

DEFAULT_CHECKPOINT = "drive_static"
"""Name of the shipped weights that the node, the commands and `VideoPredictor` use by default."""


def __getattr__(name: str) -> Any:
    """Import the public classes at their first use, because they need torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vtseg_ros import inference

    return getattr(inference, name)
