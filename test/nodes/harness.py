# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A node of the test's own that talks to a segmenter process over DDS."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import rclpy
from conftest import PATIENCE_S, wait_until
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

RELIABLE = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
REPEAT_S = 20.0
MESSAGES_S, CALLS_S = 0.5, 1.0
"""Time for the other process to discover this one's end, of which nothing here tells."""


class Harness:
    """Publishes, and collects messages by topic; spins in a thread."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update({k: environment[k] for k in ("ROS_DOMAIN_ID", "FASTRTPS_DEFAULT_PROFILES_FILE")})
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self.node = Node("harness", context=self._context)
        self._clients: dict[str, object] = {}
        self.received: dict[str, list] = defaultdict(list)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stop = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop:
            self._executor.spin_once(timeout_sec=0.05)

    def collect(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> list:
        """Subscribe; returns the list that messages are added to."""
        self.node.create_subscription(kind, topic, self.received[topic].append, qos)
        return self.received[topic]

    def publisher(self, kind: type, topic: str, qos: QoSProfile = RELIABLE):
        return self.node.create_publisher(kind, topic, qos)

    def connect(self, publisher, say: Callable[[], str] = lambda: "") -> None:
        """Wait until a subscription of another process receives from a publisher."""
        wait_until(lambda: publisher.get_subscription_count() > 0, say)
        time.sleep(MESSAGES_S)

    def call(self, kind: type, service: str, request, *, repeat: bool = True):
        """Call a service and wait for its answer.

        `repeat`: whether a call without an answer, which can be lost, is made again; the service must bear that.
        """
        client = self._clients.get(service)
        if client is None:
            client = self._clients[service] = self.node.create_client(kind, service)
            assert client.wait_for_service(PATIENCE_S), service
            # The server must know the client too: an answer sent before that is lost, and the call with it.
            time.sleep(CALLS_S)
        attempts = round(PATIENCE_S / REPEAT_S) if repeat else 1
        for _ in range(attempts):
            done = threading.Event()
            future = client.call_async(request)
            future.add_done_callback(lambda _, done=done: done.set())
            if done.wait(REPEAT_S if repeat else PATIENCE_S):
                return future.result()
            future.cancel()
        raise AssertionError(f"{service} did not answer {attempts} calls in {PATIENCE_S} s")

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)
