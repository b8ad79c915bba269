# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode a live topic of encoded video in a thread of its own: every packet is needed, also while the network is busy."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from std_msgs.msg import Header

from vtseg_ros.bags.video_decoder import VideoDecoder
from vtseg_ros.bags.video_messages import packet_of
from vtseg_ros.errors import ImageError
from vtseg_ros.nodes.conversions import to_image

MAX_WAITING = 60
"""Packets that may wait for the decoder; about two seconds."""
TOO_SLOW = "video packets come faster than they can be decoded"


class VideoInput:
    """Turn the packets of one camera into raw images.

    Args:
        on_image: Called in the decoder's thread with each sensor_msgs/Image (rgb8), with the header of its own packet.
        on_lost: Called with the header of each packet that gives no image, and the reason.
        warn: Called with a line when packets begin to give no image, and with their number when images come again.

    Raises:
        ConfigError: If the package `av` is missing.
    """

    def __init__(
        self,
        on_image: Callable[[Any], None],
        on_lost: Callable[[Header, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._on_image, self._on_lost, self._warn = on_image, on_lost, warn
        self._decoder: VideoDecoder[Header] = VideoDecoder(live=True)
        self._waiting: queue.Queue[Any] = queue.Queue(MAX_WAITING)
        self._overrun = threading.Event()
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name="video decoder", daemon=True)
        self._thread.start()

    def put(self, message: Any) -> None:
        """Store a packet; one that comes while too many wait is lost."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._overrun.set()
            self._on_lost(_header(message), TOO_SLOW)

    def stop(self) -> None:
        """Decode what waits and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._waiting.get()) is not None:
            self._decode(message)
        self._report(self._decoder.flush())

    def _decode(self, message: Any) -> None:
        header = _header(message)
        try:
            if self._overrun.is_set():
                self._overrun.clear()
                self._report(self._decoder.lose())
            self._report(self._decoder.push(packet_of(message), header))
        except ImageError as err:
            self._report(self._decoder.lose())
            self._lost(header, str(err))
        except Exception as err:  # an exception here must not stop the decoder's thread
            self._lost(header, f"decoding failed: {type(err).__name__}: {err}")

    def _report(self, results: list[Any]) -> None:
        for one in results:
            if one.image is None:
                self._lost(one.token, one.reason)
                continue
            if self._failed:
                self._warn(f"{self._failed} video packets gave no image; images come again")
                self._failed = 0
            self._on_image(to_image(one.image, "rgb8", one.token))

    def _lost(self, header: Header, reason: str) -> None:
        if not self._failed:
            self._warn(f"a video packet gives no image: {reason}")
        self._failed += 1
        self._on_lost(header, reason)


def _header(message: Any) -> Header:
    if hasattr(message, "timestamp"):
        return Header(stamp=message.timestamp, frame_id=message.frame_id)
    return message.header
