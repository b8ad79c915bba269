# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Player, segmenter, evaluator and recorder as separate processes: every frame accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import PATIENCE_S, wait_until
from faults.ended import run_programs
from nodes.encoders import NS, image_message
from nodes.harness import LATCHED, Harness
from rcl_interfaces.srv import GetParameters
from rclpy.duration import Duration
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool
from vtseg_ros.msg import EvaluationReport, LabelEntry, LabelMap, SegmentationStatus

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_image
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.evaluation.metrics import ConfusionMatrix


def play(bag, environment, tmp_path, *arguments):
    sent = tmp_path / "sent.json"
    command = [sys.executable, "-m", "vtseg_ros.cli", "play", str(bag), "--json", str(sent), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done, json.loads(sent.read_text())["sent"] if sent.exists() else {}


class Ending:
    """The end of a replay: the mask of the last processed frame comes after its status.

    Args:
        harness: subscribes to both before the replay.
        nodes: that receive the masks.
    """

    def __init__(self, harness: Harness, *nodes: str) -> None:
        self._harness, self._nodes = harness, nodes
        self._masks = harness.collect(Image, "/segmentation/mask")
        self._statuses = harness.collect(SegmentationStatus, "/segmentation/status")
        self._masks.clear()
        self._statuses.clear()

    def wait(self) -> None:
        """Wait until the segmenter has published the last mask, and the nodes have worked off what they received."""
        wait_until(lambda: any(s.event == SegmentationStatus.IDLE for s in self._statuses[-1:]))
        processed = [s for s in self._statuses if s.event == SegmentationStatus.PROCESSED]
        wait_until(lambda: self._masks and self._masks[-1].header.stamp == processed[-1].header.stamp)
        for node in self._nodes * 2:  # an executor takes messages before calls
            self._harness.call(GetParameters, f"/{node}/get_parameters", GetParameters.Request())


@pytest.mark.parametrize("rate", ["4", pytest.param("0.5", marks=pytest.mark.long)])
def test_replay_accounts_for_every_frame(
    start_node, harness, ros_environment, street_bag, tiny_checkpoint, tmp_path, rate
):
    names = ["-r", "image:=/camera/image", "-r", "label:=/camera/label", "-p", "use_sim_time:=true"]
    segmenter = start_node(
        "segmenter", *names, "-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"
    )
    evaluator = start_node("evaluator", *names, "-p", f"output_dir:={tmp_path}", "-p", "input_qos:=reliable")
    segmenter.wait_for("window 4")
    reports = harness.collect(EvaluationReport, "/evaluation", LATCHED)
    reports.clear()  # those of the test before
    ending = Ending(harness, "evaluator")
    waits = ["--wait-for", "/camera/image", "/camera/image", "/camera/label"]
    done, sent = play(street_bag, ros_environment, tmp_path, "--clock", "--rate", rate, *waits)
    assert done.returncode == 0, done.stderr
    assert sent["/camera/image"] == sent["/camera/label"] == 30
    wait_until(lambda: reports and reports[-1].frames_seen == reports[-1].labelled_frames == 30)
    ending.wait()
    assert evaluator.stop() == 0 and segmenter.stop() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    told = {name: report[f"frames_{name}"] for name in ("processed", "dropped", "rejected", "lost")}
    assert report["frames_seen"] == 30 == sum(told.values()), report
    assert told["processed"] > 0 and report["frames_received"] == 30 - told["lost"]
    assert report["labelled_frames"] == 30 == report["labelled_processed"] + report["labelled_unprocessed"]
    assert report["labelled_scored"] == report["labelled_processed"] == report["systems"][0]["frames"]
    assert 0 < report["latency_p50_s"] <= report["latency_p95_s"] <= report["latency_p99_s"]

    class Images(HTMLParser):
        sources: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.sources += [value for key, value in attrs if key in ("src", "href")]

    parser = Images()
    parser.feed((tmp_path / "report.html").read_text())
    assert parser.sources and all(source.startswith("data:image/") for source in parser.sources)


def test_a_looped_and_paused_bag_is_accounted_for(
    start_node, start_cli, ros_environment, street_bag, tiny_checkpoint, tmp_path
):
    names = ["-r", "image:=/camera/image", "-r", "label:=/camera/label", "-p", "use_sim_time:=true"]
    segmenter = start_node(
        "segmenter",
        *names,
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
        "-p",
        "input_qos:=reliable",
    )
    evaluator = start_node("evaluator", *names, "-p", f"output_dir:={tmp_path}", "-p", "input_qos:=reliable")
    segmenter.wait_for("window 4")
    sent_json = tmp_path / "sent.json"
    command = [
        "play",
        street_bag,
        "--clock",
        "--loop",
        "--rate",
        "2",
        "--start-paused",
        "--json",
        sent_json,
        "--wait-for",
        "/camera/image",
        "/camera/image",
        "/camera/label",
    ]
    harness = Harness(ros_environment)
    player = start_cli(*command)
    try:
        reports = harness.collect(EvaluationReport, "/evaluation", LATCHED)
        clocks = harness.collect(Clock, "/clock")
        ending = Ending(harness, "evaluator")

        def seen() -> int:
            return reports[-1].frames_seen if reports else 0

        def pause(yes: bool) -> None:
            assert harness.call(SetBool, "/player/pause", SetBool.Request(data=yes)).success

        wait_until(lambda: len(clocks) > 20)
        assert seen() == 0 and clocks[-1] == clocks[0]  # paused: the clock is published, but does not advance
        pause(False)
        wait_until(lambda: seen() > 5, evaluator.output)
        pause(True)
        wait_until(lambda: len(clocks) > 20 and clocks[-1] == clocks[-20])

        def nothing_more() -> bool:
            before = seen()
            time.sleep(1.2)  # longer than the period of the reports
            return seen() == before > 5

        wait_until(nothing_more)
        pause(False)
        wait_until(lambda: seen() > 65, evaluator.output)  # into the third pass
        assert player.stop() == 0, player.output()
        sent = json.loads(sent_json.read_text())["sent"]
        wait_until(lambda: seen() == sent["/camera/image"], evaluator.output)
        ending.wait()
    finally:
        harness.close()
    assert evaluator.stop() == 0 and segmenter.stop() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    told = [report[f"frames_{name}"] for name in ("processed", "dropped", "rejected", "lost")]
    assert report["frames_seen"] == sent["/camera/image"] == sum(told) > 65, (report, sent)
    assert report["labelled_frames"] == sent["/camera/label"]
    assert report["labelled_frames"] == report["labelled_processed"] + report["labelled_unprocessed"]
    assert report["labelled_scored"] == report["labelled_processed"] > 0


def test_recorded_masks_score_as_the_evaluator_says(
    start_node, start_process, harness, ros_environment, street_bag, tiny_checkpoint, tmp_path
):
    names = ["-r", "image:=/camera/image", "-r", "label:=/camera/label"]
    segmenter = start_node(
        "segmenter",
        *names,
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
        "-p",
        "input_qos:=reliable",
    )
    evaluator = start_node("evaluator", *names, "-p", f"output_dir:={tmp_path}", "-p", "input_qos:=reliable")
    segmenter.wait_for("window 4")
    command = [sys.executable, "-m", "vtseg_ros.nodes.recorder", str(tmp_path / "masks")]
    recorder = start_process(command, ros_environment)
    recorder.wait_for("recording")
    ending = Ending(harness, "evaluator", "recorder")
    waits = ["--wait-for", "/camera/image", "/camera/image", "/camera/label"]
    play(street_bag, ros_environment, tmp_path, "--rate", "0.7", *waits)
    ending.wait()
    assert [node.stop() for node in (evaluator, segmenter, recorder)] == [0, 0, 0], recorder.output()
    report = json.loads((tmp_path / "report.json").read_text())
    with BagReader(street_bag) as bag:
        labels = {
            stamp_of(m): (decode_label(m), m.header.frame_id) for _, _, m in bag.messages(["/camera/label"])
        }
        images = sum(decode_image(m).size > 0 for _, _, m in bag.messages(["/camera/image"]))
    matrix = ConfusionMatrix(14)
    with BagReader(tmp_path / "masks") as bag:
        assert bag.topics["/segmentation/mask/compressed"].count == report["frames_processed"]
        for _, _, message in bag.messages(["/segmentation/mask/compressed"]):
            truth, frame_id = labels[stamp_of(message)]
            assert message.header.frame_id == frame_id
            matrix.update(decode_label(message), truth)
    assert images == 30 and report["frames_processed"] > 0
    assert np.isclose(report["systems"][0]["miou"], matrix.miou(), atol=1e-3)


def test_what_a_bag_says_of_itself_is_not_scored(
    start_node, harness, ros_environment, street_bag, tiny_checkpoint, tmp_path
):
    """Masks that were recorded with the images are perfect here; images and labels come raw and compressed."""
    with BagReader(street_bag) as bag, BagWriter(tmp_path / "robot") as robot:
        for topic, kind, time_ns, data in bag.raw(["/camera/image", "/camera/label", "/camera/label_map"]):
            robot.write_raw(topic, kind, data, time_ns)
            message = bag.read(topic, time_ns)
            if topic == "/camera/label_map":
                robot.write_raw("/segmentation/label_map", kind, data, time_ns)
                continue
            stamp = stamp_of(message)
            if topic == "/camera/image":
                robot.write_image(
                    f"{topic}/compressed", decode_image(message), stamp, "camera", compressed=True
                )
            else:
                robot.write_label(
                    f"{topic}/compressed", decode_label(message), stamp, "camera", compressed=True
                )
                robot.write_label("/segmentation/mask", decode_label(message), stamp, "camera")
    names = [
        part
        for topic in ("image", "label")
        for suffix in ("", "/compressed")
        for part in ("-r", f"{topic}{suffix}:=/camera/{topic}{suffix}")
    ]
    segmenter = start_node(
        "segmenter",
        *names,
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
        "-p",
        "input_qos:=reliable",
    )
    evaluator = start_node("evaluator", *names, "-p", f"output_dir:={tmp_path}", "-p", "input_qos:=reliable")
    segmenter.wait_for("window 4")
    exclude = ["--exclude-regex", "(^|/)segmentation/", "--rate", "0.7"]
    waits = ["--wait-for", "/camera/image", "/camera/image", "/camera/label", "/camera/label/compressed"]
    done, sent = play(tmp_path / "robot", ros_environment, tmp_path, *exclude, *waits)
    assert done.returncode == 0 and not any("segmentation" in topic for topic in sent), done.stderr
    assert segmenter.stop() == 0 and evaluator.stop() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    told = {name: report[f"frames_{name}"] for name in ("processed", "dropped", "rejected", "lost")}
    assert report["frames_seen"] == report["labelled_frames"] == sum(told.values()) == 30, report
    assert told["processed"] > 0 and report["systems"][0]["miou"] < 50
    assert report["systems"][0]["checkpoint"] is None and report["systems"][0]["window"] is None


def label_image(ids: np.ndarray, stamp: int) -> Image:
    """(H, W) uint8 class ids as a message."""
    message = Image(height=ids.shape[0], width=ids.shape[1], step=ids.shape[1], encoding="mono8")
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, NS)
    message.data = ids.tobytes()
    return message


def test_the_evaluator_without_labels_and_with_few_and_late_ones(harness, start_node, tmp_path):
    """Steadiness needs no label; consistency over labels needs one on each frame; a late label is scored."""
    evaluator = start_node(
        "evaluator", "-r", "__ns:=/judge", "-p", f"output_dir:={tmp_path}", "-p", "input_qos:=reliable"
    )
    images, labels, masks = (
        harness.publisher(Image, f"/judge/{n}") for n in ("image", "label", "segmentation/mask")
    )
    maps = harness.publisher(LabelMap, "/judge/segmentation/label_map", LATCHED)
    status = harness.publisher(SegmentationStatus, "/judge/segmentation/status")
    reports = harness.collect(EvaluationReport, "/judge/evaluation", LATCHED)
    for publisher in (images, labels, masks, maps, status):
        wait_until(lambda p=publisher: p.get_subscription_count() == 1, evaluator.output)
    maps.publish(LabelMap(labels=[LabelEntry(id=i, name=name) for i, name in enumerate("ab")]))
    assert maps.wait_for_all_acked(Duration(seconds=PATIENCE_S))
    rng, ids = np.random.default_rng(1), np.zeros((32, 64), np.uint8)
    ids[:, 30:] = 1
    picture = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)

    def frame(number: int, label: bool) -> None:
        stamp = (100 + number) * NS // 10
        images.publish(image_message(picture, "rgb8", stamp))
        masks.publish(label_image(ids, stamp))
        if label:
            labels.publish(label_image(ids, stamp))
        header = label_image(ids, stamp).header
        status.publish(SegmentationStatus(header=header, event=SegmentationStatus.PROCESSED))
        time.sleep(0.05)

    def latest() -> EvaluationReport:
        return reports[-1] if reports else EvaluationReport()

    for number in range(24):
        frame(number, label=number > 0 and number % 2 == 0)
    wait_until(lambda: latest().labelled_processed == 11, lambda: str(latest()))
    wait_until(lambda: latest().temporal_consistency > 99, lambda: str(latest()))
    assert latest().miou == 100.0 and np.isnan(latest().mvc8)
    labels.publish(label_image(ids, 100 * NS // 10))  # of the first frame, with nothing after it
    wait_until(lambda: latest().labelled_frames == latest().labelled_processed == 12, lambda: str(latest()))
    assert latest().frames_seen == 24 and latest().frames_lost == 0
    for number in range(24, 33):
        frame(number, label=True)
    wait_until(lambda: latest().mvc8 == 100.0, lambda: str(latest()))
    assert evaluator.stop() == 0


def test_the_evaluator_scores_through_a_class_map(harness, start_node, tmp_path):
    """Masks of a, b, c and labels of x = {a, c} and y = {b}: 6 of 8 columns of x are right, y's 2 and 2 of x."""
    (tmp_path / "map.yaml").write_text("x: [a, c]\ny: [b]\n")
    evaluator = start_node(
        "evaluator",
        "-r",
        "__ns:=/mapped",
        "-p",
        f"output_dir:={tmp_path}",
        "-p",
        "input_qos:=reliable",
        "-p",
        f"class_map:={tmp_path / 'map.yaml'}",
    )
    labels, masks = (harness.publisher(Image, f"/mapped/{n}") for n in ("label", "segmentation/mask"))
    maps = harness.publisher(LabelMap, "/mapped/segmentation/label_map", LATCHED)
    status = harness.publisher(SegmentationStatus, "/mapped/segmentation/status")
    reports = harness.collect(EvaluationReport, "/mapped/evaluation", LATCHED)
    for publisher in (labels, masks, maps, status):
        wait_until(lambda p=publisher: p.get_subscription_count() == 1, evaluator.output)
    # One that lacks a class of the map is named, and the next one is taken.
    maps.publish(LabelMap(labels=[LabelEntry(id=0, name="a"), LabelEntry(id=1, name="b")]))
    evaluator.wait_for("unknown source class; expected one of a, b, got 'c'")
    maps.publish(LabelMap(labels=[LabelEntry(id=i, name=name) for i, name in enumerate("abc")]))
    mask, truth = np.zeros((4, 10), np.uint8), np.zeros((4, 10), np.uint8)
    mask[:, 3:6], mask[:, 6:] = 2, 1
    truth[:, 8:] = 1
    masks.publish(label_image(mask, NS))
    labels.publish(label_image(truth, NS))
    status.publish(
        SegmentationStatus(header=label_image(mask, NS).header, event=SegmentationStatus.PROCESSED)
    )
    wait_until(lambda: reports and not np.isnan(reports[-1].miou), lambda: str(reports))
    assert list(reports[-1].class_names) == ["x", "y"]
    assert list(reports[-1].iou) == pytest.approx([100 * 6 / 8, 100 * 2 / 4])
    assert evaluator.stop() == 0
    system = json.loads((tmp_path / "report.json").read_text())["systems"][0]
    assert system["iou"] == {"x": 75.0, "y": 50.0}


def test_an_evaluator_with_a_wrong_class_map_does_not_start(start_node, tmp_path):
    (tmp_path / "map.yaml").write_text("x: 3\n")
    evaluator = start_node("evaluator", "-r", "__ns:=/wrong", "-p", f"class_map:={tmp_path / 'map.yaml'}")
    assert evaluator.wait() != 0
    assert "map.yaml: x: not source classes" in evaluator.output() and "Traceback" not in evaluator.output()


def test_a_camera_that_no_topic_can_name(start_node):
    node = start_node("evaluator", "-p", "camera:=1")
    assert node.wait() == 2
    assert (
        "camera: not usable in a topic name; expected letters, digits and _, no digit first, got '1'"
        in node.output()
    )


def test_player_refuses_in_one_line(ros_environment, street_bag, tmp_path):
    refused = (
        ([str(tmp_path / "none")], "no bag"),
        ([str(street_bag), "--rate", "0"], "--rate"),
        ([str(street_bag), "--topics", "/nope"], "no topic /nope"),
        ([str(street_bag), "--remap", "x"], "--remap"),
        ([str(street_bag), "--exclude-regex", "("], "not a regular expression"),
        (
            [str(street_bag), "--wait-for", "/camera/image", "/camera/image/compressed"],
            "publishes nothing on /camera/image/compressed; expected topics of",
        ),
        (
            [str(street_bag), "--exclude-regex", "image$", "--wait-for", "/camera/image"],
            "publishes nothing on",
        ),
    )
    ended = run_programs([("cli", ["play", *arguments]) for arguments, _ in refused], ros_environment)
    for (code, errors), (_, words) in zip(ended, refused, strict=True):
        assert code == 2 and words in errors and "Traceback" not in errors, errors


@pytest.mark.long  # compressed input and recorded masks are tested with fewer frames
def test_real_compressed_video(start_node, start_process, ros_environment, camvid, tiny_checkpoint, tmp_path):
    """CamVid's validation bag: a mask for every frame processed, with the input's stamp and frame_id."""
    names = ["-r", "image/compressed:=/camera/image/compressed", "-p", "image_transport:=compressed"]
    segmenter = start_node(
        "segmenter",
        *names,
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
        "-p",
        "input_qos:=reliable",
    )
    segmenter.wait_for("window 4")
    command = [sys.executable, "-m", "vtseg_ros.nodes.recorder", str(tmp_path / "masks")]
    recorder = start_process(command, ros_environment)
    try:
        done, sent = play(
            camvid / "camvid_val", ros_environment, tmp_path, "--wait-for", "/camera/image/compressed"
        )
    finally:
        code = recorder.stop()
    assert done.returncode == code == 0 and sent["/camera/image/compressed"] == 101
    assert segmenter.stop() == 0
    with BagReader(camvid / "camvid_val") as bag:
        frames = {stamp_of(m): m.header.frame_id for _, _, m in bag.messages(["/camera/image/compressed"])}
    with BagReader(tmp_path / "masks") as bag:
        masks = [
            (stamp_of(m), m.header.frame_id, decode_label(m).shape)
            for _, _, m in bag.messages(["/segmentation/mask/compressed"])
        ]
    assert len(masks) > 20
    assert all(frames[stamp] == frame_id and shape == (360, 480) for stamp, frame_id, shape in masks)
