# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Overlay videos that cannot be written are refused in one line."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.video.overlay_video import OverlayVideo, check_new_video, overlay_video


def test_places_are_checked_before_the_first_frame(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot be written; expected a folder, got .*notes.txt, which is none"
    ):
        check_new_video(tmp_path / "notes.txt" / "a" / "o.mp4")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.mp4")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        check_new_video(tmp_path / "link.mp4")
    check_new_video(tmp_path / "new" / "folder" / "o.mp4")


def test_a_failure_of_ffmpeg_is_one_line(tmp_path, capfd):
    video = OverlayVideo(tmp_path / "nowhere" / "o.mp4", STREET, 10.0)
    image, mask = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
    with pytest.raises(ConfigError) as err:
        for _ in range(1000):  # ffmpeg ends after some of them
            video.add(image, mask)
    video.close()
    assert "No such file" in capfd.readouterr().err
    assert "overlay: ffmpeg ended early" in str(err.value) and len(str(err.value).splitlines()) == 1


def test_images_of_a_single_row(tmp_path):
    """Line cameras have them; H.264 needs two."""
    with overlay_video(tmp_path / "o.mp4", STREET, 10.0) as video:
        video.add(np.zeros((1, 3000, 3), np.uint8), np.zeros((1, 3000), np.uint8))
    assert (tmp_path / "o.mp4").stat().st_size > 0
