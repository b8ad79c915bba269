# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Score masks of one class list against labels of another: source classes are replaced by target classes after the argmax."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.label_set import IGNORE, LABEL_SETS, LabelSet
from vtseg_ros.text import read_yaml

if TYPE_CHECKING:  # imports torch, which the evaluator node does without
    from vtseg_ros.evaluation.systems import System


@dataclass(frozen=True)
class ClassMap:
    """For each target class the source classes that count as it.

    Args:
        source: file of the map, for errors.
        labels: target classes, in the order of the label ids.
        groups: names of the source classes of each target class; may be empty.
    """

    source: str
    labels: LabelSet
    groups: tuple[tuple[str, ...], ...]

    def table(self, labels: LabelSet) -> np.ndarray:
        """Return the target id for every id of a mask.

        Args:
            labels: class list of the masks. If it equals the target classes, ids stay unchanged.

        Returns:
            (256,) uint8; 255 for source classes without a target and ids without a class.

        Raises:
            ConfigError: if a source class is not in `labels`.
        """
        table = np.full(256, IGNORE, np.uint8)
        if labels.names == self.labels.names:
            table[: len(labels)] = np.arange(len(labels))
            return table
        for target, group in enumerate(self.groups):
            for name in group:
                if name not in labels.names:
                    near = get_close_matches(name, labels.names, n=1)
                    hint = f"Did you mean {near[0]}?" if near else "Correct the map"
                    raise ConfigError(
                        f"{self.source}: {self.labels.names[target]}: unknown source class; expected one of "
                        f"{', '.join(labels.names)}, got {name!r}. {hint}"
                    )
                table[labels.names.index(name)] = target
        return table

    def unmapped(self, labels: LabelSet) -> tuple[str, ...]:
        """Return the classes of `labels` that belong to no target class; their pixels count as wrong."""
        return tuple(name for name, target in zip(labels.names, self.table(labels)) if target == IGNORE)


def load_class_map(path: str | Path) -> ClassMap:
    """Read a class map: a YAML mapping of target class to source class or list of source classes.

    The target classes get the colours of the known class list of the same names (CamVid's, Cityscapes'), or distinct
    ones.

    Raises:
        ConfigError: if it cannot be read, or a source class has two targets; names it.
    """
    try:
        values = read_yaml(path)
    except (OSError, yaml.YAMLError) as err:
        reason = first_line(err)
        raise ConfigError(
            f"{path}: cannot be read; expected a YAML file of target class to source classes, got: {reason}. "
            "Correct the file or its path"
        ) from err
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            f"{path}: not a class map; expected a YAML mapping of target class to source classes, got "
            f"{type(values).__name__}. Write lines such as `car: [car, truck]`"
        )
    groups = {_name(path, target): _group(path, target, group) for target, group in values.items()}
    targets: dict[str, str] = {}
    for target, group in groups.items():
        for name in group:
            if name in targets:
                raise ConfigError(
                    f"{path}: {target}: source class {name!r} has two targets; expected one, got {targets[name]} and "
                    f"{target}. Remove it from one of them"
                )
            targets[name] = target
    names = tuple(groups)
    try:
        labels = next((known for known in LABEL_SETS.values() if known.names == names), None)
        labels = labels or LabelSet.from_names(names)
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err
    return ClassMap(str(path), labels, tuple(groups.values()))


def _name(path: str | Path, value: Any) -> str:
    # YAML reads `on` and `no` as truth values and 1 as a number; these are not meant as class names.
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"{path}: a class name is not a text; expected one such as road, got {value!r}. "
            "Put it in quotation marks"
        )
    return value


def _group(path: str | Path, target: Any, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ConfigError(
            f"{path}: {target}: not source classes; expected a list of names, got {type(value).__name__}. "
            "Write `[]` for a target without source classes"
        )
    return tuple(_name(path, name) for name in value)


class MappedSystem:
    """A system whose masks are given in the target classes of a class map.

    Args:
        system: the system; shared, not copied.
        class_map: from its classes to others.

    Raises:
        ConfigError: if the map names classes that the system does not have.
    """

    def __init__(self, system: System, class_map: ClassMap) -> None:
        self._system, self._table = system, class_map.table(system.labels)
        self.info, self.labels, self.problems = system.info, class_map.labels, system.problems

    @property
    def confidence(self) -> np.ndarray:
        """Confidence of the last mask, (height, width) uint8, of the class before the mapping."""
        return self._system.confidence

    @property
    def reach(self) -> int:
        """See `System.reach`."""
        return self._system.reach

    def reset(self, stream: int) -> None:
        """Start a new sequence in a stream."""
        self._system.reset(stream)

    def step(self, number: int, image: np.ndarray, size: tuple[int, int], stream: int) -> np.ndarray:
        """Return the mask of the next frame, (height, width) uint8 (see `System.step`)."""
        result: np.ndarray = self._table[self._system.step(number, image, size, stream)]
        return result
