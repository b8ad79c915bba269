# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A real segmenter process over DDS: encodings, counts, outputs, parameters, lifecycle."""

from __future__ import annotations

import signal
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import wait_until
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nodes.encoders import compressed_message, image_message, picture, stamped
from nodes.harness import LATCHED
from nodes.setting import Setting, expected_mask, pixels
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool
from vtseg_ros.msg import LabelMap, SegmentationStatus

from vtseg_ros.bags.image_messages import ENCODINGS
from vtseg_ros.label_set import STREET

LOSSLESS = {"rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "rgba16", "bgra16"}


@pytest.fixture(scope="module")
def setting(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/raw", tiny_checkpoint, "-p", "max_gap:=5.0")
    made = Setting(harness, node, tiny_checkpoint, "/raw")
    made.matched(made.images)
    return made


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_give_the_predictors_mask(setting, encoding):
    rgb = picture(1)
    setting.reset()
    status = setting.answer(setting.images, image_message(rgb, encoding, setting.next_stamp(), padding=6))
    assert status.event == SegmentationStatus.PROCESSED, status.reason
    wait_until(lambda: setting.masks and setting.masks[-1].header.stamp == status.header.stamp, 5)
    mask = pixels(setting.masks[-1])
    if encoding in LOSSLESS:
        assert np.array_equal(mask, expected_mask(setting.checkpoint, [rgb]).mask)
    elif encoding.startswith("mono"):
        gray = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        assert np.array_equal(mask, expected_mask(setting.checkpoint, [gray]).mask)
    else:
        assert (mask == expected_mask(setting.checkpoint, [rgb]).mask).mean() > 0.6


def test_big_endian_mono16(setting):
    rgb = picture(2)
    setting.reset()
    little = setting.answer(setting.images, image_message(rgb, "mono16", setting.next_stamp()))
    first = pixels(setting.masks[-1])
    setting.reset()
    big = setting.answer(setting.images, image_message(rgb, "mono16", setting.next_stamp(), big_endian=True))
    wait_until(lambda: setting.masks[-1].header.stamp == big.header.stamp, 5)
    assert little.event == big.event == SegmentationStatus.PROCESSED
    assert np.array_equal(first, pixels(setting.masks[-1]))


def test_window_grows_and_restarts(setting):
    setting.reset()
    frames = [picture(seed) for seed in range(5)]
    seen = [setting.answer(setting.images, image_message(f, "rgb8", setting.next_stamp())) for f in frames]
    assert [s.frames_in_window for s in seen] == [1, 2, 3, 4, 4]
    wait_until(lambda: setting.masks[-1].header.stamp == seen[-1].header.stamp, 5)
    assert np.array_equal(pixels(setting.masks[-1]), expected_mask(setting.checkpoint, frames).mask)
    after_gap = setting.answer(setting.images, image_message(frames[0], "rgb8", setting.next_stamp(6.0)))
    assert after_gap.frames_in_window == 1
    repeated = setting.answer(setting.images, image_message(frames[0], "rgb8", setting.next_stamp(0.0)))
    assert repeated.event == SegmentationStatus.DROPPED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(encoding="rgb12"), "unknown encoding"),
        (dict(height=0), "empty"),
        (dict(height=2**32 - 1, width=2**32 - 1), "at most"),
        (dict(step=3), "step is too small"),
        (dict(height=4800), "data is too short"),
    ],
)
def test_bad_images_are_rejected_with_a_reason(setting, change, reason):
    before = setting.answer(setting.images, image_message(picture(3), "rgb8", setting.next_stamp()))
    message = image_message(picture(3), "rgb8", setting.next_stamp())
    for field, value in change.items():
        setattr(message, field, value)
    status = setting.answer(setting.images, message)
    assert status.event == SegmentationStatus.REJECTED and reason in status.reason
    assert status.frames_rejected == before.frames_rejected + 1
    after = setting.answer(setting.images, image_message(picture(3), "rgb8", setting.next_stamp()))
    assert after.event == SegmentationStatus.PROCESSED


def test_outputs_share_the_frames_header_and_size(setting):
    harness, ns = setting.harness, setting.ns
    kinds = {"confidence": "mono8", "color": "rgb8", "overlay": "rgb8"}
    outputs = {name: harness.collect(Image, f"{ns}/segmentation/{name}") for name in kinds}
    png = harness.collect(CompressedImage, f"{ns}/segmentation/mask/compressed")
    infos = harness.collect(CameraInfo, f"{ns}/segmentation/camera_info")
    camera = harness.publisher(CameraInfo, f"{ns}/camera_info")
    setting.matched(camera)
    k = [100.0, 0.0, 39.5, 0.0, 100.0, 23.5, 0.0, 0.0, 1.0]
    camera.publish(CameraInfo(height=48, width=80, k=k))
    time.sleep(0.5)
    rgb = picture(4)
    message = stamped(image_message(rgb, "rgb8", 0), setting.next_stamp(), "front_optical")
    status = setting.answer(setting.images, message)
    wait_until(lambda: all(outputs.values()) and png and infos, 10)
    for name, encoding in kinds.items():
        got = outputs[name][-1]
        assert got.header == message.header and got.encoding == encoding, name
        assert (got.height, got.width) == (48, 80), name
    mask = setting.masks[-1]
    assert mask.header == message.header and status.header == message.header
    confidence, ids = pixels(outputs["confidence"][-1]), pixels(mask)
    assert confidence.min() >= 255 // 14 and ids.max() < 14
    colors = np.frombuffer(outputs["color"][-1].data, np.uint8).reshape(48, 80, 3)
    assert np.array_equal(colors, np.asarray(STREET.colors, np.uint8)[ids])
    blended = np.frombuffer(outputs["overlay"][-1].data, np.uint8).reshape(48, 80, 3).astype(int)
    assert np.abs(blended - (rgb.astype(int) + colors) / 2).max() <= 1
    decoded = cv2.imdecode(np.frombuffer(png[-1].data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, ids)
    assert infos[-1].header == message.header and infos[-1].k[2] == pytest.approx(39.5)


def test_label_map_is_latched(setting):
    maps = setting.harness.collect(LabelMap, f"{setting.ns}/segmentation/label_map", LATCHED)
    wait_until(lambda: bool(maps), 10)
    assert [entry.name for entry in maps[-1].labels] == list(STREET.names)
    assert [(e.r, e.g, e.b) for e in maps[-1].labels] == [tuple(c) for c in STREET.colors]


def test_live_parameters(setting):
    assert setting.set("output_size", string_value="32x16").successful
    setting.answer(setting.images, image_message(picture(5), "rgb8", setting.next_stamp()))
    wait_until(lambda: (setting.masks[-1].width, setting.masks[-1].height) == (32, 16), 5)
    assert setting.set("output_size", string_value="input").successful
    assert setting.set("window", integer_value=2).successful
    for _ in range(3):
        status = setting.answer(setting.images, image_message(picture(5), "rgb8", setting.next_stamp()))
    assert status.frames_in_window == 2
    assert setting.set("window", integer_value=0).successful  # the checkpoint's, for the tests that follow
    for name, value, words in (
        ("output_size", {"string_value": "big"}, "WIDTHxHEIGHT"),
        ("overlay_alpha", {"double_value": 1.5}, "overlay_alpha"),
        ("device", {"string_value": "gpu"}, "device: unknown"),
        ("image_transport", {"string_value": "compressed"}, "cannot change"),
        ("checkpoint", {"string_value": "/nowhere"}, "no checkpoint"),
    ):
        result = setting.set(name, **value)
        assert not result.successful and words in result.reason, (name, result.reason)


def test_checkpoint_swap_while_running(setting, tmp_path):
    from conftest import make_checkpoint

    other = make_checkpoint(tmp_path / "other.safetensors", window=3)
    assert setting.set("checkpoint", string_value=str(other)).successful
    setting.node.wait_for("now running")
    for _ in range(4):
        status = setting.answer(setting.images, image_message(picture(6), "rgb8", setting.next_stamp()))
    assert status.frames_in_window == 3
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(other.read_bytes()[:-1000])
    assert setting.set("checkpoint", string_value=str(broken)).successful
    setting.node.wait_for("the checkpoint was not changed")
    assert (
        setting.answer(
            setting.images, image_message(picture(6), "rgb8", setting.next_stamp())
        ).frames_in_window
        == 3
    )
    # The parameter says what runs, not what failed.
    request = GetParameters.Request(names=["checkpoint"])
    got = setting.harness.call(GetParameters, f"{setting.ns}/segmenter/get_parameters", request)
    assert got.values[0].string_value == str(other)
    # What changes while another one is loading holds for the new one too.
    assert setting.set("checkpoint", string_value=str(setting.checkpoint)).successful
    assert setting.set("output_size", string_value="16x8").successful
    wait_until(lambda: setting.node.output().count("now running") == 2, 30)
    setting.answer(setting.images, image_message(picture(6), "rgb8", setting.next_stamp()))
    wait_until(lambda: (setting.masks[-1].width, setting.masks[-1].height) == (16, 8), 5)
    assert setting.set("output_size", string_value="input").successful


def test_a_swap_misses_no_beat(setting, tmp_path):
    """While another checkpoint loads and warms up, images are processed and diagnostics continue."""
    from conftest import make_checkpoint

    other = make_checkpoint(tmp_path / "wide.safetensors", window=8)
    beats = setting.harness.collect(DiagnosticArray, "/diagnostics")
    before = setting.node.output().count("now running")
    assert setting.set("checkpoint", string_value=str(other)).successful
    swapped = False
    while not swapped:
        swapped = setting.node.output().count("now running") > before
        status = setting.answer(setting.images, image_message(picture(12), "rgb8", setting.next_stamp()))
        assert status.event == SegmentationStatus.PROCESSED
    assert setting.set("checkpoint", string_value=str(setting.checkpoint)).successful
    wait_until(lambda: setting.node.output().count("now running") == before + 2, 30)
    wait_until(lambda: sum("raw/segmenter" in a.status[0].name for a in beats) >= 2, 20)
    times = [
        a.header.stamp.sec + a.header.stamp.nanosec / 1e9
        for a in beats
        if "raw/segmenter" in a.status[0].name
    ]
    assert max(b - a for a, b in zip(times, times[1:])) < 5.0


def test_a_request_is_refused_as_a_whole(setting):
    parameters = [
        Parameter(
            name="output_size", value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="8x8")
        ),
        Parameter(
            name="overlay_alpha", value=ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=0.2)
        ),
        Parameter(
            name="device", value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="gpu")
        ),
    ]
    service = f"{setting.ns}/segmenter/set_parameters_atomically"
    request = SetParametersAtomically.Request(parameters=parameters)
    result = setting.harness.call(SetParametersAtomically, service, request).result
    assert not result.successful and "device: unknown" in result.reason
    status = setting.answer(setting.images, image_message(picture(5), "rgb8", setting.next_stamp()))
    wait_until(lambda: setting.masks[-1].header.stamp == status.header.stamp, 5)
    assert (setting.masks[-1].width, setting.masks[-1].height) == (80, 48)


def parameters_of(node, harness, namespace: str, *names: str) -> list:
    request = GetParameters.Request(names=list(names))
    values = harness.call(GetParameters, f"{namespace}/segmenter/get_parameters", request).values
    return [value.string_value or value.integer_value or value.double_value for value in values]


def test_a_window_is_judged_by_the_network_that_gets_it(harness, start_node, tmp_path):
    """An export has windows up to its own; a request that is not taken leaves all as it was, and the node runs on."""
    from conftest import make_checkpoint

    from vtseg_ros.cli import main

    wide = make_checkpoint(tmp_path / "wide.safetensors", window=8, depths=(1, 1, 1, 1))
    small = make_checkpoint(tmp_path / "small.safetensors", window=2, depths=(1, 1, 1, 1))
    export = tmp_path / "small.onnx"
    assert main(["export", str(small), "--out", str(export)]) == 0
    node = start_node(
        "segmenter",
        "-r",
        "__ns:=/judge",
        "-p",
        f"checkpoint:={export}",
        "-p",
        "autostart:=true",
        "-p",
        "device:=cpu",
        "-p",
        "input_qos:=reliable",
    )
    node.wait_for("window 2")
    camera = Setting(harness, node, export, "/judge")
    camera.matched(camera.images)

    def ask(**values) -> object:
        kinds = {str: "string", int: "integer", float: "double"}
        parameters = [
            Parameter(
                name=name,
                value=ParameterValue(
                    type=getattr(ParameterType, f"PARAMETER_{kinds[type(v)].upper()}"),
                    **{f"{kinds[type(v)]}_value": v},
                ),
            )
            for name, v in values.items()
        ]
        request = SetParametersAtomically.Request(parameters=parameters)
        return harness.call(
            SetParametersAtomically, "/judge/segmenter/set_parameters_atomically", request, attempts=1
        ).result

    def told() -> list:
        return parameters_of(node, harness, "/judge", "checkpoint", "window", "overlay_alpha")

    def frames(count: int) -> int:
        for _ in range(count):
            status = camera.answer(camera.images, image_message(picture(3), "rgb8", camera.next_stamp()))
        return status.frames_in_window

    refused = ask(overlay_alpha=0.1, window=8)
    assert not refused.successful and "expected at most 2 frames, got 8" in refused.reason
    assert told() == [str(export), 0, 0.5] and frames(3) == 2
    # For the checkpoint of the same request it is right.
    assert ask(overlay_alpha=0.1, checkpoint=str(wide), window=8).successful
    node.wait_for("now running")
    assert told() == [str(wide), 8, 0.1] and frames(9) == 8
    # And here for the one that runs, while the one that is loaded cannot have it.
    assert ask(checkpoint=str(export), window=7).successful
    node.wait_for(
        "the checkpoint was not changed: window: longer than the network was exported for; expected at most 2"
    )
    wait_until(lambda: told() == [str(wide), 7, 0.1], 20, lambda: str(told()))
    assert frames(8) == 7 and node.process.poll() is None


def test_when_the_running_checkpoints_file_is_gone(setting, tmp_path):
    from conftest import make_checkpoint

    gone = make_checkpoint(tmp_path / "gone.safetensors")
    before = setting.node.output().count("now running")
    assert setting.set("checkpoint", string_value=str(gone)).successful
    wait_until(lambda: setting.node.output().count("now running") == before + 1, 30)
    (tmp_path / "broken.safetensors").write_bytes(gone.read_bytes()[:-1000])
    gone.unlink()
    assert setting.set("checkpoint", string_value=str(tmp_path / "broken.safetensors")).successful
    wait_until(lambda: "gone.safetensors stays active, but its parameter" in setting.node.output(), 30)
    status = setting.answer(setting.images, image_message(picture(6), "rgb8", setting.next_stamp()))
    assert status.event == SegmentationStatus.PROCESSED
    assert setting.set("checkpoint", string_value=str(setting.checkpoint)).successful
    wait_until(lambda: setting.node.output().count("now running") == before + 2, 30)


def test_pause_and_resume(setting):
    service = f"{setting.ns}/segmenter/enable"
    assert setting.harness.call(SetBool, service, SetBool.Request(data=False)).success
    received = setting.status[-1].frames_received
    setting.images.publish(image_message(picture(7), "rgb8", setting.next_stamp()))
    time.sleep(0.5)
    assert setting.harness.call(SetBool, service, SetBool.Request(data=True)).success
    status = setting.answer(setting.images, image_message(picture(7), "rgb8", setting.next_stamp()))
    assert status.frames_received == received + 1


def test_a_flood_is_dropped_and_accounted_for(setting):
    start = setting.answer(setting.images, image_message(picture(8), "rgb8", setting.next_stamp()))
    messages = [image_message(picture(8), "rgb8", setting.next_stamp(0.001)) for _ in range(300)]
    for message in messages:
        setting.images.publish(message)
    wait_until(
        lambda: (
            setting.status[-1].event == SegmentationStatus.IDLE
            and setting.status[-1].frames_received > start.frames_received
        ),
        60,
    )
    last = setting.status[-1]
    assert last.frames_dropped > start.frames_dropped
    assert last.frames_received == last.frames_processed + last.frames_dropped + last.frames_rejected
    told = [s for s in setting.status if s.event == SegmentationStatus.DROPPED]
    assert len(told) == last.frames_dropped


def test_diagnostics(setting):
    arrays = setting.harness.collect(DiagnosticArray, "/diagnostics")
    setting.answer(setting.images, image_message(picture(9), "rgb8", setting.next_stamp()))
    wait_until(lambda: any("raw/segmenter" in a.status[0].name for a in arrays), 10)
    status = next(a.status[0] for a in arrays if "raw/segmenter" in a.status[0].name)
    values = {pair.key: pair.value for pair in status.values}
    assert {
        "input rate (Hz)",
        "latency (s)",
        "dropped",
        "last rejection",
        "device",
        "checkpoint",
    } <= values.keys()


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_compressed_input(harness, start_segmenter, tiny_checkpoint, kind):
    node = start_segmenter(f"/{kind}", tiny_checkpoint, "-p", "image_transport:=compressed")
    setting = Setting(harness, node, tiny_checkpoint, f"/{kind}")
    publisher = harness.publisher(CompressedImage, f"/{kind}/image/compressed")
    setting.matched(publisher)
    rgb = picture(11)
    message = compressed_message(rgb, kind, setting.next_stamp())
    status = setting.answer(publisher, message)
    assert status.event == SegmentationStatus.PROCESSED, status.reason
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(message.data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    wait_until(lambda: bool(setting.masks), 5)
    assert np.array_equal(pixels(setting.masks[-1]), expected_mask(tiny_checkpoint, [seen]).mask)
    message.data = message.data[: len(message.data) // 2]
    message.header.stamp.sec += 1
    status = setting.answer(publisher, message)
    assert status.event == SegmentationStatus.REJECTED and "truncated" in status.reason
    assert node.stop(signal.SIGTERM) == 0


def test_lifecycle_by_services_and_silence(harness, start_node, tiny_checkpoint, tmp_path):
    node = start_node("segmenter", "-r", "__ns:=/managed", "-p", f"checkpoint:={tiny_checkpoint}")

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return harness.call(ChangeState, "/managed/segmenter/change_state", request, 60.0, attempts=1).success

    def state() -> str:
        return harness.call(GetState, "/managed/segmenter/get_state", GetState.Request()).current_state.label

    assert state() == "unconfigured"
    node.wait_for("ros2 lifecycle set /managed/segmenter configure")
    assert change(Transition.TRANSITION_CONFIGURE) and state() == "inactive"
    assert change(Transition.TRANSITION_ACTIVATE) and state() == "active"
    node.wait_for("no image on /managed/image yet", 60)
    masks = harness.node.get_publishers_info_by_topic("/managed/segmentation/mask")
    assert change(Transition.TRANSITION_DEACTIVATE) and state() == "inactive"
    assert len(masks) == len(harness.node.get_publishers_info_by_topic("/managed/segmentation/mask")) == 1
    wait_until(lambda: not harness.node.get_subscriptions_info_by_topic("/managed/image"), 10)
    assert node.output().count("no image on") == 1  # said once
    assert change(Transition.TRANSITION_CLEANUP) and state() == "unconfigured"
    for line in (
        "active, images from /managed/image",
        "inactive",
        "unconfigured, the network",
    ):
        assert node.output().count(line) == 1, line
    assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
    assert node.stop() == 0


def test_a_bad_checkpoint_fails_the_transition_in_one_line(start_node, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x04 a pickle")
    node = start_node("segmenter", "-p", f"checkpoint:={bad}", "-p", "autostart:=true")
    assert node.process.wait(60) == 2
    assert "nothing of it was executed" in node.output() and "Traceback" not in node.output()


def test_a_parameter_out_of_range_ends_in_one_line(start_node):
    node = start_node("segmenter", "-p", "window:=99")
    assert node.process.wait(60) == 2
    assert "window" in node.output() and "Traceback" not in node.output()
