# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Inference: the video predictor, its sliding windows and the backends that run networks."""

from vtseg_ros.inference.predictor import CameraFrame, Result, VideoPredictor

__all__ = ["CameraFrame", "Result", "VideoPredictor"]
