# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check that a jpeg contains all of its pixels: a truncated file may have an end marker in what follows the cut."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from vtseg_ros.errors import ImageError

NOISE = bytes((37 * number + 11) % 251 for number in range(2048))
"""Bytes that a decoder accepts as pixels; none is FF, which begins a marker."""
SMALL = 32 * 1024
"""Files of at most this many bytes are always checked: decoding one takes about a millisecond."""
_PROGRESSIVE, _SCAN = b"\xff\xc2\x00", b"\xff\xda"


def require_complete(data: np.ndarray, end: int, image: np.ndarray) -> None:
    """Refuse a truncated jpeg whose end marker belongs to other data.

    Decoders read what follows a cut as pixels until they find an end marker, and fill the missing part with one colour.
    A file is checked if non-zero bytes follow its end, if its last pixels have one colour, or if it is progressive or
    small, since then a few foreign bytes can replace all missing pixels.

    Args:
        data: (n,) uint8, the file with what follows its end.
        end: Number of bytes up to and including its end marker.
        image: (H, W) or (H, W, C), the decoded file.

    Raises:
        ImageError: If pixels are missing, or foreign bytes were decoded as pixels.
    """
    doubtful = (
        data[end:].any() or end <= SMALL or _looks_filled(image) or _PROGRESSIVE in data[:end].tobytes()
    )
    if doubtful and not _is_complete(data[:end].tobytes()):
        raise ImageError(f"the jpeg is truncated: its pixels end before the image does ({end} bytes)")


def _looks_filled(image: np.ndarray) -> bool:
    """Return whether the last 8x8 block has one colour."""
    height, width = image.shape[:2]
    block = image[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    return bool((block == block[-1, -1]).all())


def _is_complete(file: bytes) -> bool:
    """Return whether additional data before the end marker changes no pixel, and replaced data changes some.

    Decodes with Pillow, since OpenCV prints warnings on standard error.
    """
    # The last of its pixels are needed in a whole file; a few bytes may be too many, since webcams leave some.
    closely = len(file) <= SMALL or _PROGRESSIVE in file
    needed = 32 if closely else len(NOISE)
    last = len(file[:-2].rstrip(b"\xff"))  # filling before a marker is allowed
    start = last - needed
    while file[start - 1] == 0xFF:  # a value of two bytes
        start -= 1
    whole = _pixels(file, closely)
    if whole is None or whole != _pixels(file[:last] + NOISE + file[last:], closely):
        return False
    few = last - file.rindex(_SCAN) < 2 * needed
    return few or whole != _pixels(file[:start] + NOISE[: last - start] + file[last:], closely)


def _pixels(file: bytes, closely: bool) -> bytes | None:
    """Return the pixels of a jpeg, at an eighth of its size unless `closely`; None if it is too damaged."""
    try:
        with PIL.Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            if not closely:  # which needs no more than the blocks' means
                image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            return bytes(image.tobytes())
    except (OSError, SyntaxError, ValueError):
        return None
