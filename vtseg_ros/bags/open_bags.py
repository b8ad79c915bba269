# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags of a list that are opened when they are first read, in each process of a data loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vtseg_ros.bags.bag_reader import BagReader


class OpenBags:
    """Open bags on first access, again in each process.

    A forked process shares file positions with its parent, so it must not read from its parent's files.

    Args:
        paths: One per bag.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths, self._process = paths, os.getpid()
        self._open: dict[int, BagReader] = {}
        self._inherited: list[dict[int, BagReader]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_inherited": []}

    def __getitem__(self, number: int) -> BagReader:
        if self._process != os.getpid():
            # Kept unused: once nothing refers to them, they would remove the unpacked copies that the parent reads.
            self._inherited.append(self._open)
            self._process, self._open = os.getpid(), {}
        if number not in self._open:
            self._open[number] = BagReader(self._paths[number])
        return self._open[number]
