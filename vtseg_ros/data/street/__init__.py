"""The synthetic street: procedural driving video with exact labels, depth and optical flow.

In the image of Virtual KITTI 2 (Cabon et al., 2020): its classes, five scenes and six of its variations.
"""

from vtseg_ros.data.street.scenes import SCENES, VARIATIONS
from vtseg_ros.data.street.sequence import RATE_HZ, StreetFrame, render_sequence

__all__ = ["RATE_HZ", "SCENES", "VARIATIONS", "StreetFrame", "render_sequence"]
