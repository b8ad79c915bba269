# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Segment a video, a bag, a folder of images or a webcam, and save overlays.

`python segment_video.py drive.mp4 overlays`, or `python segment_video.py 0` for the first webcam.
"""

import sys
from pathlib import Path

import cv2

import vtseg_ros


def webcam(number):
    """Yield RGB images until the camera ends; Ctrl-C stops the program."""
    camera = cv2.VideoCapture(number)
    while (read := camera.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)


source = sys.argv[1] if len(sys.argv) > 1 else "street"
out = Path(sys.argv[2] if len(sys.argv) > 2 else "overlays")
out.mkdir()

predictor = vtseg_ros.VideoPredictor("street_tiny", window=4)
frames = webcam(int(source)) if source.isdigit() else source
for number, result in enumerate(predictor.stream(frames)):
    if result.error or result.dropped:  # cannot be decoded, or has a repeated stamp
        print(f"frame {number} skipped: {result.error or result.dropped}")
        continue
    bgr = cv2.cvtColor(result.overlay(), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(out / f"{number:06d}.jpg"), bgr)
    print(f"frame {number}: {1000 * result.inference_s:.0f} ms")
