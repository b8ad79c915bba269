# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The bond by which nav2's lifecycle manager sees that a node lives; where `bondpy` is installed."""

from __future__ import annotations

from rclpy.lifecycle import LifecycleNode

from vtseg_ros.nodes.process import until_shutdown

try:
    from bondpy.bondpy import Bond
except ImportError:  # not part of every installation; without it the manager needs bond_timeout 0.0
    Bond = None

HEARTBEAT_S, TIMEOUT_S = 0.1, 4.0  # as nav2's own nodes


class LifecycleBond:
    """A bond to the lifecycle manager while a node is active, as nav2_util's LifecycleNode keeps it.

    Args:
        node: whose life it shows.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node, self._bond = node, None

    def form(self) -> None:
        """Begin to send heartbeats; without `bondpy`, do nothing."""
        if Bond is None or self._bond is not None:
            return
        self._bond = Bond("bond", self._node.get_name(), self._node)
        self._bond.heartbeat_period, self._bond.heartbeat_timeout = HEARTBEAT_S, TIMEOUT_S
        self._bond.start()

    def break_off(self) -> None:
        """End the bond, which the manager sees."""
        if self._bond is not None:
            with until_shutdown(self._node.context):
                self._bond.shutdown()
            self._bond = None
