# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`ros2 bag play` for places without rosbag2: a bag's messages onto their topics, with /clock."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMessage
from std_srvs.srv import SetBool

from vtseg_ros.bags.bag_reader import DAY_NS, BagReader
from vtseg_ros.bags.bag_writer import LATCHED
from vtseg_ros.bags.messages import NS
from vtseg_ros.errors import BagError
from vtseg_ros.topic_names import is_playable

TICK_S = 0.002
SETTLE_S = 0.7  # from the first match until both sides of it know: earlier messages may get lost
ANNOUNCE_S = 10.0  # longer pauses are announced
DRAIN_S = 1.0  # how long the last messages may take to their subscribers


@dataclass(frozen=True)
class PlayerConfig:
    """How to play.

    Args:
        bag: path.
        rate: speed, 1 = as recorded.
        loop: start over at the end.
        clock_hz: rate of /clock in bag time; 0 = none.
        topics: which; empty = all.
        exclude: regular expression: topics in which it is found are left out; empty = none.
        remap: topic in the bag -> topic to publish.
        wait_for: topics (as published) that need a subscriber before the start; named n times, n subscribers.
        wait_timeout_s: give up waiting after this.
        paused: start paused (see the service ~/pause).
    """

    bag: Path
    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 0.0
    topics: tuple[str, ...] = ()
    exclude: str = ""
    remap: dict[str, str] = field(default_factory=dict)
    wait_for: tuple[str, ...] = ()
    wait_timeout_s: float = 60.0
    paused: bool = False

    def plays(self, topic: str) -> bool:
        """Return whether a topic of the bag is asked for."""
        return (not self.topics or topic in self.topics) and not self.excludes(topic)

    def excludes(self, topic: str) -> bool:
        """Return whether a topic is to be left out."""
        return bool(self.exclude) and re.search(self.exclude, topic) is not None


def _message_class(msgtype: str) -> type | None:
    """Return the class of a message type, or None when it is not installed.

    A bag may name anything: only packages that registered interfaces are imported, since an import runs code.
    """
    package, _, name = msgtype.partition("/msg/")
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    index = [Path(prefix) / "share/ament_index/resource_index/rosidl_interfaces" for prefix in prefixes]
    if not package.isidentifier() or not any((folder / package).is_file() for folder in index):
        return None
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


class PlayerNode(Node):
    """Publishes a bag; `finished` turns True at its end.

    Args:
        config: how.
        on_message: called after each message.
    """

    def __init__(self, config: PlayerConfig, on_message: Callable[[], None] = lambda: None) -> None:
        super().__init__("player")
        self.finished, self.exit_code = False, 0
        self.sent: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        """Messages by their topic in the bag."""
        self._config, self._on_message = config, on_message
        self._bag = BagReader(config.bag)
        self._bag.require(*config.topics, *config.remap)
        self._outputs = self._make_publishers()
        if not self._outputs:
            raise BagError(f"bag {config.bag}: none of its topics can be published")
        if not any(self._bag.topics[topic].count for topic in self._outputs):
            raise BagError(f"bag {config.bag}: no message on {', '.join(self._outputs)}")
        published = {target for target, _ in self._outputs.values()}
        unknown = [topic for topic in dict.fromkeys(config.wait_for) if topic not in published]
        if unknown:
            raise BagError(
                f"--wait-for: bag {config.bag} publishes nothing on {', '.join(unknown)}; expected topics of "
                f"{', '.join(sorted(published))}"
            )
        self._clock = self.create_publisher(ClockMessage, "/clock", 10) if config.clock_hz else None
        self.create_service(SetBool, "~/pause", self._on_pause)
        self._messages = self._bag.raw(list(self._outputs))
        self._next = next(self._messages, None)
        self._paused = config.paused
        self._waiting = bool(config.wait_for)
        self._began = self._matched = time.monotonic()
        self._bag_ns = float(self._bag.start_ns)
        self._last = self._last_clock = time.monotonic()
        self._ended: float | None = None
        self._announced_ns: int | None = None
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK_S, self._tick, clock=steady)

    def _make_publishers(self) -> dict[str, tuple[str, object]]:
        """Create a publisher per topic: from the topic in the bag to the published topic and its publisher."""
        made = {}
        for topic, info in sorted(self._bag.topics.items()):
            if self._config.excludes(topic):
                self.get_logger().info(f"{topic} is not played: it is excluded")
            if not self._config.plays(topic):
                continue
            if topic == "/clock" and self._config.clock_hz:
                continue  # the player's own
            name, kind = info.msgtype.rpartition("/")[2], _message_class(info.msgtype)
            if kind is None:
                self.get_logger().warning(
                    f"{topic} is not played: its type {info.msgtype} is not installed here"
                )
                continue
            target = self._config.remap.get(topic, topic)
            if target == topic and not is_playable(topic):
                self.get_logger().warning(
                    f"{topic} is not played: ROS does not allow this name. Rename it: --remap '{topic}:=/NAME'"
                )
                continue
            latched = (
                name in ("LabelMap", "LabelInfo")
                or target == "/tf_static"
                or LATCHED.durability in (offered.durability for offered in self._bag.qos[topic])
            )
            qos = QoSProfile(
                depth=100,
                reliability=ReliabilityPolicy.RELIABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
            )
            made[topic] = (target, self.create_publisher(kind, target, qos))
        return made

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success, response.message = True, "paused" if request.data else "playing"
        return response

    def _missing(self) -> list[str]:
        """Topics that have fewer subscribers than they wait for."""
        counts = {target: publisher.get_subscription_count() for target, publisher in self._outputs.values()}
        return [topic for topic, n in Counter(self._config.wait_for).items() if counts[topic] < n]

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        if self._waiting:
            missing = self._missing()
            if missing:
                self._matched = now
            if now - self._matched > SETTLE_S:
                self._waiting = False
            elif now - self._began > self._config.wait_timeout_s:
                self.get_logger().error(
                    f"too few subscribers to {', '.join(missing) or 'all topics for long enough'} within "
                    f"{self._config.wait_timeout_s:g} s. Start them before the player, or increase --wait-timeout"
                )
                self.exit_code, self.finished = 1, True
            return
        if self._ended is not None:
            self.finished = now - self._ended > DRAIN_S
            return
        if not self._paused:
            self._bag_ns += elapsed * self._config.rate * NS
            self._skip_gap()
        self._publish_clock(now)
        if self._paused:
            return
        while self._next is not None and self._next[2] <= self._bag_ns:
            topic, _, _, data = self._next
            target, publisher = self._outputs[topic]
            publisher.publish(bytes(data))
            self.read[topic] += 1
            self.sent[target] += 1
            self._on_message()
            self._next = next(self._messages, None)
        if self._next is None:
            self._end(now)

    def _skip_gap(self) -> None:
        """Go on at once where bag times lie days apart, and announce pauses that look like a hang."""
        if self._next is None or self._next[2] == self._announced_ns:
            return
        pause_s = (self._next[2] - self._bag_ns) / NS
        if pause_s * NS > DAY_NS:
            self.get_logger().warning(
                f"the next message, on {self._next[0]}, is {pause_s / 86_400:.0f} days later in the bag; this pause is skipped"
            )
            self._bag_ns = float(self._next[2])
        elif pause_s / self._config.rate > ANNOUNCE_S:
            self._announced_ns = self._next[2]
            self.get_logger().info(
                f"the next message, on {self._next[0]}, is {pause_s:.0f} s later in the bag; to wait less, use a higher --rate"
            )

    def _end(self, now: float) -> None:
        if not self._config.loop:
            self._ended = now
            empty = [topic for topic in self._outputs if topic in self._bag.missing and not self.read[topic]]
            if empty:
                self.get_logger().error(
                    f"no message was sent on {', '.join(empty)}, although the bag lists messages there"
                )
                self.exit_code = 2
            return
        self._messages = self._bag.raw(list(self._outputs))
        self._next = next(self._messages, None)
        self._bag_ns = float(self._bag.start_ns)

    def _publish_clock(self, now: float) -> None:
        if self._clock is None or now - self._last_clock < 1.0 / self._config.clock_hz:
            return
        self._last_clock = now
        message = ClockMessage()
        message.clock.sec, message.clock.nanosec = divmod(int(self._bag_ns), NS)
        self._clock.publish(message)

    @property
    def messages_missing(self) -> int:
        """Number of messages that the bag announces and does not contain."""
        return sum(self._bag.missing.values())

    def close(self) -> None:
        """Close the bag."""
        self._bag.close()
