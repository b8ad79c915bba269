# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Inference: the video predictor, its sliding windows and the backends that run networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtseg_ros.inference.predictor import CameraFrame, Result, VideoPredictor

__all__ = ["CameraFrame", "Result", "VideoPredictor"]


def __getattr__(name: str) -> Any:
    """Import the classes at their first use: modules of this package that read images do not need torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vtseg_ros.inference import predictor

    return getattr(predictor, name)
