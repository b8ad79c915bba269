# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a jpeg's pixels go on to its last one: a cut file may have an end marker among what lies behind the cut."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from vtseg_ros.errors import ImageError

NOISE = bytes((37 * number + 11) % 251 for number in range(2048))
"""Bytes that a decoder takes for pixels; none is FF, which begins a marker."""
SMALL = 32 * 1024
"""Bytes of a file that is always looked at closely: decoding it takes about a millisecond."""
_PROGRESSIVE, _SCAN = b"\xff\xc2\x00", b"\xff\xda"


def require_complete(data: np.ndarray, end: int, image: np.ndarray) -> None:
    """Refuse a jpeg whose end marker is not its own.

    Decoders take what follows a cut for pixels until they meet an end marker, and paint what is missing in one colour.
    There is a doubt where other than zeros follow the end or the last pixels are of one colour, and in progressive and in
    small files, where a little of something else replaces all that is missing.

    Args:
        data: (n,) uint8, the file with what follows its end.
        end: bytes up to and with its end marker.
        image: (H, W) or (H, W, C), the decoded file.

    Raises:
        ImageError: if pixels are missing, or others lie among them.
    """
    doubtful = (
        data[end:].any() or end <= SMALL or _looks_filled(image) or _PROGRESSIVE in data[:end].tobytes()
    )
    if doubtful and not _is_complete(data[:end].tobytes()):
        raise ImageError(f"the jpeg is truncated: its pixels end before the image does ({end} bytes)")


def _looks_filled(image: np.ndarray) -> bool:
    """Whether the last 8x8 block is of one colour."""
    height, width = image.shape[:2]
    block = image[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    return bool((block == block[-1, -1]).all())


def _is_complete(file: bytes) -> bool:
    """Whether more pixels before the end marker change nothing, and other ones something.

    Pillow decodes here and not OpenCV, which prints what it dislikes on standard error.
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
    """Pixels of a jpeg, of an eighth of its size unless closely; None if it is too broken."""
    try:
        with PIL.Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            if not closely:  # which needs no more than the blocks' means
                image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            return image.tobytes()
    except (OSError, SyntaxError, ValueError):
        return None
