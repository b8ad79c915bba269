# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image sizes as text, for parameters and arguments."""

from __future__ import annotations

import argparse
import re

from vtseg_ros.bags.image_messages import MAX_PIXELS
from vtseg_ros.errors import ConfigError


def size_from_text(text: str) -> tuple[int, int]:
    """Parse `WxH` in px as (width, height).

    Raises:
        ConfigError: if it is not of this form.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if not match:
        raise ConfigError(f"not a size; expected WIDTHxHEIGHT in px, such as 640x192, got {text!r}")
    return int(match[1]), int(match[2])


def parse_output_size(text: str) -> str | tuple[int, int]:
    """Parse `input`, `network` or `WxH` in px.

    Raises:
        ConfigError: if it is none of them, or larger than any image may be.
    """
    if text in ("input", "network"):
        return text
    return _image_size(text)


def parse_size(text: str) -> tuple[int, int]:
    """Parse the size of an image, for argparse; see `size_from_text`."""
    try:
        return _image_size(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def _image_size(text: str) -> tuple[int, int]:
    width, height = size_from_text(text)
    if not 0 < width * height <= MAX_PIXELS:
        raise ConfigError(f"wrong image size; expected 1 to {MAX_PIXELS} px, got {text}")
    return width, height
