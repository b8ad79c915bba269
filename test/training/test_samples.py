# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Samples of a training step."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from bags.bagtools import CLASSES, START_NS, ids_of, picture, undecodable_png, write_bag

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, NS, compressed_message
from vtseg_ros.dataset.augmentation import Augmentation, AugmentationConfig
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE
from vtseg_ros.training.samples import Positions, Samples, build_loader, load_batches


def test_labels_that_label_stride_leaves_out_stay_out(street_bag):
    """30 labelled frames, every 4th label, windows of 4: of each window only the newest frame has one."""
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    sparse = store.index.windows(4, label_stride=4)
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


def test_a_class_id_outside_the_list(street_bag):
    """The street has ids up to 13; a list of 11 classes has 0 to 10."""
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    samples = Samples(store, [[0, 1]], length=2, augmentation=None, seed=1, stage=0, num_classes=11)
    with pytest.raises(ConfigError) as error:
        samples[0]
    highest = int(np.where((label := store.label(1)) == IGNORE, 0, label).max())
    text = str(error.value)
    assert str(street_bag) in text and f"class id {highest}" in text and "0..10" in text
    positions = Positions(first=0, last=1, batch=1, rank=0, world=1)
    with pytest.raises(ConfigError) as error:
        next(load_batches(build_loader(samples, positions, 0, pin_memory=False)))
    assert str(error.value) == text


def test_each_epoch_has_its_own_order(street_bag):
    """Every window once an epoch, in another order; a position has one sample, whatever was read before it."""
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    windows = store.index.windows(1)
    assert len(windows) == 30
    samples = Samples(store, windows, length=1, augmentation=None, seed=1, stage=0, num_classes=14)
    by_image = {store.image(number).tobytes(): number for (number,) in windows}
    assert len(by_image) == 30

    def number_of(position: int) -> int:
        return by_image[samples[position][0][0].permute(1, 2, 0).contiguous().numpy().tobytes()]

    epochs = [[number_of(epoch * 30 + place) for place in range(30)] for epoch in range(3)]
    for epoch, order in enumerate(epochs):
        assert sorted(order) == list(range(30))
        assert order == np.random.default_rng([1, 0, epoch]).permutation(30).tolist()
    assert number_of(31) == epochs[1][1] and number_of(2) == epochs[0][2]


def test_windows_draw_their_stride(tmp_path):
    """Two sequences of 10 frames; windows of 3 that end at frames 4 and 11, with strides 1 and 3."""
    stamps = [n / 10 for n in range(10)] + [5 + n / 10 for n in range(10)]
    store = FrameStore(FrameIndex([BagSource(write_bag(tmp_path / "bag", stamps))]), size=(64, 32))
    options = dict(length=3, augmentation=None, seed=0, stage=0, num_classes=20, labelled=set(range(20)))
    samples = Samples(store, [[2, 3, 4], [10, 11]], strides=(1, 3), **options)
    seen = set()
    for position in range(24):
        video, labels = (tensor.numpy() for tensor in samples[position])
        numbers = tuple(video[:, 0, 0, 0].tolist())  # red says which frame it is
        known = [label[8, 0] for label in labels]
        seen.add((numbers, tuple(map(int, known))))
        again = samples[position]
        assert np.array_equal(again[0].numpy(), video)
    # The oldest frame is repeated, without its label, where the sequence began too late.
    assert seen == {
        ((2, 3, 4), (2, 3, 4)),
        ((1, 1, 4), (255, 1, 4)),
        ((10, 10, 11), (255, 10, 11)),
        ((11, 11, 11), (255, 255, 11)),
    }


def test_clean_frames_come_with_the_corrupted_ones(street_bag):
    """Without corruption the same samples are drawn; a window's third tensor is what they look like."""
    store = FrameStore(FrameIndex([BagSource(street_bag)]), size=(64, 32))
    options = dict(length=2, seed=1, stage=0, num_classes=14)
    corrupting = AugmentationConfig(corruption=1.0, corruption_newest=1.0, corruption_severity=(5, 5))
    windows = store.index.windows(2)
    samples = Samples(store, windows, augmentation=Augmentation(corrupting), with_clean=True, **options)
    plain = Samples(store, windows, augmentation=Augmentation(AugmentationConfig()), **options)
    for position in range(4):
        video, labels, clean = samples[position]
        expected, same_labels = plain[position]
        assert torch.equal(clean, expected) and torch.equal(labels, same_labels)
        assert torch.equal(video[0], clean[0]) and not torch.equal(video[1], clean[1])


def test_workers_start_after_opencv_used_its_threads(street_bag):
    """In a separate process, because it hung: a forked worker that ends threads of its parent."""
    code = """if True:
        import sys
        import cv2, numpy as np
        from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
        from vtseg_ros.errors import ConfigError
        from vtseg_ros.training.samples import Positions, Samples, build_loader, load_batches
        cv2.setNumThreads(2)
        picture = np.zeros((1080, 1920, 3), np.uint8)
        store = FrameStore(FrameIndex([BagSource(sys.argv[1])]), size=(64, 32))
        samples = Samples(store, store.index.windows(2), length=2, augmentation=None, seed=0, stage=0, num_classes=14)
        for _ in range(20):
            cv2.warpAffine(picture, np.eye(2, 3), (1920, 1080))
        loader = build_loader(samples, Positions(first=0, last=2, batch=2, rank=0, world=1), 1, pin_memory=False)
        print(*(tuple(video.shape) for video, _ in load_batches(loader)))
        samples.num_classes = 1
        try:
            list(load_batches(loader))
        except ConfigError as err:
            print(err)"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(street_bag)], capture_output=True, text=True, timeout=600
    )
    shapes, error = run.stdout.splitlines()
    assert shapes == "(2, 2, 3, 32, 64) (2, 2, 3, 32, 64)", run.stderr
    # The error of a worker has the message of the sample and not the traceback of the worker.
    assert error.startswith(f"bag {street_bag}: a label of the window") and "(0..0; 255" in error


def test_corrupt_frames_are_counted_by_the_training(tmp_path, caplog):
    """One undecodable image among 12: counted by the main process, whichever worker read it."""
    pytest.importorskip("lightning_fabric")
    from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
    from vtseg_ros.training.run import train

    with BagWriter(tmp_path / "bag") as bag:
        for number in range(12):
            stamp = START_NS + number * NS // 10
            payload = undecodable_png(picture(5)) if number == 5 else cv2.imencode(".png", picture(number))[1]
            message = compressed_message(payload, "png", stamp, "cam")
            bag.write("/image/compressed", COMPRESSED_IMAGE, message, stamp)
            bag.write_label("/label/compressed", ids_of(number), stamp, "cam", compressed=True)
    source = (SourceConfig(str(tmp_path / "bag")),)
    config = TrainConfig(
        data=DataConfig(train=source, validation=source, size=(64, 32), workers=1, class_names=CLASSES.names),
        stages=(StageConfig("static", steps=6, batch=2, max_lr=1e-3),),
        model=ModelConfig(architecture="erfnet"),
        device="cpu",
    )
    with caplog.at_level("WARNING"):
        assert train(config, tmp_path / "run")
    assert "corrupt messages so far: 1 in the training bags, 1 in those for validation" in caplog.text
