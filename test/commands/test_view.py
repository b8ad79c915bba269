# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg view`: the recording, read back with Rerun's own reader, holds what was segmented, recorded or published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

rerun = pytest.importorskip("rerun")

from bags.bagtools import CLASSES, START_NS, ids_of, picture, write_bag
from conftest import wait_until

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import NS, stamp_of
from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET

STAMPS_S = [0.0, 0.1, 0.2]
STAMPS = [START_NS + round(seconds * NS) for seconds in STAMPS_S]


class Read:
    """A recording: entity to {stamp in ns: {component: value}}; `static` has what is not on the timeline."""

    def __init__(self, path: Path) -> None:
        from rerun.chunk import RrdReader

        self.entities: dict[str, dict[int, dict]] = {}
        self.static: dict[str, dict] = {}
        for chunk in RrdReader(path).stream():
            name = str(chunk.entity_path).lstrip("/")
            batch = chunk.to_record_batch()
            values = {field: batch.column(field) for field in batch.schema.names if ":" in field}
            for row in range(batch.num_rows):
                found = {field.split(":")[1]: column[row].as_py() for field, column in values.items()}
                if chunk.is_static:
                    self.static[name] = found
                else:
                    self.entities.setdefault(name, {})[batch.column("stamp")[row].value] = found

    def mask(self, entity: str, stamp: int) -> np.ndarray:
        value = self.entities[entity][stamp]
        shape = value["format"][0]
        return np.array(value["buffer"][0], np.uint8).reshape(shape["height"], shape["width"])

    def classes(self, entity: str) -> dict[int, tuple[str, int]]:
        """Class id to name and colour, 0xRRGGBBAA."""
        entries = [entry["class_description"]["info"] for entry in self.static[entity]["context"][0]]
        return {entry["id"]: (entry["label"], entry["color"]) for entry in entries}


def check_classes(found: dict[int, tuple[str, int]], labels) -> None:
    expected = {
        index: (name, int.from_bytes(bytes([*color, 255]), "big"))
        for index, (name, color) in enumerate(zip(labels.names, labels.colors))
    }
    assert found == {**expected, 255: ("unlabelled", 0xFF)}


@pytest.fixture(scope="module")
def masks(tmp_path_factory, tiny_checkpoint) -> tuple[Path, Path]:
    """A bag of images, and the bag of masks that vtseg segment makes of it."""
    folder = tmp_path_factory.mktemp("view")
    images = write_bag(folder / "images", STAMPS_S, label_stride=0)
    assert (
        main(["segment", str(images), "--out", str(folder / "masks"), "--checkpoint", str(tiny_checkpoint)])
        == 0
    )
    return images, folder / "masks"


def recorded_masks(bag: Path) -> dict[int, np.ndarray]:
    with BagReader(bag) as reader:
        topics = ["/segmentation/mask/compressed"]
        return {stamp_of(message): decode_label(message) for _, _, message in reader.messages(topics)}


def test_a_bag_is_segmented(masks, tiny_checkpoint, tmp_path, capsys):
    images, segmented = masks
    target = tmp_path / "out.rrd"
    assert main(["view", str(images), "--checkpoint", str(tiny_checkpoint), "--save", str(target)]) == 0
    assert "3 camera/mask" in capsys.readouterr().out
    found = Read(target)
    logged = {
        "camera/image",
        "camera/mask",
        "camera/confidence",
        "latency/camera/inference_ms",
        "latency/camera/preprocess_ms",
    }
    assert set(found.entities) == logged
    assert all(sorted(found.entities[name]) == STAMPS for name in logged)
    expected = recorded_masks(segmented)
    for stamp in STAMPS:
        np.testing.assert_array_equal(found.mask("camera/mask", stamp), expected[stamp])
        assert found.mask("camera/confidence", stamp).shape == (32, 64)
        assert found.entities["latency/camera/inference_ms"][stamp]["scalars"][0] > 0
    jpeg = np.array(found.entities["camera/image"][STAMPS[1]]["blob"][0], np.uint8)
    rgb = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(rgb.astype(int) - picture(1)).max() < 20
    check_classes(found.classes("camera"), STREET)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]


def test_recorded_masks_next_to_their_images(masks, tmp_path):
    images, segmented = masks
    target = tmp_path / "out.rrd"
    assert main(["view", str(images), "--masks", str(segmented), "--save", str(target)]) == 0
    found, expected = Read(target), recorded_masks(segmented)
    assert set(found.entities) == {"camera/image", "camera/mask"}
    for stamp in STAMPS:
        np.testing.assert_array_equal(found.mask("camera/mask", stamp), expected[stamp])
    check_classes(found.classes("camera"), STREET)


def test_only_masks(masks, tmp_path, capsys):
    target = tmp_path / "out.rrd"
    assert main(["view", str(masks[1]), "--save", str(target)]) == 0
    assert set(Read(target).entities) == {"camera/mask"}
    assert "without images" in capsys.readouterr().err


def test_a_recorded_segmenter_with_status_and_confidence(tmp_path):
    """Bag times differ from stamps; a damaged mask is left out; a dropped frame has no latency."""
    from vtseg_ros.bags.messages import typestore

    types = typestore().types
    status = types["vtseg_ros/msg/SegmentationStatus"]
    header, stamp_type = types["std_msgs/msg/Header"], types["builtin_interfaces/msg/Time"]
    numbers = dict.fromkeys(
        ["frames_in_window", "frames_received", "frames_processed", "frames_dropped", "frames_rejected"], 1
    )
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_label_map("/front/segmentation/label_map", CLASSES, START_NS)
        for index, stamp in enumerate(STAMPS):
            bag.write_image("/front/image", picture(index), stamp, "cam")
            bag.write_label("/front/segmentation/mask", ids_of(index), stamp, "cam")
            bag.write_label("/front/segmentation/confidence", ids_of(index) // 2, stamp, "cam")
            message = status(
                header=header(stamp=stamp_type(sec=stamp // NS, nanosec=stamp % NS), frame_id="cam"),
                camera="front",
                event=3 if index == 1 else 0,
                reason="",
                **numbers,
                queue_s=0.001,
                preprocess_s=0.002,
                inference_s=0.5,
                total_s=0.503 + index,
            )
            bag.write("/front/segmentation/status", "vtseg_ros/msg/SegmentationStatus", message, stamp + 7)
    target = tmp_path / "out.rrd"
    assert main(["view", str(tmp_path / "bag"), "--save", str(target)]) == 0
    found = Read(target)
    parts = {f"latency/front/{part}_ms" for part in ("queue", "preprocess", "inference", "total")}
    assert set(found.entities) == {"front/image", "front/mask", "front/confidence", *parts}
    total = found.entities["latency/front/total_ms"]
    assert {stamp: value["scalars"][0] for stamp, value in total.items()} == {
        STAMPS[0]: pytest.approx(503, abs=0.01),
        STAMPS[2]: pytest.approx(2503, abs=0.01),
    }
    np.testing.assert_array_equal(found.mask("front/mask", STAMPS[2]), ids_of(2))
    np.testing.assert_array_equal(found.mask("front/confidence", STAMPS[2]), ids_of(2) // 2)
    check_classes(found.classes("front"), CLASSES)


def test_a_video(tmp_path, tiny_checkpoint):
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 32))
    for number in range(4):
        writer.write(picture(number)[..., ::-1].copy())
    writer.release()
    target = tmp_path / "out.rrd"
    options = ["--checkpoint", str(tiny_checkpoint), "--frames", "3", "--save", str(target)]
    assert main(["view", str(path), *options]) == 0
    assert sorted(Read(target).entities["camera/mask"]) == [NS, NS + NS // 10, NS + 2 * NS // 10]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "SOURCE: expected a bag, a video or --topics, got nothing"),
        (["BAG", "--topics"], "got both"),
        (["no_such", "--save", "OUT"], "no_such: no such bag or video"),
        (
            ["BAG", "--masks", "BAG", "--save", "OUT"],
            "no masks; expected a segmenter's topics, got /camera/label_map, /camera/image",
        ),
        (
            ["BAG", "--masks", "BAG", "--checkpoint", "street_tiny"],
            "expected neither --checkpoint nor --topics",
        ),
        (["BAG", "--save", "OUT", "--web"], "--save and --web exclude each other"),
        (["BAG", "--save", "BAG"], "the file exists; expected a new file"),
        (["BAG", "--save", "no_folder/out.rrd"], "no such folder"),
    ],
)
def test_bad_arguments(masks, tmp_path, capsys, arguments, problem):
    places = {"BAG": str(masks[0]), "OUT": str(tmp_path / "out.rrd")}
    assert main(["view", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk(masks, tmp_path):
    """Cut anywhere, the file is removed and the failure reported."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=40k tmpfs {small}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    script = f'{mount} && head -c 24000 /dev/zero > {small}/other && "$@"; echo "rc $?"; ls -A {small}'
    view = [sys.executable, "-m", "vtseg_ros.cli", "view", str(masks[1]), "--save", str(small / "out.rrd")]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *view], capture_output=True, text=True)
    assert done.stdout.split("rc ")[1].split() == ["2", "other"], done.stdout + done.stderr
    assert "the recording is not complete" in done.stderr and "Is the disk full?" in done.stderr


def test_without_a_display(masks, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["view", str(masks[1])]) == 2
    assert "no display; expected DISPLAY or WAYLAND_DISPLAY" in capsys.readouterr().err


def test_a_viewer_that_does_not_open(masks, tmp_path):
    """With a display that does not exist the viewer's process ends: reported in one line."""
    environment = {**os.environ, "HOME": str(tmp_path), "DISPLAY": ":4711"}
    command = [sys.executable, "-m", "vtseg_ros.cli", "view", str(masks[1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the recording is not complete" in done.stderr or "the viewer does not start" in done.stderr


def test_without_rerun(masks, tmp_path):
    blocked = "import sys; sys.modules['rerun'] = None; from vtseg_ros.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", blocked, "view", str(masks[1]), "--save", str(tmp_path / "out.rrd")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'vtseg_ros[view]'" in done.stderr, done.stderr


def test_analytics_are_turned_off(tmp_path):
    code = "from vtseg_ros.viewing import turn_analytics_off; turn_analytics_off()"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (path,) = tmp_path.rglob("analytics.json")
    assert json.loads(path.read_text())["analytics_enabled"] is False


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_web_viewer_is_served(masks, start_process, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "vtseg_ros.cli", "view", str(masks[1]), "--web", "--port", str(port)]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    viewer = start_process(command, environment)
    viewer.wait_for("open http")

    def served() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
                return b"rerun" in answer.read().lower()
        except urllib.error.URLError:
            return False

    wait_until(served, viewer.output)
    assert viewer.stop(signal.SIGTERM) in (0, 1), viewer.output()
    assert "Traceback" not in viewer.output(), viewer.output()


def test_a_running_segmenter(start_node, start_cli, harness, tiny_checkpoint, tmp_path):
    from nodes.encoders import image_message
    from sensor_msgs.msg import Image

    node = start_node(
        "segmenter", "-p", "autostart:=true", "-p", f"checkpoint:={tiny_checkpoint}", "-r", "__ns:=/live"
    )
    node.wait_for("window 4")
    publisher = harness.publisher(Image, "/live/image")
    masks = harness.collect(Image, "/live/segmentation/mask")
    confidences = harness.collect(Image, "/live/segmentation/confidence")
    target = tmp_path / "live.rrd"
    viewer = start_cli("view", "--topics", "/live/image", "--namespace", "live", "--save", target)
    viewer.wait_for("logging /live/image")
    wait_until(lambda: publisher.get_subscription_count() == 2, viewer.output)
    for number in range(1, 200):
        publisher.publish(image_message(picture(number), "rgb8", number * NS))
        wait_until(lambda number=number: len(masks) >= number, node.output)
        if number >= 5 and len(confidences) >= 3:
            break
    time.sleep(1.0)  # what was published last is on its way to the viewer
    assert viewer.stop() == 0 and "Traceback" not in viewer.output(), viewer.output()
    found = Read(target)
    assert {"live/image", "live/mask", "live/confidence", "latency/live/total_ms"} <= set(found.entities)
    published = {
        m.header.stamp.sec * NS: np.frombuffer(m.data, np.uint8).reshape(m.height, m.width) for m in masks
    }
    logged = found.entities["live/mask"]
    assert len(logged) >= 3 and set(logged) <= set(published)
    for stamp in logged:
        np.testing.assert_array_equal(found.mask("live/mask", stamp), published[stamp])
    check_classes(found.classes("live"), STREET)
