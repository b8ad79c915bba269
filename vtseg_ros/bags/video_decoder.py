# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode the packets of a video topic.

Most packets encode only what changed since earlier ones, so a topic is decoded from front to back, from a key frame on.
Decoders conceal a lost packet by repeating old pixels; here the packets up to the next key frame are refused instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from vtseg_ros.bags.bitstreams import FrameNumbers, is_annex_b
from vtseg_ros.bags.containers import MAX_PIXELS
from vtseg_ros.bags.video_messages import VideoPacket
from vtseg_ros.errors import ConfigError, first_line

NO_KEY_FRAME = "there is no key frame before it"
AFTER_LOSS = "it follows a lost or damaged packet; decoding restarts at the next key frame"
NO_PIXELS = "its packet gave no image"
MAX_REORDERED = 64
"""Packets after which a decoder that still delays an image has lost it; the formats allow 16."""
_DECODERS = {"av1": ("libdav1d", "av1")}
"""Names of libavcodec's decoders where they are not that of the codec, best first."""

Token = TypeVar("Token")


@dataclass(frozen=True)
class Decoded(Generic[Token]):
    """What became of a packet.

    Attributes:
        token: What was given with the packet.
        image: (H, W, 3) uint8 RGB; None = the packet gave no image.
        reason: Why there is no image; empty with an image.
    """

    token: Token
    image: np.ndarray | None
    reason: str = ""


class VideoDecoder(Generic[Token]):
    """Decode the packets of one topic (PyAV); each packet leads to one result, also if it cannot be decoded.

    Images come in the order of their display, with the token of their own packet. A stream with B-frames delays them.
    The loss of packets within a group is found in H.264 (by its frame numbers) and H.265 (by the frames that a packet
    refers to). VP9 and AV1 do not number frames. Where a key frame is lost too, the numbers of the next group may
    happen to go on where the last one ended.

    Args:
        live: Whether an image is wanted as soon as it is complete. Otherwise the reordering that an H.264 stream allows
            is awaited, also if it does not say that it reorders.

    Raises:
        ConfigError: If the package `av` is missing.
    """

    def __init__(self, *, live: bool = False) -> None:
        self._av, self._live = require_av("reading encoded video"), live
        self._context: Any = None
        self._codec = ""
        self._waits = NO_KEY_FRAME
        """Why packets are refused until the next key frame; empty = they are not."""
        self._pending: dict[int, tuple[Token, bool]] = {}
        self._number = 0
        self._frame_numbers = FrameNumbers()

    def push(self, packet: VideoPacket, token: Token) -> list[Decoded[Token]]:
        """Decode a packet.

        Args:
            packet: Next packet of the stream.
            token: Returned with the result of the packet.

        Returns:
            Results that are complete, of this and of earlier packets.
        """
        done = self._flush(NO_PIXELS) if self._context is not None and packet.codec != self._codec else []
        if self._context is None or packet.codec != self._codec:
            self._open(packet.codec)
        if packet.codec in ("h264", "hevc") and not is_annex_b(packet.data):
            return [*done, *self._fail(token, "its data is not in Annex B form: it has no start code")]
        gap = packet.codec == "h264" and self._frame_numbers.has_gap(packet.data)
        if packet.is_empty:
            self._send(packet.data, None)
            return [*done, Decoded(token, None, "it has parameters of the video and no image")]
        if packet.is_key:
            if self._waits:
                self._context.flush_buffers()
            self._waits = ""
        elif gap and not self._waits:
            done += self.lose()
        if self._waits:
            return [*done, Decoded(token, None, self._waits)]
        self._number += 1
        number = self._number
        self._pending[number] = token, packet.is_key
        try:
            frames = self._send(packet.data, number)
        except self._av.FFmpegError as err:
            del self._pending[number]
            return [*done, *self._fail(token, f"it cannot be decoded: {first_line(err)}")]
        done += self._results(frames)
        if number in self._pending or not frames:
            late = [older for older in self._pending if older <= number - MAX_REORDERED]
            done += [Decoded(self._pending.pop(older)[0], None, NO_PIXELS) for older in late]
        return done

    def lose(self) -> list[Decoded[Token]]:
        """Note that a packet is lost; the next packet must be a key frame.

        Returns:
            The delayed images.
        """
        done = self._flush(AFTER_LOSS)
        self._waits = self._waits or AFTER_LOSS
        return done

    def flush(self) -> list[Decoded[Token]]:
        """Return the delayed images at the end of the stream; the next packet must be a key frame."""
        done = self._flush(NO_PIXELS)
        self._waits = NO_KEY_FRAME
        return done

    def _open(self, codec: str) -> None:
        names = [name for name in _DECODERS.get(codec, (codec,)) if name in self._av.codecs_available]
        if not names:
            raise ConfigError(f"av: this build cannot decode {codec}. Run: pip install --force-reinstall av")
        context = self._av.CodecContext.create(names[0], "r")
        context.thread_count = 1  # more threads delay images and errors
        # Errors end decoding instead of being concealed; a stream must not ask for more memory than a raw image may.
        context.options = {"err_detect": "explode+crccheck", "max_pixels": str(MAX_PIXELS)}
        if not self._live:
            context.options = {**context.options, "strict": "1"}
        self._context, self._codec, self._waits = context, codec, NO_KEY_FRAME
        self._frame_numbers = FrameNumbers()

    def _send(self, data: bytes, number: int | None) -> list[Any]:
        packet = self._av.Packet(data)
        packet.pts = packet.dts = number
        try:
            return list(self._context.decode(packet))
        except self._av.FFmpegError:
            if number is None:  # parameter sets by themselves give no image
                return []
            raise

    def _fail(self, token: Token, reason: str) -> list[Decoded[Token]]:
        return [*self.lose(), Decoded(token, None, reason)]

    def _flush(self, reason: str) -> list[Decoded[Token]]:
        """Return the delayed images, and all other pending packets with a reason."""
        done: list[Decoded[Token]] = []
        if self._context is not None and self._pending:
            try:
                done = self._results(list(self._context.decode(None)))
            except self._av.FFmpegError:
                pass
            self._context.flush_buffers()
        done += [Decoded(token, None, reason) for token, _ in self._pending.values()]
        self._pending.clear()
        return done

    def _results(self, frames: list[Any]) -> list[Decoded[Token]]:
        done: list[Decoded[Token]] = []
        for frame in frames:
            found = self._pending.pop(frame.pts, None)
            if found is None:
                continue
            token, is_key = found
            if is_key:  # images before a key frame come before it, or not at all
                older = [number for number in self._pending if number < frame.pts]
                done += [Decoded(self._pending.pop(number)[0], None, NO_PIXELS) for number in older]
            if frame.is_corrupt:
                done.append(Decoded(token, None, "its image is damaged"))
                continue
            done.append(Decoded(token, frame.to_ndarray(format="rgb24")))
        return done


def require_av(what: str) -> Any:
    """Return the module `av`.

    Args:
        what: What needs it, for the error.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise ConfigError(
            f"{what}: the package av is missing; expected it to be installed. Run: pip install 'vtseg_ros[video]'"
        ) from err
    return av
