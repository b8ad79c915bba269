# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Messages of the library in the log of a node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.impl.rcutils_logger import RcutilsLogger


class RosLogHandler(logging.Handler):
    """Forward records of Python's `logging` to the logger of a node.

    Args:
        logger: Logger of the node.
    """

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record; rclpy requires one line of code per severity."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


@contextmanager
def library_messages_in(logger: RcutilsLogger) -> Iterator[None]:
    """Send what the library logs from INFO on to the log of a node, and so to /rosout.

    Args:
        logger: Logger of the node.
    """
    library, handler = logging.getLogger("vtseg_ros"), RosLogHandler(logger)
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
