# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Uncertain images: which ones are recorded, what the bag holds, and what a slow or full disk does."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import PATIENCE_S, wait_until
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nodes.camera import Camera
from nodes.encoders import NS, image_message, stamp_ns_of
from vtseg_ros.msg import SegmentationStatus

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import IMAGE, stamp_of
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.nodes import uncertain_recorder
from vtseg_ros.nodes.segmenter_parameters import PARAMETERS
from vtseg_ros.nodes.uncertain_recorder import GROUPS, RunningQuantile, UncertainRecorder, uncertainty

WINDOW = 4
LEAST = 50
FRAMES = 64


def images(count: int, rng: np.random.Generator, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Images of random contrast, of which the network is more or less certain."""
    width, height = size
    return [(rng.integers(0, 256, (height, width, 3)) * rng.random()).astype(np.uint8) for _ in range(count)]


def bags_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("uncertain_*"))


def frames_in(bag: Path) -> dict[int, bytes]:
    """Pixels by stamp."""
    assert (bag / "metadata.yaml").exists()
    with BagReader(bag) as found:
        assert not found.missing
        (topic,) = found.topics
        return {stamp_of(message): bytes(message.data) for _, _, message in found.messages([topic])}


def test_the_running_quantile_equals_a_sorted_list(rng):
    running, scores = RunningQuantile(0.9, kept=30, least=10), rng.random(200).round(2)
    for place, score in enumerate(scores):
        before = np.sort(scores[max(place - 30, 0) : place])
        expected = len(before) >= 10 and score > np.quantile(before, 0.9, method="lower")
        assert running.passes(float(score)) == expected, place


def test_uncertainty_is_one_minus_the_mean_confidence():
    assert uncertainty(np.full((48, 64), 255, np.uint8)) == 0.0
    assert uncertainty(np.full((1, 1), 51, np.uint8)) == pytest.approx(0.8)


@pytest.fixture
def recorder(tmp_path, request):
    """A recorder of all images, and the lines that it logs."""
    options = {"limit_mb": 100, **getattr(request, "param", {})}
    lines: list[str] = []
    made = UncertainRecorder(
        folder=tmp_path / "bags",
        quantile=0.0,
        topics={"": ("/image", IMAGE)},
        error=lambda text: lines.append(f"error: {text}"),
        info=lambda text: lines.append(text),
        **options,
    )
    for number in range(LEAST):  # so that the next ones can pass
        made.add("", None, np.full((4, 4), 255, np.uint8), window=1, restarted=True)
        assert not number or made.recorded == 0
    yield made, lines
    made.close()


def add(made: UncertainRecorder, number: int, size: tuple[int, int] = (8, 8), **options) -> None:
    image = np.full((size[1], size[0], 3), number, np.uint8)
    message = image_message(image, "rgb8", NS + number * NS // 10)
    options = {"window": 2, "restarted": False, **options}
    made.add("", message, np.full((4, 4), 0, np.uint8), **options)


def test_a_slow_disk_drops_images_and_never_waits(recorder, tmp_path, monkeypatch):
    made, _ = recorder
    free, entered, real = threading.Event(), threading.Event(), uncertain_recorder.shutil.disk_usage

    def slow(path):
        entered.set()
        assert free.wait(PATIENCE_S)
        return real(path)

    monkeypatch.setattr(uncertain_recorder.shutil, "disk_usage", slow)
    add(made, 0, restarted=True)
    assert entered.wait(PATIENCE_S)
    for number in range(1, GROUPS + 4):
        add(made, number)
    assert made.dropped == 3 and made.facts()["uncertain images dropped"] == "3"
    free.set()
    made.close()
    (bag,) = bags_in(tmp_path / "bags")
    assert sorted(frames_in(bag)) == [NS + number * NS // 10 for number in range(GROUPS + 1)]
    assert made.recorded == GROUPS + 1


@pytest.mark.parametrize("recorder", [{"limit_mb": 1}], indirect=True)
def test_the_limit_holds_for_all_bags_of_the_folder(recorder, tmp_path):
    made, lines = recorder
    old = tmp_path / "bags" / "uncertain_before" / "x.mcap"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(500_000))
    for number in range(4):
        add(made, number, size=(250, 200), restarted=True)  # 150 kB
    made.close()
    assert [line for line in lines if "no longer recorded" in line] == [
        "uncertain images are no longer recorded: 1 MB are recorded, the limit record_max_mb"
    ]
    assert len(frames_in(bags_in(tmp_path / "bags")[0])) == made.recorded == 3
    assert sum(file.stat().st_size for file in tmp_path.glob("bags/*/*.mcap")) < 1_000_000


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills(recorder, small_disk):
    made, lines = recorder
    made._folder = small_disk
    add(made, 0, restarted=True)
    wait_until(lambda: made.recorded == 1)
    (small_disk / "other").write_bytes(bytes(20 << 20))
    add(made, 1, restarted=True)
    wait_until(lambda: bool(made.stopped))
    add(made, 2, restarted=True)
    made.close()
    assert [line for line in lines if line.startswith("error")] == [
        f"error: uncertain images are no longer recorded: the disk of {small_disk} is full"
    ]
    assert list(frames_in(bags_in(small_disk)[0])) == [NS]


def test_a_write_that_fails(recorder, small_disk, monkeypatch):
    """As above, but the space goes between the look and the write."""
    made, lines = recorder
    made._folder = small_disk
    monkeypatch.setattr(uncertain_recorder, "RESERVE_BYTES", -(1 << 30))
    for number in range(40):
        add(made, number, size=(1000, 1000), restarted=True)
        wait_until(lambda number=number: made.recorded > number or bool(made.stopped))
    made.close()
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1 and "No space left" in errors[0] and "\n" not in errors[0], errors
    assert 0 < made.recorded < 40
    with BagReader(bags_in(small_disk)[0]) as reader:  # without its end
        kept = [
            stamp_of(message) for _, _, message in reader.messages(["/image"], on_corrupt=lambda *_: None)
        ]
    assert kept == [NS + number * NS // 10 for number in range(len(kept))] and len(kept) > 5


def test_parameters_are_checked(tmp_path):
    checks = {param.name: param.problem for param in PARAMETERS}
    (tmp_path / "file").touch()
    assert "not a folder" in checks["record_uncertain"](str(tmp_path / "file"))
    assert "not a folder" in checks["record_uncertain"](str(tmp_path / "file" / "below"))
    for good in ("", str(tmp_path), str(tmp_path / "new" / "folder")):
        assert checks["record_uncertain"](good) == ""
    for name, bad in (("record_max_mb", 0), ("record_quantile", 1.5), ("record_quantile", float("nan"))):
        assert name in checks[name](bad)


@pytest.fixture
def expected(tiny_checkpoint, rng):
    """Images, and the places of those that belong in the bag: uncertain ones with their windows."""
    shown = images(FRAMES, rng)
    predictor = VideoPredictor(tiny_checkpoint, device="cpu")
    scores: list[float] = []
    wanted: set[int] = set()
    for place, image in enumerate(shown):
        score = 1 - predictor.step(image, NS + place * NS // 10).confidence[::4, ::4].mean() / 255
        if place >= LEAST and score > np.quantile(scores, 0.8, method="lower"):
            wanted |= set(range(max(place - WINDOW + 1, 0), place + 1))
        scores.append(score)
    assert 3 < len(wanted) < FRAMES - LEAST
    return shown, wanted


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT"])
def test_a_running_segmenter(harness, start_segmenter, tiny_checkpoint, expected, tmp_path, end):
    """Two activations, each with a bag of its own: the first ends by deactivation, the second by a signal."""
    shown, wanted = expected
    namespace, folder = f"/recording_{end.lower()}", tmp_path / "bags"
    node = start_segmenter(
        namespace,
        tiny_checkpoint,
        *("-p", f"record_uncertain:={folder}"),
        *("-p", "record_quantile:=0.8", "-p", "device:=cpu"),
    )
    camera = Camera(harness, node, namespace)
    diagnostics = harness.collect(DiagnosticArray, "/diagnostics")

    def change(transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert harness.call(ChangeState, f"{namespace}/segmenter/change_state", request, repeat=False).success

    def facts() -> dict[str, str]:
        own = [s for array in diagnostics for s in array.status if s.name.startswith(namespace.lstrip("/"))]
        return {pair.key: pair.value for pair in own[-1].values} if own else {}

    for activation in (1, 2):
        messages = [image_message(image, "rgb8", camera.next_stamp()) for image in shown]
        for message in messages:
            assert camera.answer(message).event == SegmentationStatus.PROCESSED
        wait_until(lambda: int(facts().get("uncertain images recorded", 0)) > 0, node.output)
        assert facts()["uncertain images dropped"] == "0" and facts()["uncertain recording"] == "on"
        if activation == 1:
            change(Transition.TRANSITION_DEACTIVATE)
        else:
            assert node.stop(getattr(signal, end)) == 0
        assert len(bags_in(folder)) == activation
        # Names contain seconds; of two equal ones the second has a suffix, so that they are in order.
        bag = bags_in(folder)[-1]
        pixels = {stamp_ns_of(messages[place]): bytes(messages[place].data) for place in sorted(wanted)}
        assert frames_in(bag) == pixels
        with BagReader(bag) as reader:
            assert list(reader.topics) == [f"{namespace}/image"]
        if activation == 1:
            diagnostics.clear()
            change(Transition.TRANSITION_ACTIVATE)
            camera.connect()


def test_a_folder_that_cannot_be_used_is_one_line(start_node, tiny_checkpoint, tmp_path):
    (tmp_path / "file").touch()
    node = start_node(
        "segmenter",
        *("-r", "__ns:=/refused", "-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"),
        *("-p", f"record_uncertain:={tmp_path / 'file'}"),
    )
    assert node.wait() == 2
    assert "record_uncertain: not a folder" in node.output() and "Traceback" not in node.output()
