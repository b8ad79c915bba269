# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Augmented windows: one geometry for all frames, labels that follow their pixels, derived windows along a smooth path."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.dataset.augmentation import Augmentation, AugmentationConfig
from vtseg_ros.errors import ConfigError

PLAIN = AugmentationConfig(blur=0.0, brightness=0.0, saturation=0.0, hue_deg=0.0)
"""Geometry alone."""
STILL = AugmentationConfig(pseudo_clips=0.0, flip=0.0, scale=(1.0, 1.0), rotation_deg=0.0)
"""Colours alone."""
SIZE = (48, 32)


def window(rng, frames: int = 4):
    """Coloured 8x8 blocks with their class in the red channel."""
    blocks = rng.integers(0, 20, (frames, SIZE[1] // 8, SIZE[0] // 8), dtype=np.uint8)
    labels = blocks.repeat(8, axis=1).repeat(8, axis=2)
    video = np.stack([labels * 12, labels * 0, 240 - labels * 12], axis=-1).astype(np.uint8)
    return video, labels


def sources(transform: np.ndarray) -> np.ndarray:
    """(H, W, 2) source position of each output pixel."""
    xs, ys = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    points = np.stack([xs, ys, np.ones_like(xs)], axis=-1) @ np.linalg.inv(transform).T
    return points[..., :2]


def bilinear(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Colours (n, 3) at positions (n, 2) inside the image."""
    x0, y0 = np.floor(where[..., 0]).astype(int), np.floor(where[..., 1]).astype(int)
    fx, fy = (where[..., 0] - x0)[..., None], (where[..., 1] - y0)[..., None]
    x1, y1 = np.minimum(x0 + 1, SIZE[0] - 1), np.minimum(y0 + 1, SIZE[1] - 1)
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    return top * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy


@given(seed=st.integers(0, 2**32 - 1), derived=st.sampled_from([0.0, 1.0]))
@settings(max_examples=25)
def test_labels_and_pixels_go_where_the_transforms_say(seed, derived):
    rng = np.random.default_rng(seed)
    video, labels = window(rng)
    draw = Augmentation(dataclasses.replace(PLAIN, pseudo_clips=derived)).draw(4, SIZE, rng)
    out_video, out_labels = draw.apply(video, labels)
    assert out_video.shape == video.shape and out_video.dtype == out_labels.dtype == np.uint8
    for t in range(4):
        source = 3 if derived else t
        where = sources(draw.transforms[t])
        nearest = np.floor(where + 0.5).astype(int)
        clear = (np.abs(where + 0.5 - np.round(where + 0.5)) > 0.05).all(axis=-1)  # no tie to break
        inside = ((nearest >= 0) & (nearest < SIZE)).all(axis=-1)
        expected = np.full(labels.shape[1:], 255)
        expected[inside] = labels[source][nearest[inside][:, 1], nearest[inside][:, 0]]
        np.testing.assert_array_equal(out_labels[t][clear], expected[clear])
        within = ((where >= 0.01) & (where <= np.array(SIZE) - 1.01)).all(axis=-1)
        found = out_video[t][within].astype(float)
        # OpenCV places samples on a grid of 1/32 px, and colours step by up to 240 a pixel.
        assert np.abs(found - bilinear(video[source].astype(float), where[within])).max() <= 240 / 32 * 2


def test_real_windows_have_one_geometry(rng):
    video, labels = window(rng)
    video[:], labels[:] = video[0], labels[0]
    for seed in range(20):
        draw = Augmentation(dataclasses.replace(PLAIN, pseudo_clips=0.0)).draw(
            4, SIZE, np.random.default_rng(seed)
        )
        assert not draw.pseudo_clip and (draw.transforms == draw.transforms[0]).all()
        out_video, out_labels = draw.apply(video, labels)
        assert (out_video == out_video[0]).all() and (out_labels == out_labels[0]).all()


def test_a_share_of_the_windows_is_derived_and_never_a_single_frame(rng):
    augmentation = Augmentation(AugmentationConfig())
    share = np.mean([augmentation.draw(4, SIZE, rng).pseudo_clip for _ in range(1500)])
    assert 0.75 < share < 0.85  # 0.8, five standard deviations of 0.0103
    assert not any(augmentation.draw(1, SIZE, rng).pseudo_clip for _ in range(50))


def test_derived_windows_follow_a_smooth_path_that_ends_at_the_labelled_frame():
    """Between frames corners move by little, by nearly the same each time, and the camera never drives backwards."""
    width, height = 320, 96
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    moved = []
    for seed in range(200):
        config = dataclasses.replace(PLAIN, pseudo_clips=1.0, flip=0.0, scale=(1.0, 1.0), rotation_deg=0.0)
        draw = Augmentation(config).draw(4, (width, height), np.random.default_rng(seed))
        np.testing.assert_allclose(draw.transforms[-1], np.eye(3), atol=1e-9)
        path = np.stack([(t @ corners)[:2].T for t in draw.transforms])  # (4, 4, 2)
        step = np.diff(path, axis=0)
        moved.append(np.abs(step).max())
        assert np.abs(np.diff(step, axis=0)).max() < 4 and moved[-1] < 0.15 * width
        zoom = np.sqrt([np.linalg.det(t[:2, :2]) for t in draw.transforms])
        assert zoom[0] <= 1.03 and zoom[-1] == pytest.approx(1)
    assert np.median(moved) > 3  # px of 320: paths that move


def test_a_flip_is_one(rng):
    video, labels = window(rng)
    config = dataclasses.replace(PLAIN, pseudo_clips=0.0, flip=1.0, scale=(1.0, 1.0), rotation_deg=0.0)
    out_video, out_labels = Augmentation(config)(video, labels, rng)
    np.testing.assert_array_equal(out_video, video[:, :, ::-1])
    np.testing.assert_array_equal(out_labels, labels[:, :, ::-1])


def test_crops_of_the_whole_image_or_less_hold_no_unknown_pixel(rng):
    _, labels = window(rng)
    video = np.zeros((*labels.shape, 3), np.uint8)
    config = dataclasses.replace(PLAIN, pseudo_clips=0.0, rotation_deg=0.0, scale=(1.0, 3.0))
    for seed in range(50):
        _, out = Augmentation(config)(video, labels, np.random.default_rng(seed))
        assert (out == 255).mean() == 0


def test_colours_change_alike_in_all_frames_and_labels_do_not(rng):
    video, labels = window(rng)
    video[:] = video[0]
    changed = 0
    for seed in range(20):
        config = dataclasses.replace(STILL, blur=0.5)
        out_video, out_labels = Augmentation(config)(video, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(out_labels, labels)
        assert (out_video == out_video[0]).all()
        changed += not np.array_equal(out_video, video)
    assert changed >= 18


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (
            dataclasses.replace(STILL, blur=0, saturation=0, hue_deg=0),
            lambda h, s, v, x: (h, s, v * (1 + 0.3 * x)),
        ),
        (
            dataclasses.replace(STILL, blur=0, brightness=0, hue_deg=0),
            lambda h, s, v, x: (h, s * (1 + 0.3 * x), v),
        ),
        (
            dataclasses.replace(STILL, blur=0, brightness=0, saturation=0),
            lambda h, s, v, x: (h + x / 30, s, v),
        ),
    ],
    ids=["brightness", "saturation", "hue"],
)
def test_colours_by_another_formula(config, change):
    """Some x in -1..1 explains all pixels, through Python's own HSV."""
    rng = np.random.default_rng(3)
    colors = rng.integers(30, 180, (40, 3))
    video = np.broadcast_to(colors.astype(np.uint8).reshape(1, 5, 8, 3), (2, 5, 8, 3)).copy()
    out, _ = Augmentation(config)(video, np.zeros((2, 5, 8), np.uint8), rng)
    found = out[0].reshape(-1, 3).astype(float)

    def error(x: float) -> float:
        made = []
        for color in colors / 255:
            h, s, v = change(*colorsys.rgb_to_hsv(*color), x)
            made.append(np.array(colorsys.hsv_to_rgb(h % 1, min(s, 1), min(v, 1))) * 255)
        return float(np.abs(np.array(made) - found).mean())

    assert min(error(x) for x in np.linspace(-1, 1, 101)) < 2.5
    assert np.abs(found - colors).mean() > 2.5  # and doing nothing does not


def test_the_same_draw_gives_the_same_window(rng):
    video, labels = window(rng)
    one = Augmentation(AugmentationConfig())(video, labels, np.random.default_rng(5))
    two = Augmentation(AugmentationConfig())(video, labels, np.random.default_rng(5))
    assert all(np.array_equal(a, b) for a, b in zip(one, two))
    other = Augmentation(AugmentationConfig())(video, labels, np.random.default_rng(6))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pseudo_clips": 1.2}, "augmentation.pseudo_clips: out of range; expected 0..1, got 1.2"),
        ({"flip": -0.1}, "augmentation.flip"),
        ({"blur": float("nan")}, "augmentation.blur"),
        ({"brightness": 1.5}, "augmentation.brightness"),
        ({"scale": (0.0, 1.0)}, "augmentation.scale: out of range; expected lowest <= highest, above 0"),
        ({"scale": (2.0, 1.0)}, "augmentation.scale"),
        ({"path_zoom": 1.0}, "augmentation.path_zoom"),
        ({"rotation_deg": -1.0}, "augmentation.rotation_deg: out of range; expected at least 0"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        AugmentationConfig(**change)


def test_pictures_smaller_than_the_frame_move_within_it(rng):
    """A scale below 1: the whole image is in the frame, at varying places."""
    config = AugmentationConfig(pseudo_clips=0.0, flip=0.0, scale=(0.5, 0.5), rotation_deg=0.0)
    corners = np.array([[0, 0, 1], [SIZE[0], SIZE[1], 1.0]])
    places = [corners @ Augmentation(config).draw(1, SIZE, rng).transforms[0].T for _ in range(200)]
    first, last = np.array(places)[:, 0, :2], np.array(places)[:, 1, :2]
    assert np.allclose(last - first, np.array(SIZE) / 2)
    assert first.min() >= -1e-9 and (last <= np.array(SIZE) + 1e-9).all()
    assert (first.max(axis=0) > 0.4 * np.array(SIZE)).all() and (
        first.min(axis=0) < 0.1 * np.array(SIZE)
    ).all()
