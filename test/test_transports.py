# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of transports: names of topics to transports and back."""

from __future__ import annotations

import pytest

from vtseg_ros.transports import (
    BEST_FIRST,
    MSGTYPES,
    TRANSPORTS,
    UNREADABLE,
    base_topic,
    is_video,
    transport_of,
)


@pytest.mark.parametrize(
    ("topic", "transport"),
    [
        ("/camera/image_raw", "raw"),
        ("/camera/image_raw/compressed", "compressed"),
        ("/camera/image_raw/zstd", "zstd"),
        ("/camera/image_raw/ffmpeg", "ffmpeg"),
        ("/camera/image_raw/foxglove", "foxglove"),
        ("/compressed_camera/image_raw", "raw"),
    ],
)
def test_transport_of_a_topic(topic, transport):
    assert transport_of(topic) == transport
    assert base_topic(topic) + TRANSPORTS[transport].suffix == topic


def test_transports_that_are_not_read_belong_to_the_same_camera():
    assert {base_topic(f"/camera/image{suffix}") for suffix in UNREADABLE} == {"/camera/image"}


def test_every_transport_has_a_rank_and_a_type():
    assert sorted(BEST_FIRST) == sorted(TRANSPORTS) and len(MSGTYPES) == 4
    assert [name for name in BEST_FIRST if is_video(name)] == ["foxglove", "ffmpeg"]
