# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The end of a node's process."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("rclpy")

# Blocks in C with the interpreter's lock, as rclpy does while Fast DDS removes a participant.
STUCK = """
import ctypes
from rclpy.node import Node
from vtseg_ros.nodes import process

class Stuck(Node):
    finished = True

    def close(self):
        print("closed", flush=True)

    def destroy_node(self):
        ctypes.PyDLL(None).sleep(10_000)

process.LEAVE_WITHIN_S = 0.5
raise SystemExit(process.run_node(lambda: Stuck("stuck"), []))
"""


def test_a_node_that_cannot_leave_the_network_ends(start_process, ros_environment):
    process = start_process([sys.executable, "-c", STUCK], ros_environment)
    assert process.wait() == 1
    output = process.output()
    assert "closed" in output and "Timeout" in output and "destroy_node" in output


FULL = """
from rclpy.node import Node
from vtseg_ros.errors import BagError
from vtseg_ros.nodes import process

class Full(Node):
    finished = {finished}

    def __init__(self):
        super().__init__("full")
        self.create_timer(0.01, self.fail)

    def fail(self):
        raise BagError("the disk is full")

    close = fail

raise SystemExit(process.run_node(Full, []))
"""


@pytest.mark.parametrize("finished", [False, True])
def test_an_error_while_running_and_closing_is_one_line(start_process, ros_environment, finished):
    """On a full disk, the end of a bag fails as its last write did."""
    process = start_process([sys.executable, "-c", FULL.format(finished=finished)], ros_environment)
    assert process.wait() == 2
    assert process.output().strip() == "full: the disk is full"
