# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Live topics of the zstd transport and of encoded video: a segmenter process, publishers over DDS."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("av")

from bags import videotools as tools
from bags.test_zstd_transport import packed
from bags.videotools import FFMPEG, FOXGLOVE, GROUP
from conftest import Process, wait_until
from nodes.camera import Camera, expected_mask
from nodes.encoders import NS, picture, stamp_ns_of
from nodes.harness import LATCHED, MESSAGES_S
from nodes.message_packages import build_video_messages
from sensor_msgs.msg import CompressedImage
from vtseg_ros.msg import EvaluationReport, SegmentationStatus

from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.inputs import image_class

COUNT = 14


def test_zstd(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/zstd", tiny_checkpoint, "-p", "image_transport:=zstd")
    camera = Camera(harness, node, "/zstd", kind=CompressedImage, topic="image/zstd")
    rgb = picture(11)
    message = CompressedImage(format="zstd", data=packed(rgb, "rgb8"))
    message.header.stamp.sec = 20
    mask = camera.mask_of(camera.answer(message))
    assert np.array_equal(mask, expected_mask(tiny_checkpoint, [rgb]).mask)
    message.data = message.data[: len(message.data) // 2]
    message.header.stamp.sec = 21
    status = camera.answer(message)
    assert status.event == SegmentationStatus.REJECTED and "zstd" in status.reason
    assert node.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("transport", ["ffmpeg", "foxglove"])
def test_messages_that_are_not_installed(start_node, tiny_checkpoint, transport):
    try:
        image_class(transport)
        pytest.skip("the messages are installed here")
    except ConfigError as err:
        assert "sudo apt install ros-$ROS_DISTRO-" in str(err)
    arguments = ("-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true")
    node = start_node("segmenter", *arguments, "-p", f"image_transport:={transport}")
    node.wait_for("cannot configure: image_transport: ")
    assert node.wait() == 2


@pytest.fixture(scope="module")
def video_messages(tmp_path_factory):
    """Environment with both message packages, also importable here."""
    added = build_video_messages(tmp_path_factory.mktemp("messages"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(added["PYTHONPATH"].split(os.pathsep)[0])
        patch.setenv("AMENT_PREFIX_PATH", added["AMENT_PREFIX_PATH"])
        # The libraries of the type support, which this process looks for without the changed search path.
        import ctypes

        prefix = Path(added["LD_LIBRARY_PATH"].split(os.pathsep)[0])
        left = sorted(prefix.glob("lib*.so"))
        for _ in range(6):
            left = [file for file in left if not _loaded(ctypes, file)]
        yield added


def _loaded(ctypes, file: Path) -> bool:
    try:
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


@pytest.mark.long  # builds message packages; test_video_topics.py decodes the same streams of bags
@pytest.mark.parametrize(
    ("transport", "msgtype", "codec"),
    [("foxglove", FOXGLOVE, "h264"), ("ffmpeg", FFMPEG, "h265"), ("ffmpeg", FFMPEG, "h264 with B-frames")],
)
def test_video(harness, start_segmenter, tiny_checkpoint, video_messages, transport, msgtype, codec):
    """Every packet is decoded, whatever the network drops; after a lost one decoding restarts at the next key frame."""
    namespace = f"/{transport}_{codec.replace(' ', '_').replace('-', '_')}"
    node = start_segmenter(
        namespace, tiny_checkpoint, "-p", f"image_transport:={transport}", environment=video_messages
    )
    kind = image_class(transport)
    camera = Camera(harness, node, namespace, kind=kind, topic=f"image/{transport}")
    stream, lost = tools.encode(codec, COUNT), GROUP + 1
    for place, packet in enumerate(stream):
        if place in (0, lost):
            continue
        camera.publish(message_of(kind, msgtype, packet, codec))
    if "B-frames" not in codec:
        wait_until(lambda: len(camera.reported()) >= COUNT - 2, node.output)
        assert {stamp_ns_of(s) for s in camera.reported()} == {
            tools.stamp_of_frame(p.number) for n, p in enumerate(stream) if n not in (0, lost)
        }
        refused = {stamp_ns_of(s): s.reason for s in camera.reported() if s.reason}
        assert "no key frame" in refused[tools.stamp_of_frame(1)]
        shown = [s for s in camera.reported() if s.event == SegmentationStatus.PROCESSED]
        assert shown and stamp_ns_of(shown[-1]) == tools.stamp_of_frame(COUNT - 1)
        node.wait_for("video packets gave no image; images come again")
    assert node.stop(signal.SIGTERM) == 0
    wait_until(lambda: bool(camera.reported()))


def report_of_evaluator(harness, namespace: str) -> list:
    return harness.collect(EvaluationReport, f"{namespace}/evaluation", LATCHED)


def view(namespace: str, transport: str, target: Path, environment: dict) -> Process | None:
    """Start the viewer; None where its extra is not installed, and only the evaluator is tested."""
    if importlib.util.find_spec("rerun") is None:
        return None
    command = [sys.executable, "-m", "vtseg_ros.cli", "view", "--topics", f"{namespace}/image/{transport}"]
    command += ["--namespace", namespace.strip("/"), "--save", str(target)]
    return Process(command, target.with_suffix(".log"), {**os.environ, **environment})


def images_of_view(target: Path) -> set[int]:
    from commands.test_view import Read

    (entity,) = (name for name in Read(target).entities if name.endswith("/image"))
    return set(Read(target).entities[entity])


def test_evaluator_and_viewer_read_zstd(harness, start_node, ros_environment, tmp_path):
    node = start_node(
        "evaluator",
        "-r",
        "__ns:=/zstd_too",
        "-p",
        "image_transport:=zstd",
        "-p",
        "label_transport:=zstd",
        "-p",
        f"output_dir:={tmp_path}",
        "-p",
        "input_qos:=reliable",
    )
    viewer = view("/zstd_too", "zstd", tmp_path / "view.rrd", ros_environment)
    reports = report_of_evaluator(harness, "/zstd_too")
    image, label = (
        harness.publisher(CompressedImage, f"/zstd_too/{what}/zstd") for what in ("image", "label")
    )
    readers = 2 if viewer else 1
    wait_until(lambda: image.get_subscription_count() == readers and label.get_subscription_count() == 1)
    time.sleep(MESSAGES_S)  # the best effort subscription must know its publisher too
    for number in range(1, 4):
        for publisher, pixels_, encoding in (
            (image, picture(number), "rgb8"),
            (label, np.full((48, 80), number, np.uint8), "mono8"),
        ):
            message = CompressedImage(format="zstd", data=packed(pixels_, encoding))
            message.header.stamp.sec = number
            publisher.publish(message)
    wait_until(lambda: any((r.frames_seen, r.labelled_frames) == (3, 3) for r in reports), node.output)
    if viewer:
        assert viewer.stop() == 0, viewer.output()
        assert images_of_view(tmp_path / "view.rrd") == {NS, 2 * NS, 3 * NS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "msgtype", "codec"), [("foxglove", FOXGLOVE, "h264"), ("ffmpeg", FFMPEG, "h265")]
)
def test_evaluator_and_viewer_read_video(
    harness, start_node, ros_environment, video_messages, tmp_path, transport, msgtype, codec
):
    """Every packet is counted, with or without an image; the viewer gets the images."""
    namespace = f"/{transport}_too"
    node = start_node(
        "evaluator",
        "-r",
        f"__ns:={namespace}",
        "-p",
        f"image_transport:={transport}",
        "-p",
        f"output_dir:={tmp_path}",
        "-p",
        "input_qos:=reliable",
        environment=video_messages,
    )
    viewer = view(namespace, transport, tmp_path / "view.rrd", {**ros_environment, **video_messages})
    reports = report_of_evaluator(harness, namespace)
    kind = image_class(transport)
    publisher = harness.publisher(kind, f"{namespace}/image/{transport}")
    wait_until(lambda: publisher.get_subscription_count() == (2 if viewer else 1), node.output)
    time.sleep(MESSAGES_S)  # the best effort subscription must know its publisher too
    stream, lost = tools.encode(codec, COUNT), GROUP + 1
    for place, packet in enumerate(stream):
        if place not in (0, lost):
            publisher.publish(message_of(kind, msgtype, packet, codec))
    wait_until(lambda: any(r.frames_seen == COUNT - 2 for r in reports), node.output)
    if viewer:
        viewer.wait_for("video packets gave no image; images come again")
        assert viewer.stop() == 0, viewer.output()
        # The second group lost a frame: its later frames are left out up to the third key frame.
        shown = {tools.stamp_of_frame(number) for number in (GROUP, *range(2 * GROUP, COUNT))}
        assert images_of_view(tmp_path / "view.rrd") == shown
    node.wait_for("video packets gave no image; images come again")


def message_of(kind, msgtype, packet, codec):
    name, stamp_ns = codec.split()[0], tools.stamp_of_frame(packet.number)
    if msgtype == FOXGLOVE:
        message = kind(frame_id="cam", format=name, data=packet.data)
        stamp = message.timestamp
    else:
        message = kind(encoding={"h265": "libx265"}.get(name, name), data=packet.data, pts=packet.number)
        message.header.frame_id, message.flags, stamp = "cam", int(packet.key), message.header.stamp
    stamp.sec, stamp.nanosec = divmod(stamp_ns, NS)
    return message
