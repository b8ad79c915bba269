# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays for the node, with a camera's warnings given once.

The conversions are the package's own and not cv_bridge's: with OpenCV they are as fast for every encoding, they know
more of them, and a cv_bridge built for NumPy 1 takes the process with it under NumPy 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vtseg_ros.bags.image_messages import ImageDecoder

Decode = Callable[[Any], np.ndarray]

MAX_CAMERAS = 64
"""Cameras that are distinguished: their names come from the messages, each of which may have a new one."""


def image_decoder(warn: Callable[[str], None]) -> Decode:
    """Return the function that turns image messages into (H, W, 3) uint8 RGB; see `bags.image_messages.decode_any`.

    Args:
        warn: called once for each kind of doubt about a camera's images; cameras are distinguished by their frame_id.
    """
    decoders: dict[str, ImageDecoder] = {}

    def decode(message: Any) -> np.ndarray:
        camera = message.header.frame_id
        if camera not in decoders and len(decoders) >= MAX_CAMERAS:
            camera = ""
        if camera not in decoders:
            decoders[camera] = ImageDecoder(f"images of {camera[:40]!r}", warn)
        return decoders[camera](message)

    return decode
