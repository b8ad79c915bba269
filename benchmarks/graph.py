# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Processes and a client for the benchmarks: loopback Fast DDS in a separate domain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from vtseg_ros.nodes.conversions import to_image
from vtseg_ros.nodes.dds import free_domain, profile_environment

ROOT = Path(__file__).resolve().parents[1]
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
START_TIMEOUT_S = 300.0


def use_loopback(profile: str) -> None:
    """Set the domain and Fast DDS profile of this process and its children ("" = the defaults of Fast DDS)."""
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.update(profile_environment(profile, ROOT))


class Processes:
    """Child processes, which are ended at exit."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []

    def start(self, *command: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, *command], stdout=sys.stderr)
        self._running.append(process)
        return process

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._running:
            process.wait(30)


class Client(Node):
    """Publish images and wait for the results."""

    def __init__(self) -> None:
        super().__init__("benchmark")
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)

    def wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Spin until `done()`; after the timeout, end the program with `what`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self.executor_.spin_once(timeout_sec=0.05)
            if time.monotonic() > deadline:
                raise SystemExit(f"benchmark: {what} within {timeout_s:.0f} s")


class RoundTrip:
    """Time from sending an image to the result with the same stamp, s."""

    def __init__(self, client: Client, image_topic: str, answer_topic: str) -> None:
        self._client, self._answer = client, None
        self._publisher = client.create_publisher(Image, image_topic, RELIABLE)
        self._subscription = client.create_subscription(Image, answer_topic, self._on_answer, RELIABLE)

    def _on_answer(self, message: Image) -> None:
        self._answer = message

    def connect(self) -> None:
        """Wait until publisher and subscription are connected."""
        self._client.wait(
            lambda: (
                self._publisher.get_subscription_count()
                and self._client.count_publishers(self._subscription.topic_name)
            ),
            START_TIMEOUT_S,
            f"nobody takes {self._publisher.topic_name}",
        )
        time.sleep(1.0)

    def publish(self, image: np.ndarray, stamp_ns: int) -> None:
        """Send an image (H, W, 3) uint8 without waiting."""
        self._publisher.publish(_message(image, stamp_ns))

    def __call__(self, image: np.ndarray, stamp_ns: int) -> float:
        """Send an image, wait for its result and return the time, s."""
        message = _message(image, stamp_ns)
        self._answer = None
        began = time.perf_counter()
        self._publisher.publish(message)
        self._client.wait(
            lambda: self._answer is not None, 30.0, f"no answer on {self._subscription.topic_name}"
        )
        spent = time.perf_counter() - began
        assert self._answer.header == message.header
        return spent


def _message(image: np.ndarray, stamp_ns: int) -> Image:
    header = Header(frame_id="camera")
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return to_image(image, "rgb8", header)


def start_client() -> Client:
    rclpy.init()
    return Client()


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return p10, p50 and p95 in ms."""
    return {f"p{q}_ms": round(float(np.percentile(seconds, q)) * 1e3, 3) for q in (10, 50, 95)}


def picture(size: tuple[int, int]) -> np.ndarray:
    """Return a noise image, (H, W, 3) uint8."""
    return np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
