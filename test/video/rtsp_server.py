# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A minimal RTSP server (RFC 2326, RTP interleaved in TCP) of one MPEG-4 stream (RFC 6416), for one client."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np

CLOCK_HZ = 90_000
PAYLOAD = 96
MTU = 1200
SIZE = (64, 48)


def shades(count: int) -> list[int]:
    """Grey values of the frames, each 4 above the one before it; from the 50th on they repeat."""
    return [20 + 4 * (index % 50) for index in range(count)]


def _encoded(count: int) -> tuple[bytes, list[bytes]]:
    """Configuration and packets of `count` grey frames, each a key frame."""
    codec = av.CodecContext.create("mpeg4", "w")
    codec.width, codec.height = SIZE
    codec.pix_fmt, codec.time_base, codec.gop_size = "yuv420p", Fraction(1, 25), 1
    codec.flags |= av.codec.context.Flags.global_header
    packets = []
    for index, shade in enumerate(shades(count)):
        image = np.full((SIZE[1], SIZE[0], 3), shade, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = index, codec.time_base
        packets += codec.encode(frame)
    packets += codec.encode(None)
    return bytes(codec.extradata), [bytes(packet) for packet in packets]


class RtspServer:
    """Serves `count` frames, one every `interval_s`, and then ends the connection; use it as a context manager."""

    def __init__(self, count: int, interval_s: float) -> None:
        self._configuration, self._packets = _encoded(count)
        self._interval_s = interval_s
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._socket.getsockname()[1]}/camera"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with suppress(OSError), connection, connection.makefile("rwb") as stream:  # a client may leave early
            while lines := self._request(stream):
                method = lines[0].split()[0]
                headers = dict(line.split(": ", 1) for line in lines[1:])
                self._answer(stream, method, headers["CSeq"])
                if method == "PLAY":
                    self._play(stream)
                    return

    @staticmethod
    def _request(stream) -> list[str]:
        lines = []
        while line := stream.readline().decode().strip():
            lines.append(line)
        return lines

    def _answer(self, stream, method: str, number: str) -> None:
        headers, body = [f"CSeq: {number}"], b""
        if method == "OPTIONS":
            headers.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY")
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                f"m=video 0 RTP/AVP {PAYLOAD}\r\na=rtpmap:{PAYLOAD} MP4V-ES/{CLOCK_HZ}\r\n"
                f"a=fmtp:{PAYLOAD} config={self._configuration.hex()}\r\na=control:{self.url}/0\r\n"
            ).encode()
            headers += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            headers += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        elif method == "PLAY":
            headers += ["Session: 1"]
        stream.write("\r\n".join(["RTSP/1.0 200 OK", *headers, "", ""]).encode() + body)
        stream.flush()

    def _play(self, stream) -> None:
        sequence = 0
        for index, packet in enumerate(self._packets):
            parts = [packet[start : start + MTU] for start in range(0, len(packet), MTU)]
            for part in parts:
                marker = 0x80 if part is parts[-1] else 0
                stamp = round(index * self._interval_s * CLOCK_HZ)
                rtp = struct.pack(">BBHII", 0x80, PAYLOAD | marker, sequence, stamp, 1) + part
                stream.write(b"$" + struct.pack(">BH", 0, len(rtp)) + rtp)
                sequence += 1
            stream.flush()
            time.sleep(self._interval_s)
