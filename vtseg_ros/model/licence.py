# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Licences of weights: the terms that a checkpoint contains and that derived weights inherit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vtseg_ros.errors import CheckpointError

CODE_LICENCE = "Apache-2.0"
PERMISSIVE = frozenset({CODE_LICENCE, "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0"})
RESEARCH = "non-commercial research"
JOIN = " AND "
"""As in SPDX expressions: all of the named licences apply."""


@dataclass(frozen=True)
class Licence:
    """Licence of a set of weights.

    Args:
        name: SPDX identifier such as `Apache-2.0`, or a text such as `non-commercial research`; empty = not stated.
        note: source of the terms, or the data that they follow from.
    """

    name: str = ""
    note: str = ""

    @property
    def restricted(self) -> bool:
        """Whether a licence is stated and is not permissive."""
        return any(name not in PERMISSIVE for name in self.name.split(JOIN)) if self.name else False

    def __str__(self) -> str:
        return f"{self.name or 'not stated'}{f' ({self.note})' if self.note else ''}"

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON values."""
        return {"name": self.name, "note": self.note}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> Licence:
        """Read the licence in a checkpoint's or an exported file's metadata; absent = not stated.

        Raises:
            CheckpointError: if the entry is not `{"name": text, "note": text}`.
        """
        value = metadata.get("licence", {})
        if not isinstance(value, dict) or any(
            key not in ("name", "note") or not isinstance(text, str) for key, text in value.items()
        ):
            raise CheckpointError(f"licence: expected {{'name': text, 'note': text}}, got {str(value)[:80]}")
        return cls(**value)


NOT_STATED = Licence()

SHIPPED = {
    "street_tiny": Licence(CODE_LICENCE, "trained on the synthetic street only"),
}
"""Shipped weights whose files were written before checkpoints recorded a licence."""


def derived_licence(own: Licence, sources: Iterable[Licence]) -> Licence:
    """Return the licence of weights that were trained from other weights.

    Args:
        own: licence that the user states for the result.
        sources: licences of the weights that it starts from or learns from.

    Returns:
        `own` if no source is restricted; otherwise every restricted licence that applies, joined by `AND`.
    """
    restricted = [licence for licence in (own, *sources) if licence.restricted]
    if not restricted:
        return own
    names = dict.fromkeys(name for licence in restricted for name in licence.name.split(JOIN))
    kept = [name for name in names if name not in PERMISSIVE]
    notes = dict.fromkeys(licence.note for licence in restricted if licence.note)
    return Licence(JOIN.join(kept), "; ".join(notes))
