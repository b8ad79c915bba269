# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluator: masks against labels while a bag plays; a report at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import label_set_of
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.evaluation.class_map import load_class_map
from vtseg_ros.evaluation.report import ReportData, latency_percentiles, write_report
from vtseg_ros.evaluation.score import Scores
from vtseg_ros.evaluation.temporal import FlowImage
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.masks import MaskReader
from vtseg_ros.labelling.palette import Palette
from vtseg_ros.msg import EvaluationReport, LabelMap, SegmentationStatus
from vtseg_ros.nodes.conversions import stamp_ns
from vtseg_ros.nodes.inputs import ImageInput, transport_topic
from vtseg_ros.nodes.ledger import Ledger, Waiting
from vtseg_ros.nodes.outputs import LATCHED, STATUS
from vtseg_ros.nodes.parameters import (
    Param,
    Parameters,
    TypedParameters,
    check_name,
    locked_while_running,
)
from vtseg_ros.nodes.process import run_node
from vtseg_ros.transports import TRANSPORTS, is_video

# Deep, unlike the segmenter's: every frame is to be seen here.
FROM_CAMERA = {
    "sensor_data": QoSProfile(depth=500, reliability=ReliabilityPolicy.BEST_EFFORT),
    "reliable": QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE),
}
ANY = "any"
"""Value of the transport parameters: the transports of `ANY_OF`, the first that brings a message."""
ANY_OF = ("raw", "compressed")
FROM_SEGMENTER = QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE)

EVENTS = {
    SegmentationStatus.PROCESSED: Ledger.PROCESSED,
    SegmentationStatus.REJECTED: Ledger.REJECTED,
    SegmentationStatus.DROPPED: Ledger.DROPPED,
}


def _check_baseline(path: str) -> None:
    if path and not Path(path).is_file():
        raise ConfigError(f"no such file; expected an existing file, got {path}")


def _check_class_map(path: str) -> None:
    if path:
        load_class_map(path)


PARAMETERS = (
    Param("output_dir", "evaluation", "Folder for report.json and report.html.", live=True, path=True),
    Param("title", "Replay evaluation", "Heading of the report.", live=True),
    Param(
        "baseline",
        "",
        "PNG of class ids that is scored as if it were every mask; empty = none.",
        check=_check_baseline,
        path=True,
    ),
    Param(
        "class_map",
        "",
        "YAML that maps each label class to the segmenter's classes that count as it; empty = the same classes.",
        check=_check_class_map,
        path=True,
    ),
    Param(
        "input_qos",
        "sensor_data",
        "sensor_data, or reliable, which receives every image of reliable publishers such as a bag player.",
        allowed=("sensor_data", "reliable"),
    ),
    Param(
        "image_transport",
        ANY,
        "Transport of the images; any = raw or compressed, whichever comes first.",
        allowed=(ANY, *TRANSPORTS),
    ),
    Param(
        "label_transport",
        ANY,
        "Transport of the labels; any = raw or compressed, whichever comes first.",
        allowed=(ANY, *(name for name in TRANSPORTS if not is_video(name))),
    ),
    Param(
        "camera",
        "",
        "Camera to score if the segmenter has several; empty = the only one.",
        check=lambda name: check_name(name) if name else None,
    ),
)


@dataclass
class _Mask:
    """A mask (h, w) uint8 that waits for its label, and whether its steadiness was scored."""

    ids: np.ndarray
    watched: bool = False


class EvaluatorNode(TypedParameters, Node):
    """Node that scores the masks of the segmenter; docs/reference lists its topics, services and parameters."""

    def __init__(self) -> None:
        super().__init__("evaluator")
        self._params = Parameters(self, PARAMETERS, locked=locked_while_running)
        self._params.check_all()
        self._ledger = Ledger()
        self._scores: Scores | None = None
        path = self._params["class_map"]
        self._class_map = load_class_map(path) if path else None
        self._labels: LabelSet | None = None
        """The segmenter's class list."""
        self._targets: np.ndarray | None = None
        """(256,) uint8, for each id of a mask the label id that it counts as; None = the same."""
        self._images, self._masks, self._truths = Waiting(), Waiting(), Waiting()
        self._latencies: list[float] = []
        warn = self.get_logger().warning
        self._decoders = {what: ImageDecoder(what, warn) for what in ("image", "label", "mask")}
        self._unusable, self._other_classes = 0, False
        self._changed = False
        self._newest, self._newest_ns, self._scored_ns = None, None, None
        self._transports: dict[str, str] = {}
        """Transport of images and of labels: the first that brought a message."""
        camera = self._params["camera"]
        base = f"{camera}/" if camera else ""
        from_camera = FROM_CAMERA[self._params["input_qos"]]
        self._inputs: list[ImageInput] = []
        for what, on_message in (("image", self._on_image), ("label", self._on_label)):
            chosen = self._params[f"{what}_transport"]
            for transport in ANY_OF if chosen == ANY else (chosen,):
                topic = transport_topic(self, f"{base}{what}", transport)
                receive = partial(on_message, transport)
                self._inputs.append(
                    ImageInput(self, topic, transport, from_camera, receive, self._on_lost_packet)
                )
        self.create_subscription(Image, f"{base}segmentation/mask", self._on_mask, FROM_SEGMENTER)
        self.create_subscription(SegmentationStatus, f"{base}segmentation/status", self._on_status, STATUS)
        self.create_subscription(LabelMap, f"{base}segmentation/label_map", self._on_label_map, LATCHED)
        self._publisher = self.create_publisher(EvaluationReport, "evaluation", LATCHED)
        self.create_service(Trigger, "~/write_report", self._on_write)
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _baseline(self, labels: LabelSet) -> np.ndarray | None:
        path = self._params["baseline"]
        if not path:
            return None
        reader = MaskReader(Palette(labels))
        try:
            ids = reader.ids(path, Path(path).read_bytes())
        except (OSError, ImageError) as err:
            self.get_logger().error(f"baseline {path}: cannot be used: {err}")
            return None
        for line in reader.summary([path]):
            self.get_logger().info(f"baseline {path}: {line}")
        return ids

    def _on_label_map(self, message: LabelMap) -> None:
        try:
            labels = label_set_of(message)
            if self._labels is None and self._class_map is not None:
                self._targets = self._class_map.table(labels)
        except ConfigError as err:
            self.get_logger().error(f"the label map cannot be used: {err}", throttle_duration_sec=1.0)
            return
        if self._labels is None:
            self._labels = labels
            scored = self._class_map.labels if self._class_map else labels
            self._scores = Scores(scored, baseline=self._baseline(scored))
            for stamp in self._masks.stamps():  # masks that came before the class list
                self._match(stamp)
        self._other_classes = labels.names != self._labels.names
        if self._other_classes:
            self.get_logger().error(
                "the class list of the segmenter changed: masks with the new one are not scored"
            )

    def _is_other_transport(self, what: str, transport: str) -> bool:
        """Return whether a message is of another transport than the first one: many cameras and bags have several."""
        first = self._transports.setdefault(what, transport)
        if transport == first:
            return False
        self.get_logger().info(
            f"{what}s arrive as {first} and as {transport}: only the {first} messages are used", once=True
        )
        return True

    def _on_image(self, transport: str, message) -> None:
        if self._is_other_transport("image", transport):
            return
        stamp = stamp_ns(message.header)
        self._ledger.saw_image(stamp)
        self._images.put(stamp, (message, self._newest_ns), len(message.data))
        self._changed, self._newest, self._newest_ns = True, message.header, stamp
        self._match(stamp)

    def _on_lost_packet(self, header: Header, reason: str) -> None:
        """Count a video packet without an image: the segmenter reports it too."""
        self._ledger.saw_image(stamp_ns(header))
        self._changed = True

    def _on_label(self, transport: str, message) -> None:
        if self._is_other_transport("label", transport):
            return
        stamp = stamp_ns(message.header)
        self._ledger.saw_label(stamp)
        ids = self._ids("label", stamp, message)
        if ids is not None:
            self._truths.put(stamp, ids, ids.nbytes)
            self._match(stamp)

    def _on_mask(self, message: Image) -> None:
        stamp = stamp_ns(message.header)
        ids = self._ids("mask", stamp, message)
        if ids is not None:
            self._masks.put(stamp, _Mask(ids), ids.nbytes)
            self._match(stamp)

    def _ids(self, what: str, stamp: int, message) -> np.ndarray | None:
        try:
            return self._decoders[what].label(message)
        except ImageError as err:
            self._unusable += 1
            self.get_logger().error(
                f"{what} at {stamp / 1e9:.3f} s cannot be used: {err}", throttle_duration_sec=1.0
            )
            return None

    def _on_status(self, message: SegmentationStatus) -> None:
        if message.event == SegmentationStatus.IDLE:
            self._ledger.saw_idle()
            self._changed = True
            return
        event = EVENTS.get(message.event)
        if event is None:
            return
        stamp = stamp_ns(message.header)
        self._ledger.saw_status(event, stamp)
        self._changed = True
        if event == Ledger.PROCESSED:
            self._latencies.append(float(message.total_s))
        else:  # no mask will come
            self._images.pop(stamp)
            self._truths.pop(stamp)

    def _match(self, stamp: int) -> None:
        """Score a mask: with its image how steady it is, with its label all else."""
        mask, truth, seen = self._masks.get(stamp), self._truths.get(stamp), self._images.get(stamp)
        steady = mask is not None and seen is not None and not mask.watched
        if self._scores is None or mask is None or (truth is None and not steady):
            return
        self._changed = True
        if truth is not None:
            for waiting in (self._masks, self._truths, self._images):
                waiting.pop(stamp)
        if self._other_classes:
            self._unusable += truth is not None
            return
        image, before = seen or (None, None)
        try:
            rgb = self._decoders["image"](image) if image is not None else None
            ids = mask.ids if self._targets is None else self._targets[mask.ids]
            if steady:
                mask.watched = True
                self._scores.watch(stamp, ids, FlowImage(rgb))
            if truth is not None:
                if before is None or before != self._scored_ns:
                    self._scores.new_labels()  # there is a frame between the two
                self._scored_ns = stamp
                self._scores.update(stamp, ids, truth, rgb)
        except (ImageError, ConfigError) as err:
            self._unusable += 1
            self.get_logger().error(
                f"frame at {stamp / 1e9:.3f} s is not scored: {err}", throttle_duration_sec=1.0
            )

    def _counts(self) -> dict[str, int]:
        counts = self._ledger.counts()
        processed = self._ledger.labelled_processed()
        counts["labelled_processed"] = processed
        counts["labelled_unprocessed"] = counts["labelled_frames"] - processed
        counts["labelled_scored"] = self._scores.frames if self._scores else 0
        counts["unusable"] = self._unusable
        return counts

    def _report(self) -> EvaluationReport:
        counts, report = self._counts(), EvaluationReport()
        for name, value in counts.items():
            if hasattr(report, name):
                setattr(report, name, value)
        for name, value in latency_percentiles(self._latencies).items():
            setattr(report, name, math.nan if value is None else value)
        if self._newest is not None:
            report.header = self._newest
        report.miou = report.pixel_accuracy = report.mvc8 = report.mvc16 = report.temporal_consistency = (
            math.nan
        )
        if self._scores is not None:
            report.class_names = list(self._scores.labels.names)
            report.iou = self._scores.confusion.iou().tolist()
            report.miou = self._scores.confusion.miou()
            report.pixel_accuracy = self._scores.confusion.pixel_accuracy()
            report.mvc8, report.mvc16 = self._scores.mvc(8), self._scores.mvc(16)
            report.temporal_consistency = self._scores.temporal_consistency()
        return report

    def _on_second(self) -> None:
        if self._changed:
            self._changed = False
            self._publisher.publish(self._report())

    def _write(self) -> str:
        """Write the report; returns where, raises ConfigError when there is nothing to say or it cannot be written."""
        if self._scores is None:
            raise ConfigError("report: no label map was received from the segmenter. Activate the segmenter")
        system = self._scores.as_system(name="segmenter", model=None, checkpoint=None, window=None)
        data = ReportData(
            title=self._params["title"],
            scores=self._scores,
            systems=[system],
            counts=self._counts(),
            latencies_s=self._latencies,
        )
        folder = Path(self._params["output_dir"])
        try:
            return str(write_report(folder, data)[1])
        except OSError as err:
            raise ConfigError(f"output_dir {folder}: the report cannot be written: {err}") from err

    def _on_write(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            response.message, response.success = self._write(), True
        except ConfigError as err:
            response.message, response.success = str(err), False
        return response

    def close(self) -> None:
        """Unsubscribe and write the last report."""
        for images in self._inputs:
            images.close()
        try:
            self.get_logger().info(f"report: {self._write()}")
        except ConfigError as err:
            self.get_logger().error(str(err))
            self.exit_code = 1


def main(args: list[str] | None = None) -> int:
    """Entry point of `ros2 run vtseg_ros evaluator`."""
    return run_node(EvaluatorNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
