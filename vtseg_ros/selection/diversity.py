"""Choice of diverse frames among those with high scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

POOL = 10
"""Candidates per chosen frame: those with the highest scores."""


def combined_score(scores: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return the mean rank of each frame over its scores, because the units of the scores are not comparable.

    Args:
        scores: scores by name, the same names for each frame.

    Returns:
        (n,) float64, 0 (lowest in all scores) to 1; equal values have their mean rank. All 0 for fewer than two frames.
    """
    if len(scores) < 2:
        return np.zeros(len(scores))
    ranks = []
    for name in scores[0]:
        values = np.array([frame[name] for frame in scores])
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        first = np.cumsum(counts) - counts
        ranks.append((first + (counts - 1) / 2)[inverse] / (len(scores) - 1))
    result: np.ndarray = np.mean(ranks, axis=0)
    return result


def choose(
    score: np.ndarray,
    features: np.ndarray,
    sources: Sequence[int],
    stamps_ns: Sequence[int],
    *,
    count: int,
    spacing_s: float,
) -> list[int]:
    """Choose frames by greedy k-centre among the frames with the highest scores.

    The first is the frame with the highest score. Each next one is the candidate farthest, by Euclidean distance, from
    the nearest chosen frame (Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", ICLR 2018). Among equals the higher score wins, then the earlier frame in the list. The candidates are the
    best `POOL` times `count` frames. If the spacing excludes too many of them, the other frames become candidates.

    Args:
        score: (n,) float, higher = rather chosen.
        features: (n, D) float, the features whose distances are compared.
        sources: (n,) number of the bag of each frame.
        stamps_ns: (n,) header stamps, ns.
        count: number of frames to choose, at least 1; fewer are returned if the spacing does not allow more.
        spacing_s: least time between chosen frames of one bag, s, at least 0.

    Returns:
        Indices of the chosen frames, in the order of choice.
    """
    order = np.lexsort(
        (np.arange(len(score)), -np.asarray(score))
    )  # best first; argmax below takes the first
    features, bag = np.asarray(features, np.float64), np.asarray(sources)
    stamps = np.asarray(stamps_ns, np.int64)
    spacing_ns = round(spacing_s * 1e9)
    free, nearest = np.ones(len(order), bool), np.full(len(order), np.inf)
    chosen: list[int] = []
    for pool in (order[: POOL * count], order):
        while len(chosen) < count and free[pool].any():
            best = int(pool[np.argmax(np.where(free[pool], nearest[pool], -1.0))])
            chosen.append(best)
            nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
            free &= (bag != bag[best]) | (np.abs(stamps - stamps[best]) >= spacing_ns)
            free[best] = False
    return chosen
