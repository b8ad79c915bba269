"""The engine: the sliding window and the predictor."""

from vtseg_ros.engine.predictor import CameraFrame, Result, Segmenter

__all__ = ["CameraFrame", "Result", "Segmenter"]
