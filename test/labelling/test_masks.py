# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Mask files to class ids: what palettes, colours and transparency mean, for one mask and for a set of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from bags.files import GREY, GREY_ALPHA, INDEXED, RGB, RGBA, png_file
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.errors import ImageError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.masks import MaskReader, read_ego_mask
from vtseg_ros.labelling.palette import Palette

LABELS = LabelSet(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
BLANK = np.zeros((2, 3), np.uint8)


def read(
    file: bytes, *others: bytes, labels: LabelSet | None = LABELS, unknown: str = "refuse"
) -> np.ndarray:
    reader = MaskReader(Palette(labels) if labels else None, unknown, lambda: [*others, file])
    return reader.ids("mask.png", file)


class TestIndexed:
    """The palette decides."""

    def test_colours_of_the_class_list_are_colours(self):
        mixed = [LABELS.colors[2], LABELS.colors[0], LABELS.colors[1]]
        np.testing.assert_array_equal(
            read(png_file(IDS, INDEXED, 2, palette=mixed)), np.array([2, 0, 1])[IDS]
        )

    @pytest.mark.parametrize("depth", [2, 4, 8])
    def test_other_colours_are_none_and_the_indices_ids(self, depth):
        reader = MaskReader(Palette(LABELS))
        np.testing.assert_array_equal(reader.ids("a", png_file(IDS, INDEXED, depth, palette=VOC)), IDS)
        assert any(
            "indices of 1 indexed masks are taken as class ids" in line for line in reader.summary(["a"])
        )

    def test_index_0_by_itself_is_told_by_the_rest_of_the_palette(self):
        np.testing.assert_array_equal(read(png_file(BLANK, INDEXED, 2, palette=VOC)), BLANK)
        colors = [(0, 0, 0), *LABELS.colors]
        np.testing.assert_array_equal(read(png_file(BLANK, INDEXED, 2, palette=colors)), np.full((2, 3), 255))

    def test_or_by_the_other_masks(self):
        blank = png_file(BLANK, INDEXED, 1, palette=[(0, 0, 0)])
        assert (read(blank) == 0).all()
        assert (read(blank, png_file(IDS, INDEXED, 2, palette=VOC)) == 0).all()
        assert (read(blank, png_file(IDS, INDEXED, 2, palette=[(0, 0, 0), *LABELS.colors])) == 255).all()

    def test_black_in_the_class_list_is_a_class(self):
        labels = LabelSet(("road", "void"), ((1, 2, 3), (0, 0, 0)))
        assert (read(png_file(BLANK, INDEXED, 1, palette=[(0, 0, 0)]), labels=labels) == 1).all()

    def test_masks_of_a_set_mean_the_same(self):
        reader = MaskReader(Palette(LABELS))
        reader.ids("colours.png", png_file(IDS, INDEXED, 2, palette=list(LABELS.colors)))
        with pytest.raises(
            ImageError, match="colours.png colours of the class list; expected one kind of mask"
        ):
            reader.ids("ids.png", png_file(IDS, INDEXED, 2, palette=VOC))

    def test_an_index_of_no_class(self):
        with pytest.raises(ImageError, match="class id 3 .* is not in the list of 3 classes"):
            read(png_file(IDS + 1, INDEXED, 2, palette=VOC))

    def test_without_a_class_list(self):
        np.testing.assert_array_equal(read(png_file(IDS, INDEXED, 2, palette=VOC), labels=None), IDS)


class TestGrey:
    @pytest.mark.parametrize("depth", [2, 4, 8, 16])
    def test_values_are_ids(self, depth):
        np.testing.assert_array_equal(read(png_file(IDS, GREY, depth)), IDS)

    def test_one_bit(self):
        np.testing.assert_array_equal(read(png_file(IDS % 2, GREY, 1)), IDS % 2)

    @pytest.mark.parametrize("color_type", [RGB, RGBA])
    def test_as_colours(self, color_type):
        """Ids in all three channels, as some tools save them; the other masks decide about a black one."""
        channels = 3 if color_type == RGB else 4

        def as_colors(ids: np.ndarray) -> bytes:
            return png_file(np.dstack([ids] * 3 + [np.full_like(ids, 255)])[..., :channels], color_type)

        np.testing.assert_array_equal(read(as_colors(IDS)), IDS)
        assert (read(as_colors(BLANK), as_colors(IDS)) == 0).all()
        assert (read(as_colors(BLANK)) == 255).all(), "black is unlabelled in a mask of colours"

    def test_what_never_occurs_is_told(self):
        reader = MaskReader(Palette(LabelSet(("ground", "road"), ((1, 1, 1), (2, 2, 2)))))
        reader.ids("a", png_file(np.array([[0, 255, 255, 255]]), GREY))
        assert reader.summary(["a"]) == [
            "255 means unlabelled: 75.0 % of the pixels; classes that never occur: 1 (road)"
        ]


class TestTransparency:
    @pytest.mark.parametrize("color_type", [GREY_ALPHA, RGBA])
    @given(hidden=st.integers(0, 255), depth=st.sampled_from([8, 16]))
    @settings(max_examples=20)
    def test_clear_pixels_are_unlabelled_whatever_their_colour(self, color_type, hidden, depth):
        scale = 257 if depth == 16 else 1
        alpha = np.array([[255, 255, 0], [0, 255, 255]])[..., None] * scale
        if color_type == RGBA:
            values = np.array(LABELS.colors)[IDS] * scale
        else:
            values = IDS[..., None].astype(int)
        values = np.where(alpha == 0, hidden * scale, values)
        found = read(png_file(np.concatenate([values, alpha], axis=2), color_type, depth))
        np.testing.assert_array_equal(found, np.where(alpha[..., 0] == 0, 255, IDS))

    def test_a_transparent_palette_entry(self):
        palette = [*LABELS.colors, (9, 9, 9)]
        ids = np.array([[0, 3, 2]], np.uint8)
        found = read(png_file(ids, INDEXED, 2, palette=palette, transparency=b"\xff\xff\xff\0"))
        np.testing.assert_array_equal(found, [[0, 255, 2]])

    def test_half_transparent_pixels(self):
        pixels = np.dstack([np.array(LABELS.colors)[IDS], np.array([[255, 128, 0], [255, 255, 255]])])
        file = png_file(pixels, RGBA)
        with pytest.raises(
            ImageError, match=r"transparent in part \(row 0, column 1\).*--unknown unlabelled"
        ):
            read(file)
        np.testing.assert_array_equal(read(file, unknown="unlabelled"), [[0, 255, 255], [2, 1, 0]])


class TestSoftEdges:
    pixels = np.array(LABELS.colors)[IDS]
    pixels[1, 1] = (127, 63, 127)

    def test_are_refused(self):
        with pytest.raises(ImageError, match=r"colour 127,63,127 \(row 1, column 1\).*--unknown unlabelled"):
            read(png_file(self.pixels, RGB))

    def test_can_be_taken_as_unlabelled_and_are_counted(self):
        reader = MaskReader(Palette(LABELS), "unlabelled")
        found = reader.ids("a", png_file(self.pixels, RGB))
        np.testing.assert_array_equal(found, [[0, 1, 2], [2, 255, 0]])
        assert "1 pixels (16.7 %) have no class or are transparent in part: unlabelled" in reader.summary(
            ["a"]
        )


class TestEgoMask:
    robot = np.array([[0, 0], [1, 1]], bool)

    def write(self, path, file: bytes):
        path.write_bytes(file)
        return read_ego_mask(path)

    @pytest.mark.parametrize("color", [0, 90, 255])
    @pytest.mark.parametrize("hidden", [0, 255])
    def test_alpha_decides(self, tmp_path, color, hidden):
        values = np.where(self.robot, color, hidden)
        alpha = self.robot * 255
        for file in (
            png_file(np.dstack([values] * 3 + [alpha]), RGBA),
            png_file(np.dstack([values, alpha]), GREY_ALPHA),
            png_file(
                self.robot.astype(int), INDEXED, 1, palette=[[hidden] * 3, [color] * 3], transparency=b"\0"
            ),
        ):
            np.testing.assert_array_equal(self.write(tmp_path / "ego.png", file), self.robot)

    def test_an_opaque_alpha_decides_nothing(self, tmp_path):
        pixels = np.dstack([self.robot * 255] * 3 + [np.full((2, 2), 255)])
        np.testing.assert_array_equal(self.write(tmp_path / "ego.png", png_file(pixels, RGBA)), self.robot)

    def test_values_and_palettes(self, tmp_path):
        robot = self.robot.astype(int)
        for file in (
            png_file(robot, GREY, 1),
            png_file(robot * 3, GREY, 8),
            png_file(robot * 300, GREY, 16),
            png_file(np.dstack([robot * 0, robot * 0, robot]), RGB),
            png_file(robot, INDEXED, 8, palette=[(0, 0, 0), (0, 0, 1)]),
            cv2.imencode(".bmp", robot.astype(np.uint8) * 255)[1].tobytes(),
        ):
            np.testing.assert_array_equal(self.write(tmp_path / "ego.png", file), self.robot)

    @pytest.mark.parametrize("content", [b"", b"no image", png_file(np.zeros((2, 2)), GREY)[:-9]])
    def test_what_cannot_be_read(self, tmp_path, content):
        with pytest.raises(ImageError):
            self.write(tmp_path / "ego.png", content)
        with pytest.raises(ImageError, match="cannot be read"):
            read_ego_mask(tmp_path / "nothing.png")
