# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Class lists as text, and label images by colour or id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.label_set import LABEL_SETS, LabelSet
from vtseg_ros.labelling.palette import Palette, format_palette, open_palette, parse_palette

SIGNS = LabelSet(("road", "traffic-sign", "sky"), ((128, 64, 128), (0, 220, 220), (70, 130, 180)))


@pytest.mark.parametrize("name", LABEL_SETS)
def test_a_list_is_read_as_it_was_written(name, tmp_path):
    (tmp_path / "labelmap.txt").write_text(format_palette(LABEL_SETS[name]))
    assert open_palette(str(tmp_path / "labelmap.txt")) == Palette(LABEL_SETS[name]) == open_palette(name)


def test_names_with_colons():
    text = "vehicle:car:1,2,3::\nsign: 10 km/h :4,5,6:part:action\n"
    palette = parse_palette(text, "labelmap.txt")
    assert palette.labels == LabelSet(("vehicle:car", "sign: 10 km/h"), ((1, 2, 3), (4, 5, 6)))


@given(
    st.lists(
        st.from_regex(r"[a-zäé][a-z0-9:., /-]{0,12}[a-z]", fullmatch=True),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_names_are_read_as_they_were_written(names):
    labels = LabelSet.from_names(names)
    assert parse_palette(format_palette(labels), "labelmap.txt").labels == labels


def test_cvats_own_list():
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nsky : 70, 130, 180 ::\n"
    palette = parse_palette(text, "labelmap.txt")
    assert palette.labels == LabelSet(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
    np.testing.assert_array_equal(
        palette.ids_of(np.array([[[0, 0, 0], [70, 130, 180]]], np.uint8)), [[255, 1]]
    )
    with pytest.raises(ImageError, match="background line"):  # does id 1 mean road or sky?
        palette.checked(np.array([[1]], np.uint8))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road", "x.txt, line 1: expected name:red,green,blue::, got 'road'"),
        ("# c\n\nroad:1,2::", "line 3"),
        ("road:1,2,x::", "line 1"),
        (":1,2,3::", "line 1"),
        ("road:1,2,300::", "x.txt: class list: wrong colour of 'road'"),
        ("road:1,2,3::\nroad:4,5,6::", "x.txt: class list: repeated names; expected each once, got road"),
        ("# nothing\n", "x.txt: class list: wrong length; expected 1 to 255 names"),
    ],
)
def test_bad_lists(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_palette(text, "x.txt")


def test_no_such_list(tmp_path):
    with pytest.raises(ConfigError, match="nor one of street, camvid, cityscapes"):
        open_palette("streets")
    (tmp_path / "binary").write_bytes(b"\x80\xff\x00\x80")
    with pytest.raises(ConfigError, match="neither UTF-8 nor UTF-16: save it as UTF-8"):
        open_palette(str(tmp_path / "binary"))


@given(st.text(max_size=80))
def test_any_text_gives_a_list_or_a_config_error(text):
    try:
        parse_palette(text, "x")
    except ConfigError as err:
        assert "\n" not in str(err).split(", got")[0]


def test_ids_of_colours(rng):
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (6, 7))
    colors = SIGNS.palette()[ids]  # ids without a class are black
    np.testing.assert_array_equal(Palette(SIGNS).ids_of(colors), ids)
    colors[3, 4] = (1, 2, 3)
    with pytest.raises(ImageError, match=r"no class has the colour 1,2,3 \(row 3, column 4\)"):
        Palette(SIGNS).ids_of(colors)


def test_a_black_class_is_a_class():
    labels = LabelSet(("void", "road"), ((0, 0, 0), (9, 9, 9)))
    np.testing.assert_array_equal(Palette(labels).ids_of(np.zeros((1, 1, 3), np.uint8)), [[0]])


def test_colours_that_two_classes_share_are_refused():
    labels = LabelSet(("bus", "car", "van"), ((1, 1, 1), (1, 1, 1), (2, 2, 2)))
    with pytest.raises(ImageError, match="these classes have the same colour: bus, car"):
        Palette(labels).ids_of(np.ones((1, 1, 3), np.uint8))


def test_ids_outside_the_list():
    ids = np.array([[0, 2], [255, 3]], np.uint8)
    with pytest.raises(
        ImageError, match=r"class id 3 \(row 1, column 1\) is not in the list of 3 classes \(0..2"
    ):
        Palette(SIGNS).checked(ids)
    ids[1, 1] = 1
    np.testing.assert_array_equal(Palette(SIGNS).checked(ids), ids)


def test_a_list_in_another_order_keeps_its_colours_and_takes_the_bags_ids():
    mixed = Palette(LabelSet(("sky", "road"), ((5, 5, 5), (6, 6, 6)))).for_classes(SIGNS)
    assert mixed.labels.names == SIGNS.names
    np.testing.assert_array_equal(
        mixed.ids_of(np.array([[[6, 6, 6], [5, 5, 5], [0, 220, 220]]], np.uint8)), [[0, 2, 1]]
    )
    with pytest.raises(ImageError, match="another order"):
        mixed.checked(np.zeros((1, 1), np.uint8))
    assert not Palette(LabelSet(("road",), ((6, 6, 6),))).for_classes(SIGNS).ids_unclear
    with pytest.raises(ConfigError, match="does not have: tram. It has: road, traffic-sign, sky"):
        Palette(LabelSet(("road", "tram"), ((1, 1, 1), (2, 2, 2)))).for_classes(SIGNS)
