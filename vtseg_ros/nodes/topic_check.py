# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Report who publishes and subscribes to a topic and which of them cannot talk to each other, for `vtseg doctor`."""

from __future__ import annotations

import json
import sys
import time
from difflib import get_close_matches
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible

from vtseg_ros.nodes.inputs import INPUT_QOS
from vtseg_ros.nodes.process import leaving
from vtseg_ros.transports import MSGTYPES

DISCOVERY_S = 3.0
LATE_S = 10.0
"""Further wait for a publisher and for the names of nodes: busy machines take longer to know each other."""
UNKNOWN = "_NODE_NAME_UNKNOWN_"  # of an endpoint that is discovered before its node


def check_topic(
    node: Node, topic: str, *, discovery_s: float = DISCOVERY_S, late_s: float = LATE_S
) -> dict[str, Any]:
    """Examine a topic.

    Args:
        node: any node.
        topic: its name, resolved like a node's.
        discovery_s: how long to wait for participants.
        late_s: how much longer to wait for a publisher, and for the names of the nodes.

    Returns:
        JSON types: `name`, `publishers`, `subscribers`, `findings` (see `vtseg_ros.diagnosis.Finding`).
    """
    topic = node.resolve_topic_name(topic)
    time.sleep(discovery_s)  # there is no event for a discovery that is complete
    until = time.monotonic() + late_s
    while True:
        publishers = node.get_publishers_info_by_topic(topic)
        subscribers = node.get_subscriptions_info_by_topic(topic)
        unknown = [end for end in (*publishers, *subscribers) if end.node_name == UNKNOWN]
        if (publishers and not unknown) or time.monotonic() > until:
            break
        time.sleep(0.1)
    findings: list[dict[str, Any]] = []

    def found(name: str, text: str, remedy: str, problem: bool = True) -> None:
        findings.append({"name": name, "text": text, "remedy": remedy, "problem": problem})

    if not publishers:
        names = sorted(name for name, _ in node.get_topic_names_and_types() if node.count_publishers(name))
        near = get_close_matches(topic, names, n=3) or [name for name in names if "image" in name][:5]
        found(
            "no_publisher",
            f"{topic}: nobody publishes it on this domain. Similar topics: {', '.join(near) or 'none'}",
            "Compare the name, ROS_DOMAIN_ID and the Fast DDS profiles of both sides.",
        )
    for publisher in publishers:
        for subscriber in subscribers:
            ends = f"{topic}: {_name(subscriber)} does not receive from {_name(publisher)}"
            if publisher.topic_type != subscriber.topic_type:
                found(
                    "type_mismatch",
                    f"{ends}: types {subscriber.topic_type} and {publisher.topic_type}",
                    "Subscribe to the type that is published, or to another topic.",
                )
                continue
            match, reason = qos_check_compatible(publisher.qos_profile, subscriber.qos_profile)
            if match == QoSCompatibility.ERROR:
                found(
                    "qos_mismatch",
                    f"{ends}: QoS: {reason.strip(' ;')}",
                    _remedy(publisher.qos_profile, subscriber.qos_profile),
                )
        if not subscribers and publisher.topic_type in MSGTYPES:
            for name, qos in INPUT_QOS.items():
                match, reason = qos_check_compatible(publisher.qos_profile, qos)
                if match == QoSCompatibility.ERROR:
                    found(
                        "qos_choice",
                        f"{topic}: input_qos {name} would not receive from {_name(publisher)}: {reason.strip(' ;')}",
                        "Use another input_qos.",
                        problem=False,
                    )
    return {
        "name": topic,
        "publishers": [_describe(end) for end in publishers],
        "subscribers": [_describe(end) for end in subscribers],
        "findings": findings,
    }


def _name(end: Any) -> str:
    return f"{end.node_namespace.rstrip('/')}/{end.node_name}"


def _describe(end: Any) -> str:
    qos = end.qos_profile
    return f"{_name(end)} ({end.topic_type}, {qos.reliability.name.lower()}, {qos.durability.name.lower()})"


def _remedy(offered: QoSProfile, wanted: QoSProfile) -> str:
    parts = []
    best_effort = offered.reliability == ReliabilityPolicy.BEST_EFFORT
    if best_effort and wanted.reliability == ReliabilityPolicy.RELIABLE:
        parts.append(
            "Subscribe with best effort (the segmenter: input_qos: sensor_data), or publish reliable."
        )
    volatile = offered.durability == DurabilityPolicy.VOLATILE
    if volatile and wanted.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        parts.append("Subscribe with volatile, or publish transient local.")
    return " ".join(parts) or "Give both sides the same deadline, lifespan and liveliness."


def main() -> int:
    """Print the report on the topic that is named as JSON."""
    rclpy.init(args=sys.argv[:1])
    node = Node("vtseg_doctor")
    try:
        print(json.dumps(check_topic(node, sys.argv[1])), flush=True)
    finally:
        with leaving():
            node.destroy_node()
            rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
