"""The segmenter: a lifecycle node, images in, masks out."""

from __future__ import annotations

import threading
import time
from typing import Any

import cv2
import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from vtseg_ros.commands.arguments import size_from_text
from vtseg_ros.engine import Segmenter
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.nodes import diagnostics
from vtseg_ros.nodes.inputs import explain_silence, subscribe
from vtseg_ros.nodes.outputs import Outputs
from vtseg_ros.nodes.parameters import Parameters
from vtseg_ros.nodes.process import run_node
from vtseg_ros.nodes.segmenter_parameters import PARAMETERS, parse_output_size
from vtseg_ros.nodes.slots import Slots
from vtseg_ros.nodes.worker import Settings, Worker

SILENCE_S = 5.0
WARN_EVERY_S = 1.0


class SegmenterNode(LifecycleNode):
    """See docs and README for its topics, services and parameters."""

    def __init__(self) -> None:
        super().__init__("segmenter")
        self._params = Parameters(self, PARAMETERS, self._on_parameter, lambda: self._segmenter is not None)
        self._segmenter: Segmenter | None = None
        self._outputs: dict[str, Outputs] = {}
        self._worker: Worker | None = None
        self._slots: Slots | None = None
        self._inputs: list = []
        self._settings = Settings()
        self._warned_at: dict[str, float] = {}
        self._activated_s = 0.0
        self._explained = False
        self._seen_dropped: dict[str, int] = {}
        self._loading: threading.Thread | None = None
        self._loaded: Segmenter | VTSegError | None = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/enable", self._on_enable)
        # On the steady clock: sim time must not stall it.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._params["autostart"]:
            self._autostart = self.create_timer(
                0.01, self._start_alone, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )

    def _start_alone(self) -> None:
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        else:
            self.exit_code, self.finished = 2, True

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._params.check_all()
            self._segmenter = self._load(self._params["checkpoint"])
            self._settings = Settings(self._params["overlay_alpha"], self._read_ego_mask())
        except VTSegError as err:
            self.get_logger().error(f"cannot configure: {err}")
            return TransitionCallbackReturn.FAILURE
        cameras = list(self._params["cameras"]) or [""]
        self._outputs = {camera: Outputs(self, camera) for camera in cameras}
        segmenter = self._segmenter
        self.get_logger().info(
            f"{segmenter.checkpoint.path} ({segmenter.checkpoint.architecture}, {len(segmenter.labels)} classes) on "
            f"{segmenter.device}, {segmenter.precision}, input {segmenter.input_size[0]}x{segmenter.input_size[1]}, "
            f"window {segmenter.window}, streaming {segmenter.streaming}"
        )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._slots = Slots(list(self._outputs))
        self._segmenter.reset()
        self._worker = Worker(
            slots=self._slots,
            segmenter=self._segmenter,
            outputs=self._outputs,
            settings=self._settings,
            warn=self._warn,
            clock_now=lambda: self.get_clock().now().to_msg(),
        )
        self._worker.start()
        for camera, outputs in self._outputs.items():
            outputs.publish_labels(self._segmenter.labels)
            self._inputs += subscribe(
                self,
                camera,
                transport=self._params["image_transport"],
                qos=self._params["input_qos"],
                on_image=lambda message, camera=camera: self._on_image(camera, message),
                on_info=lambda message, outputs=outputs: setattr(outputs, "latest_info", message),
            )
        self._activated_s, self._explained = time.monotonic(), False
        self._seen_dropped = {}
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_inputs()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Stop and free everything, from any state."""
        self._stop_inputs()
        self._release()

    def _stop_inputs(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _release(self) -> None:
        for outputs in self._outputs.values():
            outputs.destroy()
        self._outputs = {}
        self._segmenter = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, checkpoint: str) -> Segmenter:
        """A segmenter, warmed up: the first forward passes allocate and choose kernels."""
        parameters = self._params
        segmenter = Segmenter(
            checkpoint,
            device=parameters["device"],
            precision=parameters["precision"],
            window=parameters["window"],
            input_size=size_from_text(parameters["input_size"]),
            max_gap_s=parameters["max_gap"],
            output_size=parse_output_size(parameters["output_size"]),
            upsampling=parameters["upsampling"],
            static_prior=parameters["static_prior"] or None,
            min_confidence=parameters["min_confidence"],
        )
        blank = np.zeros((segmenter.input_size[1], segmenter.input_size[0], 3), np.uint8)
        for _ in range(segmenter.window):
            segmenter.step(blank)
        segmenter.reset()
        return segmenter

    def _read_ego_mask(self) -> np.ndarray | None:
        path = self._params["ego_mask"]
        if not path:
            return None
        pixels = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise ConfigError(
                f"ego_mask {path} cannot be read. Expected: a PNG whose non-zero pixels are the robot"
            )
        return pixels > 0

    # Parameters, services, timers

    def _on_parameter(self, name: str, value: Any) -> None:
        if self._segmenter is None:
            return
        if name == "checkpoint":
            if self._loading is not None:
                raise ConfigError("another checkpoint is being loaded: try again when it is done")
            self._loading = threading.Thread(target=self._load_other, args=(value,), daemon=True)
            self._loading.start()
        elif name == "overlay_alpha":
            self._settings.overlay_alpha = value
        elif name in ("window", "max_gap", "output_size"):
            changed = parse_output_size(value) if name == "output_size" else value
            attribute = {"max_gap": "max_gap_s"}.get(name, name)
            with self._worker.lock if self._worker else threading.Lock():
                setattr(self._segmenter, attribute, changed)

    def _load_other(self, checkpoint: str) -> None:
        try:
            self._loaded = self._load(checkpoint)
        except VTSegError as err:
            self._loaded = err

    def _finish_loading(self) -> None:
        if self._loading is None or self._loading.is_alive():
            return
        self._loading.join()
        self._loading, loaded, self._loaded = None, self._loaded, None
        if not isinstance(loaded, Segmenter):
            self.get_logger().error(f"the checkpoint was not changed: {loaded}")
            return
        if self._segmenter is None:
            return
        self._segmenter = loaded
        if self._worker is not None:
            with self._worker.lock:
                self._worker.segmenter = loaded
        for outputs in self._outputs.values():
            outputs.publish_labels(loaded.labels)
        self.get_logger().info(f"now running {loaded.checkpoint.path}")

    def _on_image(self, camera: str, message: Any) -> None:
        worker = self._worker
        if worker is not None and worker.enabled:
            worker.health[camera].inputs.append(time.monotonic())
            self._slots.put(camera, message)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._segmenter is not None
        response.message = "the window is empty" if response.success else "not configured"
        if response.success:
            with self._worker.lock if self._worker else threading.Lock():
                self._segmenter.reset()
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success = self._worker is not None
        response.message = "not active"
        if response.success:
            self._worker.enabled = request.data
            response.message = "running" if request.data else "paused"
        return response

    def _warn(self, key: str, text: str) -> None:
        now = time.monotonic()
        if now - self._warned_at.get(key, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned_at[key] = now
            self.get_logger().warning(text)

    def _on_second(self) -> None:
        self._finish_loading()
        if self._worker is None:
            return
        now = time.monotonic()
        self._publish_diagnostics(now)
        silent = [camera for camera, counters in self._slots.counters.items() if not counters.received]
        if silent and not self._explained and now - self._activated_s > SILENCE_S:
            self._explained = True
            for camera in silent:
                transport, qos = self._params["image_transport"], self._params["input_qos"]
                self.get_logger().warning(explain_silence(self, camera, transport, qos))

    def _publish_diagnostics(self, now: float) -> None:
        segmenter = self._segmenter
        facts = {
            "device": str(segmenter.device),
            "precision": segmenter.precision,
            "checkpoint": str(segmenter.checkpoint.path),
            "window": str(segmenter.window),
        }
        if segmenter.device.type == "cuda":
            facts["GPU memory (MB)"] = f"{torch.cuda.memory_allocated(segmenter.device) / 1e6:.0f}"
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        for camera, counters in self._slots.counters.items():
            array.status.append(
                diagnostics.status(
                    name=f"{self.get_fully_qualified_name().lstrip('/')}: {camera or 'camera'}",
                    hardware_id=str(segmenter.device),
                    health=self._worker.health[camera],
                    counters=counters,
                    previous_dropped=self._seen_dropped.get(camera, 0),
                    now=now,
                    facts=facts,
                )
            )
            self._seen_dropped[camera] = counters.dropped
        self._diagnostics.publish(array)


def main(args: list[str] | None = None) -> int:
    """Entry point of `ros2 run vtseg_ros segmenter`."""
    return run_node(SegmenterNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
