"""What became of every frame that the evaluator saw: counted by stamps, nothing as a remainder."""

from __future__ import annotations

from collections import Counter


class Ledger:
    """Stamps of images seen and of the segmenter's statuses.

    A looped bag repeats stamps: they are counted as often as they came.
    """

    ANSWERED, REJECTED, DROPPED = "answered", "rejected", "dropped"

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()
        self._labels: Counter[int] = Counter()
        self._events = {name: Counter() for name in (self.ANSWERED, self.REJECTED, self.DROPPED)}

    def saw_image(self, stamp_ns: int) -> None:
        self._seen[stamp_ns] += 1

    def saw_label(self, stamp_ns: int) -> None:
        self._labels[stamp_ns] += 1

    def saw_status(self, event: str, stamp_ns: int) -> None:
        self._events[event][stamp_ns] += 1

    def counts(self) -> dict[str, int]:
        """Frames by what became of them (names of EvaluationReport).

        `frames_lost` are images seen here that no status speaks of: lost on the way to the segmenter.
        """
        told: Counter[int] = sum(self._events.values(), Counter())
        answered = {name: sum(counter.values()) for name, counter in self._events.items()}
        return {
            "frames_seen": sum(self._seen.values()),
            "labelled_frames": sum(self._labels.values()),
            "frames_received": sum(told.values()),
            "frames_answered": answered[self.ANSWERED],
            "frames_dropped": answered[self.DROPPED],
            "frames_rejected": answered[self.REJECTED],
            "frames_lost": sum((self._seen - told).values()),
        }

    def labelled_answered(self) -> int:
        """Labels whose image was answered."""
        return sum((self._labels & self._events[self.ANSWERED]).values())
