# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Two publishers of one image topic (a restarted driver, or a bag and a camera): memory stays constant.

With a history of one image Fast DDS 2.14 loses a payload of 92 KB now and then, 0.7 MB a second at these rates.
"""

from __future__ import annotations

import os
import sys

import pytest

pytest.importorskip("rclpy")

from conftest import Process

PUBLISHER = """if True:
    import sys, time, rclpy
    from sensor_msgs.msg import Image
    rate, seconds = float(sys.argv[2]), float(sys.argv[3])
    rclpy.init()
    publisher = rclpy.create_node("publisher_" + sys.argv[1]).create_publisher(Image, "two/image", 10)
    image = Image(height=96, width=320, encoding="rgb8", step=960, data=bytes(92160 if sys.argv[1] == "big" else 0))
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        publisher.publish(image)
        sent += 1
        time.sleep(max(0.0, began + sent / rate - time.monotonic()))
"""
SUBSCRIBER = """if True:
    import sys, time, rclpy
    from sensor_msgs.msg import Image
    from vtseg_ros.nodes.inputs import INPUT_QOS
    def own_kb():
        return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
    rclpy.init()
    node, got, first = rclpy.create_node("subscriber"), [], None
    node.create_subscription(Image, "two/image", lambda _: got.append(1), INPUT_QOS["sensor_data"])
    print("ready", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
        if first is None and len(got) > 1000:
            first = own_kb()
    print(len(got), own_kb() - (first or 0), flush=True)
"""


@pytest.mark.long  # 14 s of images at 1200 Hz
def test_memory_with_two_publishers_of_a_topic(ros_environment, start_process):
    seconds = 14

    def start(code: str, *arguments: object) -> Process:
        # On one processor: it takes a subscriber that does not keep up.
        command = ["taskset", "-c", min(os.sched_getaffinity(0)), sys.executable, "-c", code, *arguments]
        return start_process(command, ros_environment)

    subscriber = start(SUBSCRIBER, seconds)
    subscriber.wait_for("ready")
    publishers = [start(PUBLISHER, "big", 1000, seconds), start(PUBLISHER, "small", 200, seconds)]
    assert subscriber.wait() == 0, subscriber.output()
    for process in publishers:
        process.kill()
    said = subscriber.output().splitlines()[-1]
    received, grown_kb = map(int, said.split())
    assert received > 2000, said
    assert grown_kb < 2000, f"{grown_kb} KB more after {received} images"
