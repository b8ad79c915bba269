# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""New objects, recovery, scene cuts and drift: expected values counted by hand on small masks."""

from __future__ import annotations

import numpy as np
import pytest
from bags.bagtools import write_bag

from vtseg_ros.dataset.corrupted_store import CorruptedStore
from vtseg_ros.dataset.corruptions import Corruption
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.dataset.scene_cuts import with_cuts
from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.behaviour import (
    After,
    AppearanceLag,
    Drift,
    FrameScores,
    after_corruption,
    recovery,
    references,
)
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.evaluation.temporal import FlowImage, WarpedConsistency
from vtseg_ros.label_set import LabelSet

SHAPE = (40, 100)
"""4000 px: an object counts from 4 px on, and may move 2 px without overlapping itself."""
LABELS = LabelSet.from_names(["ground", "car", "pole"])


def info(name: str, window: int, family: str = "VTSeg") -> SystemInfo:
    return SystemInfo(name, "vtseg", "file", window, family, 0, (64, 32))


INFOS = [info("k=1", 1), info("k=4", 4)]


def label(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """Ground with boxes (class, top, left, height, width)."""
    ids = np.zeros(SHAPE, np.uint8)
    for class_id, top, left, height, width in boxes:
        ids[top : top + height, left : left + width] = class_id
    return ids


def follow(frames, *, first: int = 0, numbers=None) -> AppearanceLag:
    """Frames are (label, mask of the first system, mask of the second)."""
    lag = AppearanceLag(2)
    for number, (ids, *masks) in zip(numbers or range(first, first + len(frames)), frames):
        lag.update(number, first, ids, masks)
    return lag


def found(lag: AppearanceLag) -> list[tuple[int, int, list[int | None]]]:
    return [(one.class_id, one.number, one.frames) for one in lag.appearances]


GROUND = label()


def test_an_object_is_followed_until_half_of_it_is_segmented():
    """4 px at frame 1; it moves by 3 px, a gap of one, and is segmented by the first system when 2 px are right."""
    start, moved = label((1, 10, 50, 2, 2)), label((1, 10, 53, 2, 2))
    half, third = label((1, 10, 53, 1, 2)), label((1, 10, 53, 1, 1))
    frames = [(GROUND, GROUND, GROUND), (start, GROUND, start), (moved, third, moved), (moved, half, moved)]
    assert found(follow(frames)) == [(1, 1, [2, 0])]


def test_objects_of_the_first_frame_and_of_a_new_sequence_do_not_count():
    car = label((1, 10, 50, 5, 5))
    assert found(follow([(car, GROUND, car), (car, car, car)])) == []
    # Frame 2 is missing: frame 3 begins anew.
    assert found(follow([(GROUND, car, car), (GROUND, car, car), (car, car, car)], numbers=[0, 1, 3])) == []


def test_an_object_appears_when_it_is_large_enough():
    small, large = label((2, 20, 20, 3, 1)), label((2, 20, 20, 4, 1))
    frames = [(GROUND,) * 3, (small, small, small), (large, GROUND, large), (large, large, large)]
    assert found(follow(frames)) == [(2, 2, [1, 0])]
    # Once visible, it may become smaller again without appearing a second time.
    again = [*frames, (small, small, small), (large, large, large)]
    assert found(follow(again)) == [(2, 2, [1, 0])]


def test_an_object_that_vanishes_or_joins_a_larger_one_is_followed_no_further():
    car, both = label((1, 10, 10, 8, 8)), label((1, 10, 10, 8, 8), (1, 10, 30, 3, 3))
    joined = label((1, 10, 10, 8, 23))
    vanishes = [(car, car, car), (both, car, car), (car, car, car), (both, both, car), (both, both, car)]
    assert found(follow(vanishes)) == [(1, 1, [None, None]), (1, 3, [0, None])]
    joins = [(car, car, car), (both, car, car), (joined, joined, car)]
    assert found(follow(joins)) == [(1, 1, [None, None])]


def test_two_objects_of_a_class_are_told_apart():
    first, second = (1, 5, 10, 4, 4), (1, 25, 80, 4, 4)
    frames = [
        (GROUND,) * 3,
        (label(first), GROUND, GROUND),
        (label(first, second), label(second), label(first)),
        (label(first, second), label(first, second), label(first, second)),
    ]
    assert found(follow(frames)) == [(1, 1, [2, 1]), (1, 2, [0, 1])]


def test_lag_is_reported_per_class_and_against_window_1():
    """A car with lags 0 and 2, a pole with 1 and 1, a pole that only window 1 segments, one that nobody does."""
    car, poles = (1, 5, 10, 4, 4), [(2, 20, left, 8, 1) for left in (20, 50, 80)]
    everything = label(car, *poles)
    frames = [
        (GROUND,) * 3,
        (everything, label(car), GROUND),
        (everything, label(car, *poles[:2]), label(poles[0])),
        (everything, label(car, *poles[:2]), label(car, poles[0])),
        (GROUND,) * 3,
    ]
    report = follow(frames).to_dict(INFOS, LABELS)
    one, four = report["systems"]
    assert (one["appeared"], one["segmented"], one["on_first_frame"]) == (4, 3, 1)
    assert one["mean_frames"] == pytest.approx(2 / 3, abs=1e-4)  # 0, 1, 1
    assert four["mean_frames"] == 1.5  # 2, 1
    assert four["over_window_1"] == {"mean_frames": 1.0, "only_here": 0, "only_there": 1}  # 2 - 0, 1 - 1
    assert one["over_window_1"] == {"mean_frames": 0.0, "only_here": 0, "only_there": 0}
    assert four["classes"]["car"] == {"appeared": 1, "segmented": 1, "on_first_frame": 0, "mean_frames": 2.0}
    assert four["classes"]["pole"] == {"appeared": 3, "segmented": 1, "on_first_frame": 0, "mean_frames": 1.0}
    assert "ground" not in four["classes"]


def test_only_systems_of_one_family_are_compared():
    infos = [info("a", 1, "A"), info("b", 4, "B"), info("a4", 4, "A")]
    assert references(infos) == [0, None, 0]
    report = follow([(GROUND,) * 3]).to_dict([infos[0], infos[1]], LABELS)
    assert report["systems"][1]["over_window_1"] is None and report["systems"][1]["mean_frames"] is None


def test_a_frames_score_is_the_mean_over_the_classes_of_its_label():
    """Half ground, half car; the mask has a quarter of the image wrongly as pole: ground 50 %, car 100 %."""
    ids = np.repeat(np.array([[0], [1]], np.uint8), 2, axis=0)  # (4, 1)
    mask = np.array([[0], [2], [1], [1]], np.uint8)
    scores = FrameScores(3)
    scores.update(7, 0, ids, [mask, ids])
    scores.update(8, 0, np.full((4, 1), 255, np.uint8), [mask, ids])
    assert scores.scores == {7: [75.0, 100.0]}


def frame_scores(values: dict[int, list[float]]) -> FrameScores:
    scores = FrameScores(1)
    scores.scores = values
    return scores


def test_recovery_is_counted_against_the_undisturbed_run():
    """Two events of three and two frames; system 0 is back at once and at frame 1, system 1 after 2 frames and never."""
    undisturbed = frame_scores({number: [80.0, 80.0] for number in range(20)})
    disturbed = frame_scores(
        {3: [79.0, 50.0], 4: [70.0, 60.0], 5: [80.0, 79.5], 9: [78.0, 78.0], 10: [79.5, 78.5]}
    )
    events = [
        [After(age, 3 + age, 13 + age) for age in range(3)],
        [After(age, 9 + age, age) for age in range(3)],  # frame 11 has no score
        [After(0, 15, 15)],  # no frame with a score
    ]
    one, two = recovery(events, disturbed, undisturbed, 2)
    assert (one["events"], one["recovered"], one["mean_frames"]) == (2, 2, 0.5)
    assert one["loss"][:4] == [1.5, 5.25, 0.0, None]  # (1 + 2) / 2, (10 + 0.5) / 2, 0
    assert (two["events"], two["recovered"], two["mean_frames"]) == (2, 1, 2.0)
    assert two["loss"][:3] == [16.0, 10.75, 0.5]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> FrameIndex:
    """Two sequences of 7 frames, 2.5 s apart."""
    stamps = [i / 10 for i in range(7)] + [3 + i / 10 for i in range(7)]
    return FrameIndex([BagSource(write_bag(tmp_path_factory.mktemp("bags") / "bag", stamps))])


def test_the_frames_after_corrupted_ones(index):
    """Frames 2, 5 and 9, 12 are corrupted (7 begins the second sequence)."""
    store = CorruptedStore(index, Corruption(kind="dirt"))
    numbers = [[(one.age, one.disturbed) for one in event] for event in after_corruption(store)]
    assert numbers == [[(0, 3), (1, 4)], [(0, 6)], [(0, 10), (1, 11)], [(0, 13)]]
    everything = CorruptedStore(index, Corruption(kind="dirt", share=1))
    assert after_corruption(everything) == []


def test_a_cut_index_has_a_cut_between_all_pieces(index):
    """Pieces of 3: 0-2, 3-5, 6; 7-9, 10-12, 13. The halves take turns."""
    cut, pieces = with_cuts(index, 3)
    assert pieces == [[0, 1, 2], [7, 8, 9], [3, 4, 5], [10, 11, 12], [6], [13]]
    assert cut.sequences == [(0, 14)] and index.sequences == [(0, 7), (7, 14)]
    original, reordered = FrameStore(index), FrameStore(cut)
    for number, source in enumerate(source for piece in pieces for source in piece):
        np.testing.assert_array_equal(reordered.image(number), original.image(source))
        np.testing.assert_array_equal(reordered.label(number), original.label(source))
    assert cut.window(4, 0, 3) == [2, 3, 4]  # windows reach across cuts


@pytest.mark.parametrize("every", range(1, 5))
def test_no_piece_is_followed_by_its_successor(index, every):
    _, pieces = with_cuts(index, every)
    assert all(later[0] != earlier[-1] + 1 for earlier, later in zip(pieces, pieces[1:]))
    assert sorted(number for piece in pieces for number in piece) == list(range(14))


def test_too_few_pieces_are_refused(index):
    with pytest.raises(ConfigError, match="expected at least 3 pieces of 7 frames, got 2"):
        with_cuts(index, 7)
    with pytest.raises(ConfigError, match="expected at least 1 frame between cuts, got -1"):
        with_cuts(index, -1)


def test_drift_compares_the_ends_of_long_sequences(tmp_path):
    """Sequences of 25 and 8 frames, drift over 20: frames 0, 1 against 18, 19. Of two classes, each half the image."""
    stamps = [i / 10 for i in range(25)] + [9 + i / 10 for i in range(8)]
    index = FrameIndex([BagSource(write_bag(tmp_path / "bag", stamps))])
    drift = Drift(index, 20, num_classes=2, systems=2)
    right, wrong = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 0, 0, 0]], np.uint8)
    for start, stop in index.sequences:
        for number in range(start, stop):
            late = number >= 2
            drift.update(number, start, right, [right if number != 19 else wrong, wrong if late else right])
    one, four = drift.to_dict(INFOS)["systems"]
    # Frames 18 and 19 together: ground 4 of 6, car 2 of 4 with one frame wrong; ground 1/2, car 0 with both.
    assert (one["first"], one["last"]) == (100.0, pytest.approx(100 * (4 / 6 + 2 / 4) / 2, abs=1e-4))
    assert (four["first"], four["last"], four["change"]) == (100.0, 25.0, -75.0)
    assert one["change_over_window_1"] == 0.0
    assert four["change_over_window_1"] == pytest.approx(25 - 58.3333, abs=1e-3)
    with pytest.raises(ConfigError, match="expected at least 26 frames, the longest has 25"):
        Drift(index, 26, num_classes=2, systems=1)
    with pytest.raises(ConfigError, match="expected at least 10, got 9"):
        Drift(index, 9, num_classes=2, systems=1)


def test_the_labels_own_consistency_leaves_unlabelled_pixels_out():
    """A still image has no flow. Of 8 columns, two change class and two are unlabelled later."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    before = np.zeros((32, 64), np.uint8)
    before[:, 32:] = 1
    after = before.copy()
    after[:, 32:48] = 0  # a quarter of the image changes from class 1 to 0
    after[:, 48:56] = 255  # an eighth has no label any more
    found = {}
    for skip in (False, True):
        consistency = WarpedConsistency(2, skip_unlabelled=skip)
        consistency.update(FlowImage(image, width=64), before)
        consistency.update(FlowImage(image, width=64), after)
        found[skip] = consistency.score()
    # Class 0: 32 columns in both, 48 in either. Class 1: 8 in both, of 24 labelled ones or of 32.
    assert found[True] == pytest.approx(100 * (32 / 48 + 8 / 24) / 2)
    assert found[False] == pytest.approx(100 * (32 / 48 + 8 / 32) / 2)
