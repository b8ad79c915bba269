# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic street is repeatable and exact: geometry is checked against the images and by formulas."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.street.scenes import SCENES, VARIATIONS
from vtseg_ros.street.sequence import render_sequence

SIZE = (240, 72)
# Infinite depths, subtracted and divided.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def frames_of(frames: int = 2, **options):
    return list(render_sequence(frames=frames, **{"size": SIZE, **options}))


@pytest.fixture(scope="module")
def drive():
    """Three frames of scene 5."""
    return frames_of(3, scene=5)


@pytest.fixture(scope="module")
def scenes():
    """Two frames of each scene."""
    return {scene: frames_of(2, scene=scene, seed=2) for scene in SCENES}


def digest(frame) -> str:
    parts = (frame.rgb, frame.label, frame.depth, frame.flow_forward, frame.flow_backward)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def grid() -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(SIZE[0], dtype=np.float32), np.arange(SIZE[1], dtype=np.float32))


def look_up(values: np.ndarray, flow: np.ndarray, how: int = cv2.INTER_NEAREST) -> np.ndarray:
    """`values` of the other frame where the flow leads; NaN (or 0) outside."""
    u, v = grid()
    border = float("nan") if values.dtype.kind == "f" else 0
    flow = np.nan_to_num(flow, nan=1e6).astype(np.float32)
    return cv2.remap(values, u + flow[..., 0], v + flow[..., 1], how, borderValue=(border,) * 4)


def inside(flow: np.ndarray) -> np.ndarray:
    u, v = grid()
    x, y = u + flow[..., 0], v + flow[..., 1]
    return (x > 0.5) & (x < SIZE[0] - 1.5) & (y > 0.5) & (y < SIZE[1] - 1.5)


def test_the_classes_are_the_papers_table_ii():
    assert STREET.names == (
        "terrain",
        "sky",
        "tree",
        "vegetation",
        "building",
        "road",
        "guardrail",
        "traffic-sign",
        "traffic-light",
        "pole",
        "misc",
        "truck",
        "car",
        "van",
    )
    assert set(VARIATIONS) == {"clone", "overcast", "fog", "sunset", "15-deg-left", "15-deg-right"}
    assert list(SCENES) == [1, 2, 3, 4, 5]


def test_types_stamps_and_ids(drive):
    for index, frame in enumerate(drive):
        height, width = SIZE[1], SIZE[0]
        assert frame.rgb.shape == (height, width, 3) and frame.rgb.dtype == np.uint8
        assert frame.label.shape == frame.depth.shape == (height, width)
        assert frame.flow_forward.shape == frame.flow_backward.shape == (height, width, 2)
        assert frame.depth.dtype == frame.flow_forward.dtype == frame.flow_backward.dtype == np.float32
        assert frame.stamp_ns == 1_000_000_000 + index * 100_000_000  # 10 Hz
        assert frame.frame_id == "scene5_clone"
        assert set(np.unique(frame.label)) <= {*range(14), 255}
        sky = frame.label == STREET.names.index("sky")
        np.testing.assert_array_equal(sky, np.isinf(frame.depth))
        assert np.isnan(frame.depth).mean() < 0.003
        assert np.nanmin(frame.depth[~sky]) > 0.15 and np.nanmax(frame.depth[~sky]) < 360


def test_the_same_seed_gives_the_same_frames_in_another_process(drive):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_street import frames_of, digest\n"
        "print(*map(digest, frames_of(3, scene=5)))"
    )
    run = [sys.executable, "-c", code, str(__file__.rsplit("/", 1)[0])]
    told = subprocess.run(run, capture_output=True, text=True, check=True, timeout=600)
    assert told.stdout.split() == [digest(frame) for frame in drive]


def test_a_render_does_not_depend_on_the_one_before(drive):
    assert digest(frames_of(1, scene=5)[0]) != digest(drive[0])  # the drive's length is part of the layout
    assert [digest(f) for f in frames_of(3, scene=5)] == [digest(f) for f in drive]


def test_another_seed_is_another_street(drive):
    other = frames_of(3, scene=5, seed=1)
    assert (other[0].label != drive[0].label).mean() > 0.1


def test_labels_follow_the_flow(drive):
    """The class of a point is the same in the next frame and in the one before, wherever it is seen in both."""
    for now, other, flow, back in (
        (drive[0], drive[1], drive[0].flow_forward, drive[1].flow_backward),
        (drive[1], drive[0], drive[1].flow_backward, drive[0].flow_forward),
    ):
        returned = look_up(back, flow) + flow
        seen = inside(flow) & (np.linalg.norm(np.nan_to_num(returned, nan=9.0), axis=2) < 1.0)
        assert seen.mean() > 0.6
        agree = look_up(other.label, flow)[seen] == now.label[seen]
        # Nearest-pixel look-ups differ by up to half a pixel: along thin things that is another class.
        assert agree.mean() > 0.97
        away = cv2.erode((cv2.Laplacian(now.label, cv2.CV_16S) == 0).astype(np.uint8), np.ones((3, 3))) > 0
        assert (look_up(other.label, flow) == now.label)[seen & away].mean() > 0.998


def test_flow_forward_and_backward_undo_each_other(drive):
    now, after = drive[0], drive[1]
    u, v = grid()
    returned = look_up(after.flow_backward, now.flow_forward, cv2.INTER_LINEAR) + now.flow_forward
    error = np.linalg.norm(returned, axis=2)[inside(now.flow_forward)]
    assert np.nanmedian(error) < 0.02 and np.nanpercentile(error, 80) < 0.15


def test_the_picture_moves_with_the_flow(drive):
    """Images are rendered without the flow: the next one, warped back by the flow, looks like this one."""
    now, after = drive[0], drive[1]
    gray = [
        cv2.GaussianBlur(cv2.cvtColor(f.rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1) for f in drive
    ]
    moving = np.linalg.norm(np.nan_to_num(now.flow_forward), axis=2) > 2
    returned = look_up(after.flow_backward, now.flow_forward) + now.flow_forward
    seen = moving & inside(now.flow_forward) & (np.linalg.norm(np.nan_to_num(returned, nan=9.0), axis=2) < 1)
    brought = look_up(gray[1], now.flow_forward, cv2.INTER_LINEAR)
    with_flow = np.nanmean(np.abs(brought - gray[0])[seen])
    half = np.nanmean(np.abs(look_up(gray[1], 0.5 * now.flow_forward, cv2.INTER_LINEAR) - gray[0])[seen])
    without = np.abs(gray[1] - gray[0])[seen].mean()
    assert with_flow < 0.5 * without and with_flow < 0.6 * half


def test_the_road_is_a_plane_below_the_camera(drive):
    """By depth and pixel position, the road is 1.65 m (and a bob of 3 cm) below the camera."""
    frame = drive[0]
    _, v = grid()
    near = (frame.label == STREET.names.index("road")) & (frame.depth < 12)
    assert near.sum() > 300
    below = frame.depth * (v - (SIZE[1] - 1) / 2) / frame.focal
    # The camera looks down by up to 0.013 rad, which lowers far points by as much times their distance.
    assert np.abs(below[near] - 1.65).max() < 0.04 + 0.013 * 12


def test_flow_of_the_road_is_that_of_a_camera_that_drives_on(drive):
    """On the road, distance falls by the same metres a frame for near and far points."""
    frame, after = drive[0], drive[1]
    road = (frame.label == STREET.names.index("road")) & inside(frame.flow_forward) & (frame.depth < 25)
    advance = (frame.depth - look_up(after.depth, frame.flow_forward))[road]
    advance = advance[np.isfinite(advance)]
    assert np.median(advance) == pytest.approx(SCENES[5].speed / 10, abs=0.15)
    assert np.percentile(np.abs(advance - np.median(advance)), 80) < 0.25  # half a pixel of a slanted plane


def turn(frame, degrees: float):
    """Where each pixel of the straight view is in one turned to the left, and its depth there."""
    u, v = grid()
    x, z = (u - (SIZE[0] - 1) / 2) / frame.focal, -(v - (SIZE[1] - 1) / 2) / frame.focal
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    right, ahead = c * x + s, c - s * x
    column = (SIZE[0] - 1) / 2 + frame.focal * right / ahead
    row = (SIZE[1] - 1) / 2 - frame.focal * z / ahead
    return np.stack([column - u, row - v], axis=2), ahead


@pytest.mark.parametrize(("variation", "degrees"), [("15-deg-left", 15.0), ("15-deg-right", -15.0)])
def test_turned_cameras_see_the_same_world_15_degrees_aside(drive, variation, degrees):
    straight, turned = drive[0], frames_of(3, scene=5, variation=variation)[0]
    flow, ahead = turn(straight, degrees)
    both = inside(flow)
    assert 0.4 < both.mean() < 0.95
    assert (look_up(turned.label, flow) == straight.label)[both].mean() > 0.93
    ratio = (look_up(turned.depth, flow) / (straight.depth * ahead))[both & np.isfinite(straight.depth)]
    assert np.nanmedian(np.abs(ratio - 1)) < 0.01
    mirrored, _ = turn(straight, -degrees)
    assert (look_up(turned.label, mirrored) == straight.label)[inside(mirrored)].mean() < 0.9


@pytest.mark.parametrize("variation", ["overcast", "fog", "sunset"])
def test_weather_changes_the_picture_and_nothing_else(drive, variation):
    frame = frames_of(3, scene=5, variation=variation)[0]
    np.testing.assert_array_equal(frame.label, drive[0].label)
    np.testing.assert_array_equal(frame.depth, drive[0].depth)
    np.testing.assert_array_equal(frame.flow_forward, drive[0].flow_forward)
    assert np.abs(frame.rgb.astype(int) - drive[0].rgb).mean() > 8


def test_fog_hides_what_is_far(drive):
    fog = frames_of(3, scene=5, variation="fog")[0]
    contrast = [
        cv2.GaussianBlur(cv2.Laplacian(f.rgb[..., 1].astype(np.float32), -1) ** 2, (0, 0), 2)
        for f in (drive[0], fog)
    ]
    far, near = (drive[0].depth > 60) & np.isfinite(drive[0].depth), drive[0].depth < 10
    assert contrast[1][far].mean() < 0.35 * contrast[0][far].mean()
    assert contrast[1][near].mean() > 0.35 * contrast[0][near].mean()


def test_the_five_scenes_differ_and_hold_every_class(scenes):
    shares = {}
    for scene, frames in scenes.items():
        labels = np.concatenate([frame.label.ravel() for frame in frames])
        shares[scene] = np.bincount(labels, minlength=256) / labels.size
    for one in shares:
        for other in shares:
            if one < other:
                assert np.abs(shares[one] - shares[other]).sum() > 0.08, (one, other)
    seen = sum(shares.values())
    assert all(seen[number] > 0 for number in range(14)), np.flatnonzero(seen[:14] == 0)
    for share in shares.values():
        assert share[255] < 0.05 and share[STREET.names.index("road")] > 0.1


def test_pictures_have_noise_and_texture(drive):
    road = drive[0].label == STREET.names.index("road")
    pixels = drive[0].rgb[..., 1][road].astype(float)
    assert 4 < pixels.std() < 60
    fine = drive[0].rgb[..., 1].astype(float) - cv2.medianBlur(drive[0].rgb[..., 1], 3)
    noise = np.abs(fine[drive[0].label == STREET.names.index("sky")])
    assert 1 < np.mean(noise[noise < 15]) < 4  # grey levels of sensor noise


@pytest.mark.parametrize("size", [(100, 37), (33, 120), (16, 16)])
def test_any_size(size):
    frame = frames_of(1, size=size)[0]
    assert frame.rgb.shape == (size[1], size[0], 3) and frame.flow_forward.shape == (size[1], size[0], 2)
    assert len(np.unique(frame.label)) >= 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scene": 6}, "scene: unknown; expected one of 1, 2, 3, 4, 5, got 6"),
        ({"variation": "snow"}, "variation: unknown; expected one of clone"),
        ({"frames": 0}, "at least 1 frame"),
        ({"size": (8, 64)}, "16x16"),
    ],
)
def test_what_there_is_not(options, words):
    with pytest.raises(ConfigError, match=words):
        frames_of(**{"frames": 1, **options})
