# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter: a lifecycle node, images in, masks out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.nodes import diagnostics
from vtseg_ros.nodes.bond import LifecycleBond
from vtseg_ros.nodes.bridge import Decode, image_decoder
from vtseg_ros.nodes.conversions import NS, stamp_ns
from vtseg_ros.nodes.inputs import (
    explain_silence,
    image_class,
    image_topic,
    subscribe,
)
from vtseg_ros.nodes.live_network import LiveNetwork
from vtseg_ros.nodes.loading import load_ego_mask, one_line
from vtseg_ros.nodes.outputs import Outputs
from vtseg_ros.nodes.parameters import Parameters, TypedParameters
from vtseg_ros.nodes.process import run_node
from vtseg_ros.nodes.rate_limit import RateLimit
from vtseg_ros.nodes.segment_service import Alone, refusal
from vtseg_ros.nodes.segmenter_parameters import PARAMETERS
from vtseg_ros.nodes.slots import Slots
from vtseg_ros.nodes.uncertain_recorder import UncertainRecorder
from vtseg_ros.nodes.video_input import VideoInput
from vtseg_ros.nodes.worker import Settings, Worker
from vtseg_ros.srv import Segment
from vtseg_ros.transports import TRANSPORTS, is_video

SILENCE_S = 5.0
WARN_EVERY_S = 1.0


class SegmenterNode(TypedParameters, LifecycleNode):
    """Lifecycle node that segments images; docs/reference lists its topics, services and parameters."""

    def __init__(self) -> None:
        super().__init__("segmenter")
        self._params = Parameters(
            self,
            PARAMETERS,
            self._on_parameter,
            lambda param: self._network.locked(param),
            lambda values: self._network.problem(values),
        )
        self._network = LiveNetwork(self, self._params)
        self._outputs: dict[str, Outputs] = {}
        self._worker: Worker | None = None
        self._recorder: UncertainRecorder | None = None
        self._slots: Slots | None = None
        self._limits: dict[str, RateLimit] = {}
        self._inputs: list = []
        self._videos: list[VideoInput] = []
        self._decode: Decode = decode_any
        self._settings = Settings()
        self._warned_at: dict[str, float] = {}
        self._activated_s = 0.0
        self._published_s: dict[str, float] = {}
        """Since when somebody publishes the images of a camera that has sent none, s on the steady clock."""
        self._explained: set[str] = set()
        self._seen: dict[str, diagnostics.Counts] = {}
        self._bond = LifecycleBond(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Segment, "~/segment", self._on_segment)
        # On the steady clock: sim time must not stall it.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._params["autostart"]:
            self._autostart = self.create_timer(
                0.01, self._start_alone, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )
        else:
            name = self.get_fully_qualified_name()
            self.get_logger().info(
                f"unconfigured, waiting for a lifecycle manager. Manually: ros2 lifecycle set {name} configure, "
                f"then ros2 lifecycle set {name} activate; or -p autostart:=true"
            )

    def _start_alone(self) -> None:
        self._autostart.cancel()
        done = TransitionCallbackReturn.SUCCESS
        if self.trigger_configure() != done or self.trigger_activate() != done:
            self.exit_code, self.finished = 2, True

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and create the publishers; FAILURE with the reason in the log if that is impossible."""
        try:
            self._params.check_all()
            ego_mask = load_ego_mask(self._params["ego_mask"], self.get_logger().warning)
            image_class(self._params["image_transport"])
            settings = Settings(self._params["overlay_alpha"], self._params["jpeg_quality"], ego_mask)
            segmenter = self._network.load()
        except Exception as err:  # rclpy swallows what a transition raises: whatever it is, say it
            self.get_logger().error(f"cannot configure: {one_line(err)}")
            return TransitionCallbackReturn.FAILURE
        cameras = list(self._params["cameras"]) or [""]
        self._outputs = {camera: Outputs(self, camera) for camera in cameras}
        self._decode = image_decoder(self.get_logger().warning)
        self._settings = settings
        self.get_logger().info(
            f"{segmenter.checkpoint.path} ({segmenter.checkpoint.architecture}, {len(segmenter.labels)} classes) on "
            f"{segmenter.device}, {segmenter.precision}, input {segmenter.input_size[0]}x{segmenter.input_size[1]}, "
            f"window {segmenter.window}, streaming {segmenter.streaming}, {segmenter.run_mode}"
        )
        self.get_logger().debug(
            f"device {self._params['device']} is {segmenter.device}, precision {self._params['precision']} is "
            f"{segmenter.precision}, window {self._params['window']} is {segmenter.window}, "
            f"input_size {self._params['input_size']} is {segmenter.input_size[0]}x{segmenter.input_size[1]}"
        )
        self._network.log_licence()
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate the publishers, start the inference thread and subscribe to the images."""
        activated = super().on_activate(state)  # publishers first: the worker publishes
        self._slots = Slots(list(self._outputs))
        self._limits = {camera: RateLimit(self._params["max_rate"]) for camera in self._outputs}
        self._compare_rate_and_gap(self._params["max_rate"], self._params["max_gap"])
        self._network.reset()
        self._recorder = self._open_recorder()
        self._worker = Worker(
            slots=self._slots,
            segmenter=self._network.predictor,
            decode=self._decode,
            outputs=self._outputs,
            settings=self._settings,
            warn=self._warn,
            debug=self.get_logger().debug,
            clock_now=lambda: self.get_clock().now().to_msg(),
            context=self.context,
            recorder=self._recorder,
        )
        self._network.worker = self._worker
        self._worker.start()
        for camera, outputs in self._outputs.items():
            outputs.publish_labels(self._network.predictor.labels)
            self._inputs += subscribe(
                self,
                camera,
                transport=self._params["image_transport"],
                qos=self._params["input_qos"],
                on_image=self._receiver(camera),
                on_info=lambda message, outputs=outputs: setattr(outputs, "latest_info", message),
            )
        self._activated_s, self._explained = time.monotonic(), set()
        self._published_s = {}
        self._seen = {}
        topics = ", ".join(subscription.topic_name for subscription in self._inputs[::2])
        if not self._params["autostart"]:  # a manager activated it
            self._bond.form()
        self.get_logger().info(f"active, images from {topics}")
        return activated

    def _open_recorder(self) -> UncertainRecorder | None:
        if not self._params["record_uncertain"]:
            return None
        transport = self._params["image_transport"]
        if is_video(transport):
            transport = "raw"  # decoded frames: the packets of a window may need older ones
        return UncertainRecorder(
            folder=Path(self._params["record_uncertain"]),
            limit_mb=self._params["record_max_mb"],
            quantile=self._params["record_quantile"],
            topics={
                camera: (
                    self.resolve_topic_name(image_topic(self, camera, transport)),
                    TRANSPORTS[transport].msgtype,
                )
                for camera in self._outputs
            },
            error=lambda text: self.get_logger().error(text),
            info=lambda text: self.get_logger().info(text),
        )

    def _receiver(self, camera: str) -> Callable[[Any], None]:
        """Return the receiver of a camera's messages: its slot, or for encoded video the decoder before it."""
        if not is_video(self._params["image_transport"]):
            return lambda message: self._on_image(camera, message)
        of = f" of {camera}" if camera else ""
        video = VideoInput(
            lambda image: self._on_image(camera, image),
            lambda header, reason: self._on_lost_packet(camera, header, reason),
            lambda text: self._warn(text, f"video{of}: {text}"),
        )
        self._videos.append(video)
        return video.put

    def _on_lost_packet(self, camera: str, header: Header, reason: str) -> None:
        worker = self._worker
        if worker is not None and worker.enabled:
            health = worker.health[camera]
            health.inputs.append(time.monotonic())
            health.lost_packets += 1
            health.last_lost_packet = reason
            self._slots.skip(camera, Image(header=header), reason)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the current frame, drop queued frames, publish the final counters and unsubscribe."""
        self._stop_inputs()
        self.get_logger().info("inactive")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the network and the publishers."""
        self._release()
        self.get_logger().info("unconfigured, the network is released")
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything after a failed transition, so that the node can be configured again."""
        self.get_logger().error(
            "a transition failed; the network and the publishers are released. Configure the node again"
        )
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from any state."""
        self.close()
        self.get_logger().info("finalized, everything is released")
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Stop and free everything, from any state, also after the context has ended."""
        self._stop_inputs()
        self._release()

    def _stop_inputs(self) -> None:
        self._bond.break_off()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        for video in self._videos:
            video.stop()
        self._videos.clear()
        if self._worker is not None:
            self._worker.stop()
            self._worker = self._network.worker = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _release(self) -> None:
        for outputs in self._outputs.values():
            outputs.destroy()
        self._outputs = {}
        self._network.release()

    # Parameters, services, timers

    def _on_parameter(self, name: str, value: Any) -> None:
        if self._network.predictor is None:
            return
        if name in ("overlay_alpha", "jpeg_quality"):
            setattr(self._settings, name, value)
        elif name == "max_rate":
            for limit in self._limits.values():
                limit.rate_hz = value
            self._compare_rate_and_gap(value, self._params["max_gap"])
        else:
            self._network.change(name, value)

    def _compare_rate_and_gap(self, rate_hz: float, gap_s: float) -> None:
        if rate_hz and 1 / rate_hz > gap_s:
            self.get_logger().warning(
                f"max_rate {rate_hz:g} Hz: images are {1 / rate_hz:g} s apart, more than max_gap {gap_s:g} s, so every window "
                "has one frame. Increase max_rate or max_gap"
            )

    def _on_image(self, camera: str, message: Any) -> None:
        worker = self._worker
        if worker is not None and worker.enabled:
            now = time.monotonic()
            worker.health[camera].inputs.append(now)
            # Without a stamp, the time of arrival.
            if self._limits[camera].admit(stamp_ns(message.header) or round(now * NS)):
                self._slots.put(camera, message)
            else:
                worker.health[camera].over_rate += 1
                self._slots.skip(camera, message, f"above max_rate {self._limits[camera].rate_hz:g} Hz")

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._network.predictor is not None
        response.message = "the window is empty" if response.success else "not configured"
        if response.success:
            self._network.reset()
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success = self._worker is not None
        response.message = "not active"
        if response.success:
            self._worker.enabled = request.data
            response.message = "running" if request.data else "paused"
        return response

    async def _on_segment(self, request: Segment.Request, _: Segment.Response) -> Segment.Response:
        # A coroutine: the executor goes on with the images while the worker has the request.
        answer: Future = Future()

        def done(response: Segment.Response) -> None:
            answer.set_result(response)
            self.executor.wake()

        if self._worker is None:
            return refusal("the node is not active. Activate it and try again")
        if not self._worker.segment_alone(Alone(request.image, done)):
            return refusal(f"{Slots.MAX_ASKED} requests are waiting already. Try again later")
        return await answer

    def _warn(self, key: str, text: str) -> None:
        now = time.monotonic()
        if now - self._warned_at.get(key, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned_at[key] = now
            self.get_logger().warning(text)

    def _on_second(self) -> None:
        self._network.poll()
        if self._worker is None:
            return
        now = time.monotonic()
        self._publish_diagnostics(now)
        silent = [camera for camera, counters in self._slots.counters.items() if not counters.received]
        if not self._worker.enabled:
            self._activated_s = now  # what comes while paused is not counted
        if silent and now - self._silent_since(silent, now) > SILENCE_S:
            for camera in silent:
                transport, qos = self._params["image_transport"], self._params["input_qos"]
                reason = explain_silence(self, camera, transport, qos)
                if reason not in self._explained:  # a publisher may start after the node, on another topic
                    self._explained.add(reason)
                    self.get_logger().warning(reason)

    def _silent_since(self, cameras: list[str], now: float) -> float:
        """Return from when silence counts: a player with a delay publishes its topics before it sends, too."""
        for camera in cameras:
            topic = self.resolve_topic_name(image_topic(self, camera, self._params["image_transport"]))
            if self.count_publishers(topic):
                self._published_s.setdefault(camera, now)
        return max([self._activated_s, *self._published_s.values()])

    def _publish_diagnostics(self, now: float) -> None:
        segmenter = self._network.predictor
        facts = {
            "device": str(segmenter.device),
            "precision": segmenter.precision,
            "checkpoint": str(segmenter.checkpoint.path),
            "window": str(segmenter.window),
            "memory (MB)": f"{diagnostics.memory_mb():.0f}",
        }
        if segmenter.device.type == "cuda":
            facts["GPU memory (MB)"] = f"{torch.cuda.memory_allocated(segmenter.device) / 1e6:.0f}"
        if self._recorder is not None:
            facts |= self._recorder.facts()
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        for camera, counters in self._slots.counters.items():
            health = self._worker.health[camera]
            counts = diagnostics.Counts(
                **vars(counters),
                bad_stamps=health.bad_stamps,
                over_rate=health.over_rate,
                lost_packets=health.lost_packets,
            )
            array.status.append(
                diagnostics.status(
                    name=f"{self.get_fully_qualified_name().lstrip('/')}: {camera or 'camera'}",
                    hardware_id=str(segmenter.device),
                    health=health,
                    counts=counts,
                    before=self._seen.get(camera, diagnostics.Counts()),
                    enabled=self._worker.enabled,
                    now=now,
                    facts=facts,
                )
            )
            self._seen[camera] = counts
        self._diagnostics.publish(array)


def main(args: list[str] | None = None) -> int:
    """Entry point of `ros2 run vtseg_ros segmenter`."""
    return run_node(SegmenterNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
