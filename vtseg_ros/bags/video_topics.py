# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read the video topics of a bag as raw images: from front to back, and single images from their key frame on."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vtseg_ros.bags.messages import Message, image_message
from vtseg_ros.bags.video_decoder import NO_KEY_FRAME, Decoded, VideoDecoder
from vtseg_ros.bags.video_messages import VideoPacket, packet_from_cdr
from vtseg_ros.errors import BagError, ConfigError, ImageError

ReadTopic = Callable[[int | None, int | None], Iterator[tuple[int, bytes]]]
"""Yields the messages of a topic as (bag time in ns, CDR bytes) in time order, from a first bag time to a last one,
excluded; None = the begin or the end of the bag."""
CACHE_BYTES = 128 * 1024 * 1024
"""Images that are kept for windows of frames, which are read newest first."""
CACHE_IMAGES = 8
"""Images that are kept whatever their size."""


@dataclass(frozen=True)
class VideoImage:
    """An image of a video topic, or the reason why a packet gave none.

    Attributes:
        position: Number of its message on the topic, from 0; -1 = not counted.
        time_ns: Bag time of its message.
        message: sensor_msgs/Image; None = there is no image.
        reason: Why there is none.
    """

    position: int
    time_ns: int
    message: Message | None
    reason: str = ""


@dataclass(frozen=True)
class _Place:
    position: int
    time_ns: int
    packet: VideoPacket | None


@dataclass(frozen=True)
class _Key:
    """Key frame.

    Attributes:
        position: Number of its message on the topic.
        time_ns: Bag time of its message.
        parameters: Parameter sets that it lacks, from an earlier packet.
        before: Key frame from which all images of its group can be decoded; None = itself.
    """

    position: int
    time_ns: int
    parameters: bytes
    before: _Key | None = None


class VideoStream:
    """Decode serialized messages of one video topic in their order.

    Args:
        topic: Name of the topic, for errors.
        msgtype: Type of its messages.

    Raises:
        ConfigError: If the package `av` is missing.
    """

    def __init__(self, topic: str, msgtype: str) -> None:
        self._msgtype = msgtype
        self.failed: Counter[str] = Counter()
        """Number of packets that gave no image, by reason."""
        try:
            self._decoder: VideoDecoder[_Place] = VideoDecoder()
        except ConfigError as err:
            raise ConfigError(f"topic {topic}: {err}") from err

    def push(
        self, time_ns: int, data: bytes, *, position: int = -1, parameters: bytes = b""
    ) -> list[VideoImage]:
        """Decode a message.

        Args:
            time_ns: Bag time, ns.
            data: CDR bytes.
            position: Number of the message on the topic; -1 = unknown.
            parameters: Parameter sets to decode before the packet.

        Returns:
            Complete images, of this message or of earlier ones, and messages that give no image, with the reason.
        """
        try:
            packet = packet_from_cdr(self._msgtype, data)
        except ImageError as err:
            lost = Decoded(_Place(position, time_ns, None), None, str(err))
            return self._images([*self._decoder.lose(), lost])
        if parameters:
            packet = replace(packet, data=parameters + packet.data)
        place = _Place(position, time_ns, replace(packet, data=b""))
        return self._images(self._decoder.push(packet, place))

    def flush(self) -> list[VideoImage]:
        """Return what the decoder delays, at the end of the topic."""
        return self._images(self._decoder.flush())

    def _images(self, found: Iterable[Decoded[_Place]]) -> list[VideoImage]:
        made = []
        for one in found:
            place, message = one.token, None
            if one.image is None:
                self.failed[one.reason] += 1
            elif place.packet is not None:
                message = image_message(one.image, "rgb8", place.packet.stamp_ns, place.packet.frame_id)
            made.append(VideoImage(place.position, place.time_ns, message, one.reason))
        return made

    def summary(self, topic: str) -> str:
        """Return one line about the packets that gave no image.

        Args:
            topic: Name of the topic in the line.

        Returns:
            The line; empty if all packets gave an image.
        """
        reasons = "; ".join(f"{count} since {reason}" for reason, count in self.failed.most_common(3))
        return (
            f"topic {topic}: {self.failed.total()} video packets gave no image: {reasons}" if reasons else ""
        )


class VideoIndex:
    """Random access to a video topic; the topic is read once for its key frames, without decoding.

    Args:
        path: Path of the bag, for errors.
        topic: Name of the video topic.
        msgtype: Type of its messages.
        read: Reads its messages; the bag must stay open.
    """

    def __init__(self, path: Path, topic: str, msgtype: str, read: ReadTopic) -> None:
        self._path, self._topic, self._msgtype, self._read = path, topic, msgtype, read
        self._keys: list[_Key] = []
        self._times: list[int] = []
        """Bag times of the messages, ns, sorted."""
        self._stamps: list[int | None] = []
        """Header stamps of the messages, ns."""
        parameters = b""
        for position, (time_ns, data) in enumerate(read(None, None)):
            self._times.append(time_ns)
            try:
                packet = packet_from_cdr(self._msgtype, data)
            except ImageError:
                self._stamps.append(None)
                continue
            self._stamps.append(packet.stamp_ns)
            own = packet.parameters
            if packet.is_key:
                before = replace(self._keys[-1], before=None) if packet.is_open and self._keys else None
                self._keys.append(_Key(position, time_ns, b"" if own else parameters, before))
            parameters = own or parameters
        self._run: Iterator[list[VideoImage]] = iter(())
        self._begin, self._pushed, self._done = 0, -1, set[int]()
        """First position of the run, number of positions decoded, and those whose results are there."""
        self._kept: OrderedDict[int, VideoImage] = OrderedDict()

    def stream_from(self, start_ns: int) -> VideoStream:
        """Return a stream that is ready to decode the images from a bag time on.

        Args:
            start_ns: Bag time, ns.

        Returns:
            A stream that has decoded the earlier packets that these images refer to.
        """
        stream = VideoStream(self._topic, self._msgtype)
        number = bisect_right(self._keys, start_ns, key=lambda key: key.time_ns) - 1
        if number >= 0:
            for _ in self._decode(stream, self._keys[number], start_ns):
                pass  # images before the bag time
            stream.failed.clear()
        return stream

    def read(self, time_ns: int, stamp_ns: int | None) -> Message:
        """Return an image; see `BagReader.read`.

        Args:
            time_ns: Bag time, ns.
            stamp_ns: Header stamp in ns, which distinguishes messages with the same bag time; None = the first one.

        Returns:
            A sensor_msgs/Image (rgb8).

        Raises:
            BagError: If there is no such message, or it gives no image.
        """
        for position in range(bisect_left(self._times, time_ns), bisect_right(self._times, time_ns)):
            if stamp_ns is None or self._stamps[position] == stamp_ns:
                return self._image(position)
        raise BagError(f"bag {self._path}, topic {self._topic}: no message at {time_ns} ns")

    def _image(self, position: int) -> Message:
        if position not in self._kept:
            self._decode_to(position)
        found = self._kept[position]
        self._kept.move_to_end(position)
        if found.message is None:
            raise BagError(
                f"bag {self._path}, topic {self._topic}: no image at {found.time_ns} ns: {found.reason}"
            )
        return found.message

    def _decode_to(self, position: int) -> None:
        """Decode from the key frame on, or go on where decoding stands, until the result of a message is there."""
        number = bisect_right(self._keys, position, key=lambda key: key.position) - 1
        if number < 0:
            self._keep(VideoImage(position, self._times[position], None, NO_KEY_FRAME))
            return
        first = self._keys[number].position
        if not (self._begin <= position and first <= self._pushed and position not in self._done):
            self._begin = self._pushed = first
            self._done, self._run = set(), self._results(self._keys[number])
        while position not in self._done:
            images = next(self._run, None)
            if images is None:
                raise BagError(f"bag {self._path}, topic {self._topic}: it changed while it was read")
            for one in images:
                if one.position >= self._begin:  # those before only lead to them
                    self._done.add(one.position)
                    self._keep(one)
            self._evict(position)

    def _results(self, key: _Key) -> Iterator[list[VideoImage]]:
        stream = VideoStream(self._topic, self._msgtype)
        for position, images in self._decode(stream, key, None):
            self._pushed = position + 1
            yield images
        yield stream.flush()

    def _decode(
        self, stream: VideoStream, key: _Key, stop_ns: int | None
    ) -> Iterator[tuple[int, list[VideoImage]]]:
        """Decode the messages from a key frame on; yields positions and what is complete."""
        key = key.before or key
        # Messages of the key frame's own bag time may precede it.
        position = bisect_left(self._times, key.time_ns)
        for time_ns, data in self._read(key.time_ns, stop_ns):
            if position >= key.position:
                parameters = key.parameters if position == key.position else b""
                yield position, stream.push(time_ns, data, position=position, parameters=parameters)
            position += 1

    def _keep(self, image: VideoImage) -> None:
        self._kept[image.position] = image
        self._kept.move_to_end(image.position)

    def _evict(self, needed: int) -> None:
        size = sum(one.message.data.size for one in self._kept.values() if one.message is not None)
        while len(self._kept) > CACHE_IMAGES and size > CACHE_BYTES:
            position = next(iter(self._kept))
            if position == needed:
                return
            oldest = self._kept.pop(position)
            size -= oldest.message.data.size if oldest.message is not None else 0
