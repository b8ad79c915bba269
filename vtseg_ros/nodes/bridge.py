"""cv_bridge for the encodings it reads, where it works; `data.images` otherwise. The same arrays either way.

A cv_bridge built for NumPy 1 fails, or takes the process with it, under NumPy 2: it is tried in a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from vtseg_ros.data.images import MAX_PIXELS, decode_any

Decode = Callable[[Any], np.ndarray]

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""What cv_bridge converts to the same arrays, and the channels; the rest differs from release to release."""

TRIAL = """
import numpy
from cv_bridge import CvBridge
from sensor_msgs.msg import Image
image = Image(height=1, width=2, encoding="bgr8", step=6, data=bytes(range(6)))
assert CvBridge().imgmsg_to_cv2(image, "rgb8").tolist() == [[[2, 1, 0], [5, 4, 3]]]
"""
TRIAL_TIMEOUT_S = 30.0


def image_decoder(warn: Callable[[str], None]) -> Decode:
    """The function that turns image messages into (H, W, 3) uint8 RGB; see `data.images.decode_any`.

    Args:
        warn: called once with a text when cv_bridge is installed and does not work.
    """
    if importlib.util.find_spec("cv_bridge") is None:
        return decode_any
    try:
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL], capture_output=True, text=True, timeout=TRIAL_TIMEOUT_S
        )
        reason = "" if trial.returncode == 0 else (trial.stderr.strip().splitlines() or ["it crashes"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    if reason:
        warn(f"cv_bridge does not work here ({reason}): images are converted by NumPy and OpenCV")
        return decode_any
    from cv_bridge import CvBridge

    bridge = CvBridge()

    def decode(message: Any) -> np.ndarray:
        if _readable(message):
            return bridge.imgmsg_to_cv2(message, "rgb8")
        return decode_any(message)

    return decode


def _readable(message: Any) -> bool:
    """Whether cv_bridge reads it right: it shifts the rows when the step is no multiple of the pixel."""
    channels = CHANNELS.get(getattr(message, "encoding", ""), 0)
    if not channels or not 0 < message.width * message.height <= MAX_PIXELS:
        return False
    whole = message.step % channels == 0 and message.step >= message.width * channels
    return whole and len(message.data) >= message.step * message.height
