# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files check before they start anything."""

from __future__ import annotations

import re

import pytest

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.launching import (
    NOT_REPLAYED,
    camera_topics,
    describe_bag,
    find_topic,
    plain_section,
    require_file,
    truth,
)
from vtseg_ros.transports import FFMPEG_PACKET, FOXGLOVE_VIDEO


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("1", True),
        ("Yes", True),
        ("ON", True),
        ("false", False),
        ("0", False),
        ("no", False),
        ("off", False),
    ],
)
def test_truth(text, expected):
    assert truth("loop", text) is expected


@pytest.mark.parametrize("text", ["", "2", "ture", "none"])
def test_no_truth(text):
    with pytest.raises(ConfigError, match="loop: expected true or false"):
        truth("loop", text)


def test_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "segmenter: {ros__parameters: {window: 3}}\n/**/segmenter: {ros__parameters: {window: 4}}"
    )
    assert require_file("params_file", "~/a.yaml") == str(tmp_path / "a.yaml")
    assert plain_section(str(tmp_path / "a.yaml"), "segmenter") == {"window": 3}
    with pytest.raises(ConfigError, match="params_file: no such file"):
        require_file("params_file", "~/b.yaml")
    (tmp_path / "bad.yaml").write_text("a: [b")
    with pytest.raises(ConfigError, match="not YAML"):
        plain_section(str(tmp_path / "bad.yaml"), "segmenter")


def test_topics_of_cameras():
    assert camera_topics(["a", "b"], "/x/image, /y/image") == {"a": "/x/image", "b": "/y/image"}
    assert camera_topics(["a"], "") == camera_topics([], "") == {}
    with pytest.raises(ConfigError, match="one topic per camera"):
        camera_topics(["a", "b"], "/x/image")


def bag_info(**messages: int) -> dict:
    """As `vtseg info` writes it; raw topics by name, compressed ones with `_c` at the end."""
    topics = {
        f"/{name.removesuffix('_c')}" + ("/compressed" if name.endswith("_c") else ""): {
            "type": f"sensor_msgs/msg/{'CompressedImage' if name.endswith('_c') else 'Image'}",
            "messages": count,
        }
        for name, count in messages.items()
    }
    return {"topics": topics, "image_topic": None, "label_topic": None}


@pytest.mark.parametrize(
    ("messages", "topic", "transport", "expected"),
    [
        ({"cam": 5, "cam_c": 5}, "/cam", "", ("/cam", "raw")),
        ({"cam": 0, "cam_c": 5}, "/cam", "", ("/cam", "compressed")),
        ({"cam": 5, "cam_c": 5}, "/cam", "compressed", ("/cam", "compressed")),
        ({"cam": 5, "cam_c": 5}, "/cam/compressed", "", ("/cam", "compressed")),
    ],
)
def test_a_named_topic(messages, topic, transport, expected):
    assert find_topic("image", bag_info(**messages), topic, transport) == expected


@pytest.mark.parametrize(
    ("topic", "transport", "words"),
    [
        ("", "", "several, or none"),
        ("/other", "", "/other has no message"),
        ("/cam", "raw", "/cam has no message"),
        ("/cam", "h264", "raw, zstd, compressed, foxglove, ffmpeg"),
        ("/cam/theora", "", "/cam has no message"),
    ],
)
def test_what_a_bag_has_not(topic, transport, words):
    with pytest.raises(ConfigError, match=words):
        find_topic("image", bag_info(cam_c=3), topic, transport)


def test_all_transports_are_replayed():
    types = {"zstd": "sensor_msgs/msg/CompressedImage", "ffmpeg": FFMPEG_PACKET, "foxglove": FOXGLOVE_VIDEO}
    for transport, kind in types.items():
        topics = {f"/cam/{transport}": {"type": kind, "messages": 5}}
        info = {"topics": topics, "image_topic": f"/cam/{transport}", "label_topic": f"/cam/{transport}"}
        for topic in ("", "/cam", f"/cam/{transport}"):
            assert find_topic("image", info, topic, "") == ("/cam", transport)
        if transport == "zstd":
            assert find_topic("label", info, "", "") == ("/cam", "zstd")
        else:
            with pytest.raises(ConfigError, match=f"label_topic: /cam/{transport} has no message"):
                find_topic("label", info, "", "")


def test_topics_of_a_bag(street_bag, tmp_path):
    info = describe_bag(str(street_bag))
    assert find_topic("image", info, "", "") == ("/camera/image", "raw")
    assert find_topic("label", info, "", "") == ("/camera/label", "raw")
    with pytest.raises(ConfigError, match="no such bag"):
        describe_bag(str(tmp_path / "none"))
    BagWriter(tmp_path / "empty").close()
    with pytest.raises(ConfigError):
        find_topic("image", describe_bag(str(tmp_path / "empty")), "", "")


def test_what_a_recorder_of_all_wrote_is_not_replayed():
    left_out = ("/rosout", "/diagnostics", "/diagnostics_agg", "/parameter_events", "/events/write_split")
    assert all(re.search(NOT_REPLAYED, topic) for topic in left_out)
    assert not any(
        re.search(NOT_REPLAYED, topic)
        for topic in ("/camera/image", "/tf_static", "/dvs/events", "/robot/rosout_x")
    )
