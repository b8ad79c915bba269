# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of bags with another class list: each of their classes corresponds to a set of classes of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE, OUTSIDE, LabelSet

IGNORED = "ignore"
"""Target of a class whose pixels are left out."""


@dataclass(frozen=True)
class ClassGroups:
    """The classes of a bag, and the classes of the network that each of them corresponds to.

    Attributes:
        names: Class list of the bag; the id of a class is its index.
        members: For each class the ids of the corresponding classes of the network; empty = its pixels are left out.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def own_labels(self) -> np.ndarray:
        """Return the (256,) uint8 table from the label ids of the bag to the same ids, 255 where they are left out."""
        table = np.full(256, UNKNOWN, np.uint8)
        for number, members in enumerate(self.members):
            table[number] = number if members else IGNORE
        table[IGNORE] = IGNORE
        return table

    def own_masks(self, num_classes: int) -> np.ndarray:
        """Return the table from the class ids of the network to those of the bag.

        Args:
            num_classes: Number of classes of the network.

        Returns:
            (256,) uint8; 255 = a class that corresponds to no class of the bag.

        Raises:
            ConfigError: If two classes of the bag share a class of the network, which makes masks ambiguous.
        """
        table = np.full(256, IGNORE, np.uint8)
        for number, members in enumerate(self.members):
            for member in members:
                if table[member] != IGNORE:
                    raise ConfigError(
                        f"class_groups: {self.names[table[member]]} and {self.names[number]} correspond to one class of "
                        "the network; expected disjoint groups in bags for validation. Score the bag by one of them"
                    )
                table[member] = number
        return table

    def shown(self) -> np.ndarray:
        """Return the (256,) uint8 table from class ids of the bag to one class of the network each, for its colour."""
        table = np.full(256, IGNORE, np.uint8)
        for number, members in enumerate(self.members):
            if members:
                table[number] = members[0]
        return table


UNKNOWN = OUTSIDE
"""Replacement for label ids that the class list of the bag does not have; no class or group has this id."""


def parse_class_groups(
    groups: Mapping[object, object], own: LabelSet | None, labels: LabelSet, where: str
) -> ClassGroups:
    """Read a mapping from the classes of a bag to those of the network.

    Args:
        groups: From a class name of the bag, or its id, to a class name of the network, a list of them, or `ignore`.
        own: Class list of the label map in the bag; None = it has none, and names are in the order of their ids.
        labels: Class list of the network.
        where: Name of the field in errors.

    Raises:
        ConfigError: For names that do not exist, and classes of the bag that are missing or given twice.
    """
    if own is None and all(isinstance(key, str) for key in groups):
        own = LabelSet.from_names([str(key) for key in groups])
    if own is None:
        numbers = [key for key in groups if isinstance(key, int) and not isinstance(key, bool)]
        if len(numbers) != len(groups) or not all(0 <= number < OUTSIDE for number in numbers):
            raise ConfigError(
                f"{where}: not the bag's classes; expected names or ids of 0..{OUTSIDE - 1}, "
                f"got {', '.join(map(repr, groups))}. Name all of them or none"
            )
        own = LabelSet.from_names([str(number) for number in range(max(numbers) + 1)])
        groups = {number: IGNORED for number in range(len(own))} | dict(groups)
    members: dict[int, tuple[int, ...]] = {}
    for key, value in groups.items():
        number = own.names.index(key) if key in own.names else key
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(own):
            raise ConfigError(
                f"{where}: {key!r} is not a class of the bag; expected one of {', '.join(own.names)}, or its id"
            )
        if number in members:
            raise ConfigError(f"{where}: the class {own.names[number]} is given twice, by name and by id")
        members[number] = _members(value, labels, f"{where}.{key}")
    missing = [name for number, name in enumerate(own.names) if number not in members]
    if missing:
        raise ConfigError(
            f"{where}: classes of the bag are missing; expected each of {', '.join(own.names)}, "
            f"got none for {', '.join(missing)}. Map a class that is not to be learned to `{IGNORED}`"
        )
    return ClassGroups(own.names, tuple(members[number] for number in range(len(own))))


def _members(value: object, labels: LabelSet, where: str) -> tuple[int, ...]:
    if value == IGNORED:
        return ()
    wanted = value if isinstance(value, (list, tuple)) else [value]
    unknown = [name for name in wanted if name not in labels.names]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        raise ConfigError(
            f"{where}: wrong value; expected a class of the network ({', '.join(labels.names)}), a list of "
            f"different ones, or `{IGNORED}`, got {value!r}"
        )
    return tuple(sorted(labels.names.index(name) for name in wanted))


class GroupTable:
    """Label ids of a training run: those of the classes of the network, then one per group of several classes.

    Args:
        num_classes: Number of classes C of the network.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.groups: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.num_classes + len(self.groups)

    def add(self, groups: ClassGroups, where: str) -> np.ndarray:
        """Give each group of a bag an id; equal groups get the same id.

        Args:
            groups: Classes of the bag.
            where: Name of the field in errors.

        Returns:
            (256,) uint8 table from the label ids of the bag to those of the run.

        Raises:
            ConfigError: If there are more ids than uint8 labels can have.
        """
        table = np.full(256, UNKNOWN, np.uint8)
        table[IGNORE] = IGNORE
        for number, members in enumerate(groups.members):
            table[number] = self._id(members, where)
        return table

    def _id(self, members: tuple[int, ...], where: str) -> int:
        if len(members) < 2:
            return members[0] if members else IGNORE
        if members not in self.groups:
            self.groups.append(members)
            if len(self) > OUTSIDE:
                raise ConfigError(
                    f"{where}: too many groups; expected at most {OUTSIDE} classes and groups in all bags, got {len(self)}"
                )
        return self.num_classes + self.groups.index(members)

    def members(self) -> np.ndarray:
        """Return the classes of each group, (G, C) bool."""
        table = np.zeros((len(self.groups), self.num_classes), bool)
        for row, members in zip(table, self.groups):
            row[list(members)] = True
        return table
