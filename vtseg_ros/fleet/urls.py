# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Places of bags and results: local paths, and URLs of object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from vtseg_ros.files import with_home

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.")
_FILE = "file://"


@dataclass(frozen=True)
class Url:
    """A location that fsspec opens, such as `s3://bucket/drive_1`.

    Args:
        text: the URL.
    """

    text: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.text.partition("://")[2]).name

    @property
    def stem(self) -> str:
        """Last part of the path without its suffix."""
        return PurePosixPath(self.name).stem

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.text


Place = Path | Url


def parse_place(text: str) -> Place:
    """Return the path or URL that a text names.

    Args:
        text: local path, or URL such as `s3://bucket/drive_1`.

    Returns:
        A local path, with the home folder in place of `~`, also for `file://` URLs; a `Url` for all other URLs, without
        a slash at the end.
    """
    if text.lower().startswith(_FILE):
        return Path(unquote(text[len(_FILE) :]))
    return Url(text.rstrip("/")) if _URL.match(text) else with_home(Path(text))


def result_name(place: Place) -> str:
    """Return the name of the results of a bag or video.

    Args:
        place: path or URL of the bag or video.

    Returns:
        Last part of the path, without its suffix.
    """
    return place.stem if isinstance(place, Url) else place.resolve().stem
