# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The service ~/segment: one image by itself, for behaviour trees and manipulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image

from vtseg_ros.errors import ImageError, VTSegError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.postprocess import apply_ego_mask
from vtseg_ros.nodes.bridge import Decode
from vtseg_ros.nodes.conversions import to_image, to_label_map
from vtseg_ros.srv import Segment

WINDOW = "~/segment"
"""Name of the window of single images; no camera can have it."""


@dataclass(frozen=True)
class Alone:
    """A request that waits for the worker, and what is called with its answer, in the worker's thread."""

    message: Image
    done: Callable[[Segment.Response], None]


def refusal(reason: str) -> Segment.Response:
    """Return the answer without a mask."""
    return Segment.Response(success=False, message=reason)


def segment_alone(
    message: Image, segmenter: VideoPredictor, decode: Decode, ego_mask: np.ndarray | None
) -> Segment.Response:
    """Segment an image as a window of one frame.

    Args:
        message: the image.
        segmenter: whose other windows stay as they are; the caller holds its lock.
        decode: messages to (H, W, 3) uint8 RGB.
        ego_mask: (h, w) bool, True where the robot sees itself; None = nowhere.

    Returns:
        mask, confidence and class list with the image's header; without success the reason.
    """
    try:
        result = segmenter.step(decode(message), camera=WINDOW)
        mask = result.mask if ego_mask is None else apply_ego_mask(result.mask, ego_mask)
        return Segment.Response(
            success=True,
            mask=to_image(mask, "mono8", message.header),
            confidence=to_image(result.confidence, "mono8", message.header),
            label_map=to_label_map(segmenter.labels, message.header),
        )
    except ImageError as err:
        return refusal(f"image: {err}")
    except VTSegError as err:
        return refusal(str(err))
    except Exception as err:  # whatever the network raises, it must not end the worker
        return refusal(f"inference failed: {type(err).__name__}: {err}")
    finally:
        segmenter.reset(WINDOW)
