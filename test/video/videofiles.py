# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Videos with frame times of the test's choosing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SHADES = (40, 80, 120, 160, 200)


def write_video(
    path: Path,
    times_ms: list[int],
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
) -> None:
    """Grey frames, shade by shade of `SHADES`, at times in ms."""
    with path.open("wb") as file, av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            image = np.full((size[1], size[0], 3), SHADES[number % len(SHADES)], np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
