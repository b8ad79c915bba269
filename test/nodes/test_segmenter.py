# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A real segmenter process over DDS: encodings, counts, outputs, parameters, lifecycle."""

from __future__ import annotations

import signal

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import PATIENCE_S, wait_until
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nodes.camera import Camera, expected_mask, pixels
from nodes.encoders import compressed_message, image_message, picture, stamped
from nodes.harness import LATCHED
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.duration import Duration
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool
from vtseg_ros.msg import LabelMap, SegmentationStatus

from vtseg_ros.bags.image_messages import ENCODINGS
from vtseg_ros.label_set import STREET

LOSSLESS = {"rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "rgba16", "bgra16"}


@pytest.fixture(scope="module")
def camera(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/raw", tiny_checkpoint, "-p", "max_gap:=5.0")
    return Camera(harness, node, "/raw")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_give_the_predictors_mask(camera, tiny_checkpoint, encoding):
    rgb = picture(1)
    camera.reset()
    mask = camera.mask_of(camera.ask(image_message(rgb, encoding, 0, padding=6)))
    if encoding in LOSSLESS:
        assert np.array_equal(mask, expected_mask(tiny_checkpoint, [rgb]).mask)
    elif encoding.startswith("mono"):
        gray = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        assert np.array_equal(mask, expected_mask(tiny_checkpoint, [gray]).mask)
    else:
        assert (mask == expected_mask(tiny_checkpoint, [rgb]).mask).mean() > 0.6


def test_big_endian_mono16(camera):
    rgb = picture(2)
    camera.reset()
    little = camera.mask_of(camera.ask(image_message(rgb, "mono16", 0)))
    camera.reset()
    big = camera.mask_of(camera.ask(image_message(rgb, "mono16", 0, big_endian=True)))
    assert np.array_equal(little, big)


def test_window_grows_and_restarts(camera, tiny_checkpoint):
    camera.reset()
    frames = [picture(seed) for seed in range(5)]
    seen = [camera.ask(image_message(f, "rgb8", 0)) for f in frames]
    assert [s.frames_in_window for s in seen] == [1, 2, 3, 4, 4]
    assert np.array_equal(camera.mask_of(seen[-1]), expected_mask(tiny_checkpoint, frames).mask)
    after_gap = camera.good(0, gap_s=6.0)
    assert after_gap.frames_in_window == 1
    repeated = camera.good(0, gap_s=0.0)
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
def test_bad_images_are_rejected_with_a_reason(camera, change, reason):
    before = camera.good(3)
    message = image_message(picture(3), "rgb8", camera.next_stamp())
    for field, value in change.items():
        setattr(message, field, value)
    status = camera.answer(message)
    assert status.event == SegmentationStatus.REJECTED and reason in status.reason
    assert status.frames_rejected == before.frames_rejected + 1
    after = camera.good(3)
    assert after.event == SegmentationStatus.PROCESSED


def test_outputs_share_the_frames_header_and_size(camera):
    harness, ns = camera.harness, camera.ns
    kinds = {"confidence": "mono8", "color": "rgb8", "overlay": "rgb8"}
    outputs = {name: harness.collect(Image, f"{ns}/segmentation/{name}") for name in kinds}
    png = harness.collect(CompressedImage, f"{ns}/segmentation/mask/compressed")
    infos = harness.collect(CameraInfo, f"{ns}/segmentation/camera_info")
    calibration = harness.publisher(CameraInfo, f"{ns}/camera_info")
    wait_until(lambda: calibration.get_subscription_count() > 0)
    k = [100.0, 0.0, 39.5, 0.0, 100.0, 23.5, 0.0, 0.0, 1.0]

    def calibrated() -> bool:
        calibration.publish(CameraInfo(height=48, width=80, k=k))
        camera.good(4)
        return bool(infos) and infos[-1].k[2] > 0

    wait_until(calibrated)
    rgb = picture(4)
    message = stamped(image_message(rgb, "rgb8", 0), camera.next_stamp(), "front_optical")

    def received() -> dict:
        topics = {**outputs, "png": png, "info": infos, "mask": camera.masks}
        found = {name: [m for m in list(got) if m.header == message.header] for name, got in topics.items()}
        return {name: got[0] for name, got in found.items() if got}

    status = camera.answer(message)
    wait_until(lambda: len(received()) == 6)
    frame = received()
    for name, encoding in kinds.items():
        got = frame[name]
        assert got.encoding == encoding, name
        assert (got.height, got.width) == (48, 80), name
    assert status.header == message.header
    confidence, ids = pixels(frame["confidence"]), pixels(frame["mask"])
    assert confidence.min() >= 255 // 14 and ids.max() < 14
    colors = np.frombuffer(frame["color"].data, np.uint8).reshape(48, 80, 3)
    assert np.array_equal(colors, np.asarray(STREET.colors, np.uint8)[ids])
    blended = np.frombuffer(frame["overlay"].data, np.uint8).reshape(48, 80, 3).astype(int)
    assert np.abs(blended - (rgb.astype(int) + colors) / 2).max() <= 1
    decoded = cv2.imdecode(np.frombuffer(frame["png"].data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, ids)
    assert frame["info"].k[2] == pytest.approx(39.5)


def test_label_map_is_latched(camera):
    maps = camera.harness.collect(LabelMap, f"{camera.ns}/segmentation/label_map", LATCHED)
    wait_until(lambda: bool(maps))
    assert [entry.name for entry in maps[-1].labels] == list(STREET.names)
    assert [(e.r, e.g, e.b) for e in maps[-1].labels] == [tuple(c) for c in STREET.colors]


def test_live_parameters(camera):
    assert camera.set("output_size", string_value="32x16").successful
    camera.good(5)
    wait_until(lambda: (camera.masks[-1].width, camera.masks[-1].height) == (32, 16))
    assert camera.set("output_size", string_value="input").successful
    assert camera.set("window", integer_value=2).successful
    for _ in range(3):
        status = camera.good(5)
    assert status.frames_in_window == 2
    assert camera.set("window", integer_value=0).successful  # the checkpoint's, for the tests that follow
    for name, value, words in (
        ("output_size", {"string_value": "big"}, "WIDTHxHEIGHT"),
        ("overlay_alpha", {"double_value": 1.5}, "overlay_alpha"),
        ("device", {"string_value": "gpu"}, "device: unknown"),
        ("image_transport", {"string_value": "compressed"}, "cannot change"),
        ("checkpoint", {"string_value": "/nowhere"}, "no checkpoint"),
    ):
        result = camera.set(name, **value)
        assert not result.successful and words in result.reason, (name, result.reason)


def test_checkpoint_swap_while_running(camera, tiny_checkpoint, tmp_path):
    from conftest import make_checkpoint

    other = make_checkpoint(tmp_path / "other.safetensors", window=3)
    assert camera.set("checkpoint", string_value=str(other)).successful
    camera.node.wait_for("now running")
    for _ in range(4):
        status = camera.good(6)
    assert status.frames_in_window == 3
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(other.read_bytes()[:-1000])
    assert camera.set("checkpoint", string_value=str(broken)).successful
    camera.node.wait_for("the checkpoint was not changed")
    assert camera.good(6).frames_in_window == 3
    # The parameter says what runs, not what failed.
    request = GetParameters.Request(names=["checkpoint"])
    got = camera.harness.call(GetParameters, f"{camera.ns}/segmenter/get_parameters", request)
    assert got.values[0].string_value == str(other)
    # What changes while another one is loading holds for the new one too.
    assert camera.set("checkpoint", string_value=str(tiny_checkpoint)).successful
    assert camera.set("output_size", string_value="16x8").successful
    wait_until(lambda: camera.node.output().count("now running") == 2)
    camera.good(6)
    wait_until(lambda: (camera.masks[-1].width, camera.masks[-1].height) == (16, 8))
    assert camera.set("output_size", string_value="input").successful


def test_a_swap_misses_no_beat(camera, tiny_checkpoint, tmp_path):
    """While another checkpoint loads and warms up, images are processed and diagnostics continue."""
    from conftest import make_checkpoint

    other = make_checkpoint(tmp_path / "wide.safetensors", window=8)
    arrays = camera.harness.collect(DiagnosticArray, "/diagnostics")

    def beats() -> list[float]:
        """Times of the node's diagnostics, s."""
        own = [array.header.stamp for array in list(arrays) if "raw/segmenter" in array.status[0].name]
        return [stamp.sec + stamp.nanosec / 1e9 for stamp in own]

    arrays.clear()
    wait_until(lambda: camera.good(12).event == SegmentationStatus.PROCESSED and len(beats()) >= 4)
    usual = max(np.diff(beats()))
    arrays.clear()
    before = camera.node.output().count("now running")
    assert camera.set("checkpoint", string_value=str(other)).successful
    swapped = False
    while not swapped:
        swapped = camera.node.output().count("now running") > before
        status = camera.good(12)
        assert status.event == SegmentationStatus.PROCESSED
    assert camera.set("checkpoint", string_value=str(tiny_checkpoint)).successful
    wait_until(lambda: camera.node.output().count("now running") == before + 2)
    wait_until(lambda: len(beats()) >= 2)
    assert max(np.diff(beats())) < max(5.0, 3 * usual)  # a beat is 1 s, and more on a busy machine


def test_a_request_is_refused_as_a_whole(camera):
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
    service = f"{camera.ns}/segmenter/set_parameters_atomically"
    request = SetParametersAtomically.Request(parameters=parameters)
    result = camera.harness.call(SetParametersAtomically, service, request).result
    assert not result.successful and "device: unknown" in result.reason
    assert camera.mask_of(camera.good(5)).shape == (48, 80)


def test_when_the_running_checkpoints_file_is_gone(camera, tiny_checkpoint, tmp_path):
    from conftest import make_checkpoint

    gone = make_checkpoint(tmp_path / "gone.safetensors")
    before = camera.node.output().count("now running")
    assert camera.set("checkpoint", string_value=str(gone)).successful
    wait_until(lambda: camera.node.output().count("now running") == before + 1)
    (tmp_path / "broken.safetensors").write_bytes(gone.read_bytes()[:-1000])
    gone.unlink()
    assert camera.set("checkpoint", string_value=str(tmp_path / "broken.safetensors")).successful
    wait_until(lambda: "gone.safetensors stays active, but its parameter" in camera.node.output())
    status = camera.good(6)
    assert status.event == SegmentationStatus.PROCESSED
    assert camera.set("checkpoint", string_value=str(tiny_checkpoint)).successful
    wait_until(lambda: camera.node.output().count("now running") == before + 2)


def test_pause_and_resume(camera):
    service = f"{camera.ns}/segmenter/enable"
    assert camera.harness.call(SetBool, service, SetBool.Request(data=False)).success
    received = camera.status[-1].frames_received
    camera.send(image_message(picture(7), "rgb8", 0))
    assert camera.publisher.wait_for_all_acked(Duration(seconds=PATIENCE_S))
    camera.harness.call(GetParameters, f"{camera.ns}/segmenter/get_parameters", GetParameters.Request())
    assert camera.harness.call(SetBool, service, SetBool.Request(data=True)).success
    status = camera.good(7)
    assert status.frames_received == received + 1


def test_a_flood_is_dropped_and_accounted_for(camera):
    start = camera.good(8)
    messages = [image_message(picture(8), "rgb8", 0) for _ in range(300)]
    for message in messages:
        camera.send(message, gap_s=0.001)
    wait_until(
        lambda: (
            camera.status[-1].event == SegmentationStatus.IDLE
            and camera.status[-1].frames_received > start.frames_received
        ),
    )
    last = camera.status[-1]
    assert last.frames_dropped > start.frames_dropped
    assert last.frames_received == last.frames_processed + last.frames_dropped + last.frames_rejected
    told = [s for s in camera.status if s.event == SegmentationStatus.DROPPED]
    assert len(told) == last.frames_dropped


def test_diagnostics(camera):
    arrays = camera.harness.collect(DiagnosticArray, "/diagnostics")
    camera.good(9)
    wait_until(lambda: any("raw/segmenter" in a.status[0].name for a in arrays))
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


@pytest.mark.parametrize(("kind", "topic"), [("png", "image"), ("jpg", "camera/image")])
def test_compressed_input(harness, start_segmenter, tiny_checkpoint, kind, topic):
    remap = ("-r", f"image:={topic}")
    node = start_segmenter(f"/{kind}", tiny_checkpoint, "-p", "image_transport:=compressed", *remap)
    camera = Camera(harness, node, f"/{kind}", kind=CompressedImage, topic=f"{topic}/compressed")
    rgb = picture(11)
    message = compressed_message(rgb, kind, camera.next_stamp())
    mask = camera.mask_of(camera.answer(message))
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(message.data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.array_equal(mask, expected_mask(tiny_checkpoint, [seen]).mask)
    message.data = message.data[: len(message.data) // 2]
    message.header.stamp.sec += 1
    status = camera.answer(message)
    assert status.event == SegmentationStatus.REJECTED and "truncated" in status.reason
    assert node.stop(signal.SIGTERM) == 0


def test_lifecycle_by_services_and_silence(harness, start_node, tiny_checkpoint, tmp_path):
    node = start_node("segmenter", "-r", "__ns:=/managed", "-p", f"checkpoint:={tiny_checkpoint}")

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return harness.call(ChangeState, "/managed/segmenter/change_state", request, repeat=False).success

    def state() -> str:
        return harness.call(GetState, "/managed/segmenter/get_state", GetState.Request()).current_state.label

    assert state() == "unconfigured"
    node.wait_for("ros2 lifecycle set /managed/segmenter configure")
    assert change(Transition.TRANSITION_CONFIGURE) and state() == "inactive"
    assert change(Transition.TRANSITION_ACTIVATE) and state() == "active"
    node.wait_for("no image on /managed/image yet")
    masks = harness.node.get_publishers_info_by_topic("/managed/segmentation/mask")
    assert change(Transition.TRANSITION_DEACTIVATE) and state() == "inactive"
    assert len(masks) == len(harness.node.get_publishers_info_by_topic("/managed/segmentation/mask")) == 1
    wait_until(lambda: not harness.node.get_subscriptions_info_by_topic("/managed/image"))
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
    assert node.wait() == 2
    assert "nothing of it was executed" in node.output() and "Traceback" not in node.output()


def test_a_parameter_out_of_range_ends_in_one_line(start_node):
    node = start_node("segmenter", "-p", "window:=99")
    assert node.wait() == 2
    assert "window" in node.output() and "Traceback" not in node.output()
