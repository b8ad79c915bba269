"""What a training step sees."""

from __future__ import annotations

import numpy as np

from vtseg_ros.data.windows import BagSource, FrameIndex, FrameStore
from vtseg_ros.labels import IGNORE
from vtseg_ros.training.samples import Samples


def test_labels_that_label_every_leaves_out_stay_out(street_bag):
    """30 labelled frames, every 4th label, windows of 4: of each window only the newest frame has one."""
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    sparse = store.index.windows(4, label_every=4)
    assert [window[-1] for window in sparse] == [0, 4, 8, 12, 16, 20, 24, 28]
    samples = Samples(store, sparse, length=4, augmentation=None, seed=1, stage=0, num_classes=14)
    for position in range(len(sparse)):
        labels = samples[position][1].numpy()
        assert (labels[:3] == IGNORE).all() and (labels[3] != IGNORE).mean() > 0.5


def test_every_label_of_a_window_is_used_when_none_is_left_out(street_bag):
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    samples = Samples(
        store, [[3, 4, 5], [2, 3, 4], [1, 2, 3]], length=3, augmentation=None, seed=1, stage=0, num_classes=14
    )
    by_newest = {}
    for position in range(3):
        labels = samples[position][1].numpy()
        by_newest[int((labels != IGNORE).any(axis=(1, 2)).sum())] = labels
    # [3, 4, 5] has all three labels, [2, 3, 4] two and [1, 2, 3] one.
    assert sorted(by_newest) == [1, 2, 3]
    assert np.array_equal(by_newest[3][2], store.label(5))
