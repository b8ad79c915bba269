# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: offline training from bags, with its progress on a topic."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node

from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.msg import TrainingProgress
from vtseg_ros.nodes.parameters import Param, Parameters, TypedParameters, locked_while_running
from vtseg_ros.nodes.process import run_node, until_shutdown
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.record import Progress
from vtseg_ros.training.run import train

DISCOVERY_S = 5.0  # from its start, a trainer that is done waits so long for a first subscriber
ACK_S = 5.0  # how long the last progress waits to be received before the node goes


def _check_config(path: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(
            f"no such file; expected a training YAML, got {path!r}. Set it with -p config:=FILE"
        )


PARAMETERS = (
    Param("config", "", "Training YAML, such as config/train/street.yaml.", check=_check_config, path=True),
    Param("output_dir", "training", "Folder for checkpoints and logs.", path=True),
    Param("resume", False, "Continue from the state in output_dir."),
)


class TrainerNode(TypedParameters, Node):
    """Trains in a thread; saves and ends on a signal. `finished` turns True when it is done."""

    def __init__(self) -> None:
        super().__init__("trainer")
        self._params = Parameters(self, PARAMETERS, locked=locked_while_running)
        self._params.check_all()
        self._config = load_config(self._params["config"])
        self.finished, self.exit_code = False, 0
        self._stop = threading.Event()
        self._latest: Progress | None = None
        self._published: Progress | None = None
        self._publisher = self.create_publisher(TrainingProgress, "training/progress", 10)
        self._published_from = time.monotonic()
        self._thread = threading.Thread(target=self._train, name="training")
        self._thread.start()
        self.create_timer(0.5, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _train(self) -> None:
        try:
            train(
                self._config,
                self._params["output_dir"],
                resume=self._params["resume"],
                on_progress=lambda progress: setattr(self, "_latest", progress),
                should_stop=self._stop.is_set,
            )
        except VTSegError as err:
            self.get_logger().error(f"training failed: {err}")
            self.exit_code = 2
        except Exception:  # any failure of the thread must end the process with a word
            self.get_logger().error(f"training failed:\n{traceback.format_exc()}")
            self.exit_code = 1
        self.finished = True

    def _on_timer(self) -> None:
        progress = self._latest
        if progress is None or progress is self._published:
            return
        if not self._publisher.get_subscription_count():
            return  # whoever comes first gets the latest
        self._published = progress
        message = TrainingProgress(
            stage=progress.stage,
            epoch=progress.epoch,
            epochs=progress.epochs,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            validation_miou=progress.validation_miou,
            seconds_left=progress.seconds_left,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def close(self) -> None:
        """Ask the training to save and end, and wait for it."""
        self._stop.set()
        ended = self.finished
        self._thread.join()
        with until_shutdown(self.context):
            if ended and self._latest is not None:
                self._await_subscriber()
            self._on_timer()
            self._publisher.wait_for_all_acked(Duration(seconds=ACK_S))

    def _await_subscriber(self) -> None:
        """Wait for a subscriber: a training of seconds ends before DDS has found it."""
        while (
            not self._publisher.get_subscription_count()
            and time.monotonic() < self._published_from + DISCOVERY_S
        ):
            time.sleep(0.02)


def main(args: list[str] | None = None) -> int:
    """Entry point of `ros2 run vtseg_ros trainer`."""
    return run_node(TrainerNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
