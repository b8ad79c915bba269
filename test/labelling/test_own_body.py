# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg ego-mask` on synthetic video with a known static region."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.cli import main
from vtseg_ros.errors import ConfigError
from vtseg_ros.labelling.masks import read_ego_mask
from vtseg_ros.labelling.own_body import propose_ego_mask

HEIGHT, WIDTH = 120, 160


def body() -> np.ndarray:
    """The true mask: a bonnet at the bottom."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (WIDTH // 2, HEIGHT), (70, 30), 0, 0, 360, 255, -1)
    return mask > 0


def drive(rng, frames=40, border=0, speed=7):
    """A texture that moves behind a textured body; each frame has different noise."""
    world = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH * 4, 3), dtype=np.uint8), (0, 0), 3)
    world = cv2.normalize(world, None, 20, 235, cv2.NORM_MINMAX)
    paint = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 3)
    mask = body()
    for number in range(frames):
        image = np.roll(world, -speed * number, axis=1)[:, :WIDTH].copy()
        image[mask] = paint[mask]
        noisy = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        if border:
            noisy[:, :border] = noisy[:, -border:] = 3
        yield noisy


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_body_is_found(rng):
    found = propose_ego_mask(drive(rng))
    assert found.mask.shape == (HEIGHT, WIDTH) and found.frames == 40
    assert overlap(found.mask, body()) > 0.9


def test_black_borders_are_found(rng):
    found = propose_ego_mask(drive(rng, border=12))
    expected = body()
    expected[:, :12] = expected[:, -12:] = True
    assert found.mask[:, :12].all() and found.mask[:, -12:].all()
    assert overlap(found.mask, expected) > 0.88


def test_a_body_above_a_black_border_is_found(rng):
    def letterboxed():
        for image in drive(rng):
            yield np.pad(image, ((20, 20), (0, 0), (0, 0)))

    found = propose_ego_mask(letterboxed())
    assert found.mask[:20].all() and found.mask[-20:].all()
    assert overlap(found.mask[20:-20], body()) > 0.85


def test_without_a_body_nothing_is_masked(rng):
    world = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH * 4, 3), dtype=np.uint8), (0, 0), 3)
    world = cv2.normalize(world, None, 20, 235, cv2.NORM_MINMAX)
    found = propose_ego_mask(np.roll(world, -7 * n, axis=1)[:, :WIDTH] for n in range(40))
    assert found.mask.mean() < 0.01


def test_a_clear_sky_is_not_masked(rng):
    def under_sky():
        for image in drive(rng):
            image[:30] = (120, 160, 230)
            yield image

    found = propose_ego_mask(under_sky())
    assert not found.mask[:30].any() and overlap(found.mask, body()) > 0.9
    assert propose_ego_mask(under_sky(), top=True).mask[:28].all()


def test_a_standing_robot_is_refused(rng):
    images = list(drive(rng, frames=30, speed=0))
    with pytest.raises(ConfigError, match="too few that differ"):
        propose_ego_mask(images)


def test_images_of_other_sizes_are_refused(rng):
    images = [*drive(rng, frames=20), np.zeros((50, 50, 3), np.uint8)]
    with pytest.raises(ConfigError, match="sizes differ"):
        propose_ego_mask(images)


def test_the_command(rng, tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        for number, image in enumerate(drive(rng)):
            bag.write_image(
                "/camera/image", image, 1_000_000_000 + number * 100_000_000, "camera", compressed=True
            )
    out = tmp_path / "new" / "mask.png"
    assert main(["ego-mask", str(tmp_path / "bag"), "--out", str(out), "--json", str(tmp_path / "j")]) == 0
    assert overlap(read_ego_mask(out), body()) > 0.9
    assert cv2.imread(str(tmp_path / "new" / "mask_preview.jpg")).shape == (HEIGHT, 3 * WIDTH, 3)
    made = json.loads((tmp_path / "j").read_text())
    assert made["frames"] == 40 and made["share"] == pytest.approx(read_ego_mask(out).mean())


def test_the_command_on_a_video(rng, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for image in drive(rng):
        writer.write(image)
    writer.release()
    assert main(["ego-mask", str(tmp_path / "a.avi"), "--out", str(tmp_path / "mask.png")]) == 0
    assert overlap(read_ego_mask(tmp_path / "mask.png"), body()) > 0.85


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing", [], "no such file"),
        ("text.mp4", [], "not a video"),
        ("text.mp4", ["--threshold", "1.5"], "--threshold"),
        ("text.mp4", ["--out", "mask.jpg"], "ends in .png"),
        ("text.mp4", ["--out", "there.png"], "nothing is overwritten"),
    ],
)
def test_bad_input(tmp_path, capsys, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)
    for file in ("text.mp4", "there.png"):
        (tmp_path / file).write_text("text")
    before = sorted(tmp_path.iterdir())
    assert main(["ego-mask", name, "--out", "mask.png", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vtseg ego-mask: ") and message in error
    assert sorted(tmp_path.iterdir()) == before
