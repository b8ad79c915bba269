# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The network that a segmenter runs, and its changes while the node is active."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from rclpy.node import Node
from rclpy.parameter import Parameter

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.nodes.loading import Loader, licence_line, load_segmenter, one_line
from vtseg_ros.nodes.parameters import Param, Parameters
from vtseg_ros.nodes.segmenter_parameters import check_precision_on_device
from vtseg_ros.nodes.worker import Worker
from vtseg_ros.sizes import parse_output_size

LIVE = ("window", "max_gap", "output_size", "classes")
"""Parameters that can be changed on the predictor in use."""


class LiveNetwork:
    """The network of a segmenter.

    Another checkpoint is loaded, and another window is compiled, in a thread, while the worker uses the present predictor.
    `poll` replaces it when the thread has finished. If that fails, the parameters are set back to those of the present one.

    Args:
        node: The node of the parameters, for its log.
        parameters: Its parameters.

    Attributes:
        predictor: The predictor in use; None before `load` and after `release`.
        worker: The worker that uses the predictor; None while the node is not active.
    """

    def __init__(self, node: Node, parameters: Parameters) -> None:
        self._node, self._params = node, parameters
        self.predictor: VideoPredictor | None = None
        self.worker: Worker | None = None
        self._loader, self._compiler = Loader(), Loader()
        self._running, self._wanted = "", ""
        """The checkpoint in use, and the one that is being loaded, as the user named them."""
        self._restoring = False

    def load(self) -> VideoPredictor:
        """Load the checkpoint of the parameters, and wait for it.

        Raises:
            VTSegError: If it cannot be loaded or has other classes.
        """
        predictor = load_segmenter(self._params, self._params["checkpoint"])
        predictor.classes = self._params["classes"]
        self.predictor, self._running = predictor, self._params["checkpoint"]
        return predictor

    def release(self) -> None:
        """Free the network; wait until a running thread has loaded or compiled its own."""
        self._loader.discard()
        self._compiler.discard()
        self.predictor = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def reset(self) -> None:
        """Clear the windows of all cameras."""
        with self._unused():
            self.predictor.reset()

    def log_licence(self) -> None:
        """Log the licence of the weights, if it is another one than that of the code."""
        if line := licence_line(self.predictor):
            self._node.get_logger().info(line)

    def _unused(self) -> AbstractContextManager:
        """Return a context in which the worker does not use the predictor."""
        return self.worker.lock if self.worker else nullcontext()

    # Changes of parameters

    def locked(self, param: Param) -> str:
        """Return why a parameter cannot change now; empty if it can."""
        if self.predictor is None:
            return ""
        if not param.live:
            return "cannot change while the node is configured. Clean it up first"
        if param.name == "checkpoint" and self._loader.busy and not self._restoring:
            return "cannot change while another one is being loaded. Try again later"
        return ""

    def problem(self, values: dict[str, Any]) -> str:
        """Return why the values of a request cannot be taken together; empty if they can.

        A window and classes are checked against the network that will have them, a precision against its device.
        """
        if "precision" in values or "device" in values:
            asked = [values.get(name, self._params[name]) for name in ("precision", "device")]
            if problem := check_precision_on_device(*asked):
                return problem
        if self.predictor is None or "checkpoint" in values:
            return ""
        try:
            if "window" in values:
                self.predictor.check_window(values["window"] or None)
        except ConfigError as err:
            return f"window: {err}"
        try:
            self.predictor.check_classes(values.get("classes", ()))
        except ConfigError as err:
            return str(err)
        return ""

    def change(self, name: str, value: Any) -> None:
        """Follow a change of the checkpoint or of a parameter of `LIVE`; the network must be loaded."""
        if name == "window":
            self._change_window(value or None)
        elif name in LIVE:
            self._apply_to_running(name, value)
        elif name == "checkpoint" and not self._restoring and not self._loader.busy:
            self._wanted = value
            self._loader.start(lambda: load_segmenter(self._params, value))

    def _apply_to_running(self, name: str, value: Any) -> None:
        with self._unused(), suppress(ConfigError):
            # Refused only where `problem` left it to a checkpoint of the same request: see `_finish_loading`.
            _apply(self.predictor, name, value)

    def _change_window(self, window: int | None) -> None:
        """Change the window, at once or, where the backend must compile the network for it, when that is done."""
        predictor = self.predictor
        try:
            predictor.check_window(window)
        except ConfigError:
            return  # the checkpoint of the same request can have it: see `_finish_loading`
        if predictor.is_ready(window):
            self._apply_to_running("window", window)
        elif not self._compiler.busy:

            def prepare() -> VideoPredictor:
                predictor.prepare_window(window)
                return predictor

            self._node.get_logger().info(
                f"the window stays at {predictor.window} until the network is compiled for the new one"
            )
            self._compiler.start(prepare)

    # Results of the threads

    def poll(self) -> None:
        """Use what a thread has loaded or compiled."""
        self._finish_loading()
        self._finish_compiling()

    def _finish_loading(self) -> None:
        loaded = self._loader.poll()
        if loaded is None or self.predictor is None:
            return
        try:
            if isinstance(loaded, Exception):
                raise loaded
            loaded.check_window(self._params["window"] or None)
            for name in LIVE:  # what changed while it was loading
                if name != "window":
                    _apply(loaded, name, self._params[name])
        except Exception as err:
            self._node.get_logger().error(f"the checkpoint was not changed: {one_line(err)}")
            self._restore()
            return
        self.predictor, self._running = loaded, self._wanted
        if self.worker is not None:
            self.worker.replace(loaded)
        self._change_window(self._params["window"] or None)
        self._node.get_logger().info(f"now running {loaded.checkpoint.path}")
        self.log_licence()

    def _finish_compiling(self) -> None:
        prepared = self._compiler.poll()
        if prepared is None or self.predictor is None:
            return
        if isinstance(prepared, Exception):
            self._node.get_logger().error(f"the window was not changed: {one_line(prepared)}")
            window = Parameter("window", Parameter.Type.INTEGER, self.predictor.window)
            self._node.set_parameters([window])
        else:
            self._change_window(self._params["window"] or None)  # which may have changed again
            self._node.get_logger().info(f"the network is compiled, window {self.predictor.window}")

    def _restore(self) -> None:
        """Set the parameters back to those of the predictor in use."""
        changes = [Parameter("checkpoint", Parameter.Type.STRING, self._running)]
        try:
            self.predictor.check_window(self._params["window"] or None)
        except ConfigError:
            changes.append(Parameter("window", Parameter.Type.INTEGER, self.predictor.window))
        try:
            self.predictor.check_classes(self._params["classes"])
        except ConfigError:
            kept = list(self.predictor.classes)
            changes.append(Parameter("classes", Parameter.Type.STRING_ARRAY, kept))
        self._restoring = True
        for result in self._node.set_parameters(changes):
            if not result.successful:  # its file may be gone; the loaded network stays in use
                self._node.get_logger().warning(
                    f"{self._running} stays active, but its parameter cannot be restored: {result.reason}"
                )
        self._restoring = False


def _apply(predictor: VideoPredictor, name: str, value: Any) -> None:
    """Set a parameter of `LIVE` on a predictor.

    Raises:
        ConfigError: If its network does not allow the value.
    """
    if name == "output_size":
        predictor.output_size = parse_output_size(value)
    elif name == "window":
        predictor.window = value or None
    else:
        setattr(predictor, {"max_gap": "max_gap_s"}.get(name, name), value)
