# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker thread: newest frames of all cameras through the model, every one accounted for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.context import Context
from std_msgs.msg import Header

from vtseg_ros.errors import ImageError, VTSegError
from vtseg_ros.inference import CameraFrame, Result, VideoPredictor
from vtseg_ros.inference.postprocess import apply_ego_mask
from vtseg_ros.msg import SegmentationStatus
from vtseg_ros.nodes.bridge import Decode
from vtseg_ros.nodes.conversions import stamp_ns
from vtseg_ros.nodes.diagnostics import Health
from vtseg_ros.nodes.outputs import Outputs
from vtseg_ros.nodes.process import until_shutdown
from vtseg_ros.nodes.segment_service import Alone, refusal, segment_alone
from vtseg_ros.nodes.slots import Pending, Slots, Taken
from vtseg_ros.nodes.uncertain_recorder import UncertainRecorder

IDLE_AFTER_S = 0.5


@dataclass
class Settings:
    """What can change while the worker runs."""

    overlay_alpha: float = 0.5
    jpeg_quality: int = 80
    ego_mask: np.ndarray | None = None


class Worker:
    """Takes frames from the slots, runs the segmenter and publishes.

    Args:
        slots: where callbacks put messages.
        segmenter: the model.
        decode: messages to (H, W, 3) uint8 RGB.
        outputs: publishers by camera.
        settings: see there.
        warn: logs a text, throttled by its first argument (a key).
        debug: logs a decision about a frame.
        clock_now: the node's clock, for the header of an idle status.
        context: the node's context; once it has ended, nothing is published.
        recorder: of uncertain images; None = they are not recorded.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        segmenter: VideoPredictor,
        decode: Decode,
        outputs: dict[str, Outputs],
        settings: Settings,
        warn: Callable[[str, str], None],
        debug: Callable[[str], None],
        clock_now: Callable[[], object],
        context: Context,
        recorder: UncertainRecorder | None = None,
    ) -> None:
        self._slots, self._outputs, self._settings, self._decode = slots, outputs, settings, decode
        self._warn, self._debug, self._now, self._context = warn, debug, clock_now, context
        self._segmenter, self._next = segmenter, None
        self._recorder = recorder
        self.lock = threading.Lock()
        """Held while the segmenter runs; whoever changes it holds it too."""
        self.enabled = True
        self.health = {camera: Health() for camera in outputs}
        self._said_no_stamp = False
        self._active = False
        self._last_s = time.monotonic()
        """When the newest frame was finished, steady clock."""
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Start the inference thread."""
        self._thread.start()

    def replace(self, segmenter: VideoPredictor) -> None:
        """Use another segmenter from the next round on; its class list is published before its first mask."""
        with self.lock:
            self._next = segmenter

    def segment_alone(self, request: Alone) -> bool:
        """Segment an image that is no camera's, and return False when too many wait; see `segment_service`."""
        return self._slots.ask(request)

    def stop(self) -> None:
        """Finish the current frame, drop queued frames and publish the final counters."""
        for request in self._slots.close():
            request.done(refusal("the node is being deactivated. Activate it and ask again"))
        self._thread.join()
        with until_shutdown(self._context):
            self._publish_idle()

    def _run(self) -> None:
        with until_shutdown(self._context):
            self._serve()

    def _serve(self) -> None:
        while (taken := self._slots.take(IDLE_AFTER_S / 2)) is not None:
            try:
                self._serve_cameras(taken)
            except Exception as err:  # of a status or a class list; it must not end the inference thread
                if not self._context.ok():
                    return
                self._warn("publishing failed", f"publishing failed: {type(err).__name__}: {err}")
            if taken.asked is not None:
                self._serve_alone(taken.asked)

    def _serve_cameras(self, taken: Taken) -> None:
        self._switch()
        # Every camera's statuses in the order of its frames: what was skipped after the newest one comes later.
        newest_s = {pending.camera: pending.received_s for pending in taken.frames}
        later = []
        for pending in taken.dropped:
            if pending.received_s > newest_s.get(pending.camera, pending.received_s):
                later.append(pending)
            else:
                self._report_dropped(pending)
        if taken.frames:
            self._active = True
            self._process(taken.frames)
            self._last_s = time.monotonic()
            for pending in later:
                self._report_dropped(pending)
        elif taken.asked is None and self._active and time.monotonic() - self._last_s > IDLE_AFTER_S:
            self._publish_idle()

    def _serve_alone(self, request: Alone) -> None:
        with self.lock:
            answer = segment_alone(request.message, self._segmenter, self._decode, self._settings.ego_mask)
        request.done(answer)

    def _report_dropped(self, pending: Pending) -> None:
        why = pending.reason or "a newer frame came before the model was free"
        self._debug(f"dropped {_name(pending)}: {why}")
        self._status(pending, SegmentationStatus.DROPPED, reason=pending.reason)

    def _switch(self) -> None:
        with self.lock:
            if self._next is None:
                return
            self._segmenter, self._next = self._next, None
        for outputs in self._outputs.values():
            outputs.publish_labels(self._segmenter.labels)

    def _publish_idle(self) -> None:
        self._active = False
        for camera in self._outputs:
            header = Header(stamp=self._now())
            self._publish_status(camera, header, SegmentationStatus.IDLE)

    def _process(self, frames: list[Pending]) -> None:
        began = time.monotonic()
        decoded: list[tuple[Pending, np.ndarray, float]] = []
        for pending in frames:
            started = time.monotonic()
            try:
                decoded.append((pending, self._decode(pending.message), time.monotonic() - started))
            except ImageError as err:
                self._reject(pending, str(err), time.monotonic() - pending.received_s)
            except Exception as err:  # too little memory, say: as below
                self._fail([pending], err, "decoding")
        if not decoded:
            return
        batch = [
            CameraFrame(
                p.camera,
                image,
                stamp_ns(p.message.header) or None,
                p.message.header.frame_id,
                with_confidence=self._recorder is not None or self._outputs[p.camera].confidence_wanted,
            )
            for p, image, _ in decoded
        ]
        if not self._said_no_stamp and any(frame.stamp_ns is None for frame in batch):
            self._said_no_stamp = True
            self._warn(
                "no stamp",
                "an image has the stamp zero, so its time is unknown and pauses are not detected. Set stamps in the driver",
            )
        try:
            with self.lock:
                segmenter = self._segmenter
                results = segmenter.step_many(batch)
        except Exception as err:  # whatever it is, it must not end the node; it is counted and reported
            self._fail([pending for pending, _, _ in decoded], err)
            return
        for (pending, image, decode_s), result in zip(decoded, results):
            if result.error is not None:
                self._fail([pending], result.error)
                continue
            try:
                self._publish(pending, image, result, segmenter, decode_s, began)
            except Exception as err:  # an exception here must not stop the inference thread
                if not self._context.ok():
                    return
                self._fail([pending], err, "publishing")

    def _publish(
        self,
        pending: Pending,
        image: np.ndarray,
        result: Result,
        segmenter: VideoPredictor,
        decode_s: float,
        began: float,
    ) -> None:
        health = self.health[pending.camera]
        if result.dropped:
            self._slots.count(pending.camera, "dropped")
            self._debug(f"dropped {_name(pending)}: {result.dropped}")
            health.bad_stamps += 1
            health.last_bad_stamp = result.dropped
            self._status(pending, SegmentationStatus.DROPPED, reason=result.dropped)
            return
        if result.restarted:
            self._debug(f"new window with {_name(pending)}: {result.restarted}")
        mask = result.mask
        if self._settings.ego_mask is not None:
            mask = apply_ego_mask(mask, self._settings.ego_mask)
        self._outputs[pending.camera].publish_result(
            pending.message.header,
            image,
            mask,
            result.confidence,
            segmenter.labels,
            alpha=self._settings.overlay_alpha,
            jpeg_quality=self._settings.jpeg_quality,
        )
        done = time.monotonic()
        self._slots.count(pending.camera, "processed")
        health.outputs.append(done)
        health.latencies.append(done - pending.received_s)
        health.last_error = ""
        self._status(
            pending,
            SegmentationStatus.PROCESSED,
            frames_in_window=result.frames_in_window,
            queue_s=began - pending.received_s,
            preprocess_s=decode_s + result.preprocess_s,
            inference_s=result.inference_s,
            total_s=done - pending.received_s,
        )
        if self._recorder is not None:  # last: the mask is out
            self._recorder.add(
                pending.camera,
                pending.message,
                result.confidence,
                window=segmenter.window,
                restarted=bool(result.restarted),
            )

    def _fail(self, frames: list[Pending], error: Exception, doing: str = "inference") -> None:
        # Our own errors say what is wrong; of others the class is half of what there is to know.
        reason = str(error) if isinstance(error, VTSegError) else f"{type(error).__name__}: {error}"
        for pending in frames:
            self.health[pending.camera].last_error = reason
            self._reject(pending, f"{doing} failed: {reason}", time.monotonic() - pending.received_s)

    def _reject(self, pending: Pending, reason: str, total_s: float) -> None:
        self._slots.count(pending.camera, "rejected")
        self.health[pending.camera].last_rejection = reason
        of = f" of {pending.camera}" if pending.camera else ""
        self._warn(f"rejected {pending.camera}", f"image{of} rejected: {reason}")
        self._status(pending, SegmentationStatus.REJECTED, reason=reason, total_s=total_s)

    def _status(self, pending: Pending, event: int, **fields: object) -> None:
        self._publish_status(pending.camera, pending.message.header, event, **fields)

    def _publish_status(self, camera: str, header: Header, event: int, **fields: object) -> None:
        counters = self._slots.counters[camera]
        self._outputs[camera].status.publish(
            SegmentationStatus(
                header=header,
                camera=camera,
                event=event,
                frames_received=counters.received,
                frames_processed=counters.processed,
                frames_dropped=counters.dropped,
                frames_rejected=counters.rejected,
                **fields,
            )
        )


def _name(pending: Pending) -> str:
    """Return the name of a frame for a log line."""
    stamp = pending.message.header.stamp
    of = f" of {pending.camera}" if pending.camera else ""
    return f"frame {stamp.sec}.{stamp.nanosec:09d} s{of}"
