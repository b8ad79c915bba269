# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Optical flow of windows: directions by hand, and images that it must carry onto each other."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.dataset import flow as flow_module
from vtseg_ros.dataset.augmentation import Augmentation, AugmentationConfig
from vtseg_ros.dataset.flow import DisFlow, FlowTopic, WindowFlow, build_provider, resize_flow, transform_flow
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.model.stgru import warp

TOPIC = "/camera/flow_backward"


@pytest.fixture(scope="module")
def store(street_flow_bag):
    return FrameStore(FrameIndex([BagSource(street_flow_bag)]))


def carried(past: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The past frame (H, W, 3) where the network's own `warp` puts it with this flow."""
    image = torch.from_numpy(past).permute(2, 0, 1)[None].float()
    return warp(image, torch.from_numpy(flow).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def error(video: np.ndarray, flows: np.ndarray) -> tuple[float, float]:
    """Median difference between a frame and the one before it: carried along by flow, and left where it is."""
    moved, left = [], []
    for t in range(1, len(video)):
        known = np.isfinite(flows[t - 1]).all(axis=2)
        moved.append(np.abs(carried(video[t - 1], flows[t - 1]) - video[t])[known])
        left.append(np.abs(video[t - 1].astype(float) - video[t])[known])
    return float(np.mean(np.concatenate(moved))), float(np.mean(np.concatenate(left)))


def test_dis_points_back(rng):
    """The scene moved 3 px to the right and 2 px down: a pixel came from the left and above."""
    past = cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), (0, 0), 2.0)
    past = cv2.normalize(past, None, 0, 255, cv2.NORM_MINMAX)
    present = np.roll(past, (2, 3), axis=(0, 1))
    flow = DisFlow()(present, past)[16:-16, 16:-16]
    assert flow.dtype == np.float32 and np.allclose(np.median(flow, axis=(0, 1)), [-3, -2], atol=0.2)


def test_resized_flow_by_hand():
    flow = np.zeros((4, 8, 2), np.float32)
    flow[:, 4:] = (2.0, -3.0)
    small = resize_flow(flow, (4, 2))
    assert small.shape == (2, 4, 2)
    assert small[0, 0].tolist() == [0, 0] and small[1, 3].tolist() == [1.0, -1.5]


def test_transformed_flow_by_hand():
    flow = np.full((10, 20, 2), (3.0, -1.0), np.float32)
    same = np.eye(3)
    flip = np.array([[-1.0, 0, 19], [0, 1, 0], [0, 0, 1]])
    double = np.diag([2.0, 2.0, 1.0])
    assert np.allclose(transform_flow(flow, same, same, (20, 10)), flow)
    assert np.allclose(transform_flow(flow, flip, flip, (20, 10)), (-3, -1))
    assert np.allclose(transform_flow(flow, double, double, (20, 10)), (6, -2))
    # Of one image: the past frame shifted by (5, 2) px, the present one not.
    shift = np.array([[1.0, 0, 5], [0, 1, 2], [0, 0, 1]])
    assert np.allclose(transform_flow(None, same, shift, (20, 10)), (5, 2))
    # What was cropped in from outside the image is not known.
    outside = transform_flow(flow, shift, shift, (20, 10))
    assert (
        np.isnan(outside[:, :5]).all() and np.isnan(outside[:2]).all() and np.isfinite(outside[2:, 5:]).all()
    )


@pytest.mark.parametrize("derived", [0.0, 1.0], ids=["real", "derived"])
def test_topic_flow_follows_the_augmentation(store, derived):
    """Flipped, scaled, turned windows: the flow carries the past frame onto the present one."""
    flow = WindowFlow(TOPIC, store.index)
    augmentation = Augmentation(
        AugmentationConfig(
            pseudo_clips=derived, flip=0.5, rotation_deg=15.0, brightness=0, saturation=0, hue_deg=0, blur=0
        )
    )
    for seed in range(6):
        numbers = list(range(4, 8))
        video, labels = store.window(numbers, 4)
        draw = augmentation.draw(4, (128, 64), np.random.default_rng(seed))
        video, _ = draw.apply(video, labels)
        moved, left = error(video, flow.window(numbers, video, draw))
        assert moved < 0.6 * left, (seed, moved, left)


def test_topic_flow_of_real_windows(store):
    """The topic's flow carries frames as the scene moved; where a sequence began too late, nothing moved."""
    flow = WindowFlow(TOPIC, store.index)
    video, _ = store.window([5, 6, 7], 3)
    moved, left = error(video, flow.window([5, 6, 7], video))
    assert moved < 0.6 * left
    video, _ = store.window([0, 1], 4)
    motion = flow.window([0, 1], video)
    assert motion.shape == (3, 64, 128, 2) and not motion[:2].any() and np.nanmax(np.abs(motion[2])) > 0.5


def test_estimated_flow_sees_the_augmented_frames(store):
    video, labels = store.window([4, 5], 2)
    flow = WindowFlow("dis", store.index)
    draw = Augmentation(AugmentationConfig(pseudo_clips=1.0)).draw(2, (128, 64), np.random.default_rng(1))
    video, _ = draw.apply(video, labels)
    assert np.array_equal(flow.window([4, 5], video, draw)[0], DisFlow()(video[1], video[0]))


def test_it_travels_to_a_worker(store):
    flow = WindowFlow(TOPIC, store.index)
    video, _ = store.window([3, 4], 2)
    before = flow.window([3, 4], video)
    assert np.array_equal(pickle.loads(pickle.dumps(flow)).window([3, 4], video), before, equal_nan=True)
    dis = WindowFlow("dis", store.index)
    before = dis.window([3, 4], video)
    assert np.array_equal(pickle.loads(pickle.dumps(dis)).window([3, 4], video), before)


class Still:
    """Nothing moves."""

    def __call__(self, present, past):
        return np.zeros((*present.shape[:2], 2), np.float32)


def test_estimators_by_name(store, monkeypatch):
    video, _ = store.window([3, 4], 2)
    monkeypatch.setitem(flow_module.PROVIDERS, "still", Still)
    assert not WindowFlow("still", store.index).window([3, 4], video).any()
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    assert not WindowFlow("test_flow:Still", store.index).window([3, 4], video).any()
    for name, words in (
        ("vcn", "expected dis"),
        ("no_such_module:f", "cannot import"),
        ("os:nothing", "cannot import"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_provider(name)


def test_mistakes(store, street_flow_bag, street_bag, tmp_path):
    with pytest.raises(BagError, match="no topic /camera/flow_backward"):
        WindowFlow(TOPIC, FrameIndex([BagSource(street_bag)]))
    with pytest.raises(ConfigError, match="expected 1, without random_strides"):
        WindowFlow(TOPIC, store.index, stride=2)
    with pytest.raises(ConfigError, match="expected sensor_msgs/msg/Image"):
        WindowFlow("/camera/camera_info", store.index)
    with BagReader(street_flow_bag) as bag, BagWriter(tmp_path / "gap") as out:
        flows = 0
        for topic, msgtype, time_ns, data in bag.raw():
            flows += topic == TOPIC
            if topic != TOPIC or flows != 5:
                out.write_raw(topic, msgtype, data, time_ns)
    with pytest.raises(BagError, match="no flow on .* has the header stamp"):
        FlowTopic(FrameIndex([BagSource(tmp_path / "gap")]), TOPIC)
