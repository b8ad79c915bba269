# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A node's process: start, spin until a signal, leave with exit code 0."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vtseg_ros.errors import VTSegError, first_line
from vtseg_ros.nodes.log_handler import library_messages_in
from vtseg_ros.nodes.parameter_files import assignment_problems, file_problem, parameter_files

LEAVE_WITHIN_S = 20.0
"""Longest time to destroy a node. Leaving the DDS network takes less than a second otherwise."""
STDERR = 2
"""File descriptor; `sys.stderr` can be a stream without one."""


def run_node(make: Callable[[], Node], argv: Sequence[str] | None = None) -> int:
    """Spin a node until SIGINT, SIGTERM or its `finished` attribute, and return the exit code.

    The node's `close()` runs before it is destroyed.

    Args:
        make: Creates the node, after rclpy is initialised.
        argv: Arguments of ROS; None = those of the process.

    Returns:
        The node's `exit_code`, or 2 after an error of the user, which is reported in one line. A process that cannot leave
        the DDS network ends with 1, see `leaving`.
    """
    try:
        rclpy.init(
            args=list(argv) if argv is not None else None, signal_handler_options=SignalHandlerOptions.NO
        )
    except (
        _rclpy.RCLError,
        _rclpy.UnknownROSArgsError,
    ) as err:  # a parameter file or an argument that cannot be parsed
        given = sys.argv if argv is None else argv
        known = [*assignment_problems(given), *map(file_problem, parameter_files(given))]
        reason = next(filter(None, known), "") or first_line(err)
        print(f"vtseg_ros: {reason}", file=sys.stderr)
        return 2
    stop = [False]
    executor = SingleThreadedExecutor()

    def on_signal(*_: object) -> None:
        stop[0] = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    node, failed = None, False
    try:
        node = make()
        executor.add_node(node)
        with library_messages_in(node.get_logger()):
            while not stop[0] and not getattr(node, "finished", False) and rclpy.ok():
                _spin_once(executor, node)
    except (VTSegError, ParameterException) as err:
        failed = True
        print(f"{node.get_name() if node else 'vtseg_ros'}: {err}", file=sys.stderr)
    except NameValidationException as err:  # such as a topic `1/image` on the command line
        failed = True
        print(f"vtseg_ros: {' '.join(str(err).split())}", file=sys.stderr)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        try:
            if node is not None:
                node.close()
        except VTSegError as err:
            if not failed:  # on a full disk, both a write and the end of a bag fail
                print(f"{node.get_name()}: {err}", file=sys.stderr)
            failed = True
        with leaving():
            if node is not None:
                node.destroy_node()
            executor.shutdown()
            rclpy.try_shutdown()
    return 2 if failed else getattr(node, "exit_code", 0)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End the process if the block takes longer than `LEAVE_WITHIN_S`.

    If another node appears or leaves at this moment, Fast DDS waits for one of its own threads without end when it was built
    with an old compiler, as the packages on PyPI were (eProsima/Fast-DDS issue 6513). Neither a signal handler nor a thread
    of Python runs then, because rclpy holds the interpreter's lock. The watchdog of faulthandler does not need that lock: it
    prints where each thread is and ends the process with exit code 1.
    """
    faulthandler.dump_traceback_later(LEAVE_WITHIN_S, exit=True, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def until_shutdown(context: rclpy.Context) -> Iterator[None]:
    """Ignore that nothing can be published any more once the context has ended.

    A program that runs a node itself may leave the signals to rclpy, which ends the context before the node is closed.

    Args:
        context: The context of the node.

    Raises:
        RCLError: If publishing fails while the context is valid.
    """
    try:
        yield
    except _rclpy.RCLError:
        if context.ok():
            raise


def _spin_once(executor: SingleThreadedExecutor, node: Node) -> None:
    """Run one round of callbacks; an exception that none of them expects is logged and does not end the node.

    rclpy's own services raise too: a parameter of a type that does not exist would end any node.
    """
    try:
        executor.spin_once(timeout_sec=0.1)
    except (VTSegError, ExternalShutdownException):
        raise
    except Exception as err:
        where = traceback.extract_tb(err.__traceback__)[-1]
        node.get_logger().error(
            f"a callback failed: {type(err).__name__}: {err} ({Path(where.filename).name}:{where.lineno})",
            throttle_duration_sec=1.0,
        )
