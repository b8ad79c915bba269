# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg import`, each on a tiny tree of the data set's own shape."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from bags.files import INDEXED, jpeg_file, png_file, smooth_picture, with_orientation
from PIL import Image, ImageOps

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.cli import main
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex
from vtseg_ros.importers import camvid, vkitti2
from vtseg_ros.label_set import CAMVID, CITYSCAPES, STREET
from vtseg_ros.street.scenes import VARIATIONS

SIZE = (24, 16)
IMAGE, LABEL = "/camera/image/compressed", "/camera/label/compressed"


def picture(shade: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    image = np.full((SIZE[1], SIZE[0], 3), shade, np.uint8)
    image[..., 0] = 255 - shade
    return image


def save(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.asarray(image, np.uint8)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def run(*arguments) -> int:
    return main(["import", *map(str, arguments)])


def content(path) -> tuple[dict, dict]:
    """Messages by (frame_id, stamp in ns): images, labels."""
    with BagReader(path) as bag:
        read = lambda topic, decode: {  # noqa: E731
            (m.header.frame_id, stamp_of(m)): decode(m) for _, _, m in bag.messages([topic])
        }
        return read(IMAGE, decode_any), read(LABEL, decode_label) if LABEL in bag.topics else {}


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def cityscapes(tmp_path):
    """Two snippets of seven frames, the fifth labelled; the file names' own numbers."""
    root = tmp_path / "cityscapes"
    for city, number in (("aachen", 3), ("bochum", 0)):
        for frame in range(15, 22):
            save(
                root / f"leftImg8bit_sequence/train/{city}/{city}_{number:06d}_{frame:06d}_leftImg8bit.png",
                picture(frame),
            )
        ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 35
        ids[ids == 34] = 255  # the licence plate's -1
        save(root / f"gtFine/train/{city}/{city}_{number:06d}_000019_gtFine_labelIds.png", ids)
        save(root / f"gtFine/train/{city}/{city}_{number:06d}_000019_gtFine_color.png", picture(1))
    return root


class TestCityscapes:
    def test_labelled_frames_with_those_before(self, cityscapes, tmp_path):
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag", "--json", tmp_path / "told.json") == 0
        assert json.loads((tmp_path / "told.json").read_text())["labelled"] == 2
        images, labels = content(tmp_path / "bag")
        assert len(images) == 8 and len(labels) == 2
        assert {frame_id for frame_id, _ in images} == {"aachen_000003", "bochum_000000"}
        shades = [image[0, 0, 1] for image in images.values()]
        assert shades == [16, 17, 18, 19] * 2
        stamps = sorted(stamp for frame_id, stamp in images if frame_id == "aachen_000003")
        assert np.diff(stamps) == pytest.approx(1e9 / 17, abs=1)
        # The official table, written out again: label id by train id.
        official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
        raw = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 35
        for ids in labels.values():
            for value in range(35):
                expected = official.index(value) if value in official else 255
                assert (ids[raw == value] == expected).all(), value
        with BagReader(tmp_path / "bag") as bag:
            assert read_label_set(bag) == CITYSCAPES
        assert [len(w) for w in FrameIndex([BagSource(tmp_path / "bag")]).windows(4)] == [4, 4]

    def test_images_are_the_files_byte_by_byte(self, cityscapes, tmp_path):
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag", "--before", 0) == 0
        with BagReader(tmp_path / "bag") as bag:
            data = next(m.data.tobytes() for _, _, m in bag.messages([IMAGE]))
        assert data == next(cityscapes.rglob("aachen*19_leftImg8bit.png")).read_bytes()

    def test_resized_and_as_jpeg(self, cityscapes, tmp_path):
        assert (
            run("cityscapes", cityscapes, "--out", tmp_path / "b", "--size", "12x8", "--jpeg", "--after", 1)
            == 0
        )
        images, labels = content(tmp_path / "b")
        assert len(images) == 10 and {i.shape for i in images.values()} == {(8, 12, 3)}
        assert {ids.shape for ids in labels.values()} == {(8, 12)}
        with BagReader(tmp_path / "b") as bag:
            assert "jpeg" in next(m.format for _, _, m in bag.messages([IMAGE]))

    def test_mistakes_name_the_file(self, cityscapes, tmp_path, capsys):
        assert run("cityscapes", cityscapes, "--split", "val", "--out", tmp_path / "bag") == 2
        assert "val is not a folder; expected leftImg8bit_sequence/SPLIT/CITY" in one_line(capsys)
        label = next(cityscapes.rglob("bochum*labelIds.png"))
        save(label, np.zeros((5, 5)))
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag") == 2
        told = one_line(capsys)
        assert label.name in told and "5x5 px, its image bochum_000000_000019_leftImg8bit.png 24x16" in told
        save(label, np.zeros((16, 24, 3)))
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag") == 2
        assert label.name in (told := one_line(capsys)) and "one channel of label ids" in told
        image = next(cityscapes.rglob("bochum*19_leftImg8bit.png"))
        image.write_bytes(image.read_bytes()[:40])
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag") == 2
        assert image.name in (told := one_line(capsys)) and "truncated" in told
        image.unlink()
        assert run("cityscapes", cityscapes, "--out", tmp_path / "bag") == 2
        assert label.name in (told := one_line(capsys)) and "have no image" in told
        assert not (tmp_path / "bag").exists()


COLORS = {
    "Terrain": (210, 0, 200),
    "Sky": (90, 200, 255),
    "Tree": (0, 199, 0),
    "Vegetation": (90, 240, 0),
    "Building": (140, 140, 140),
    "Road": (100, 60, 100),
    "GuardRail": (250, 100, 255),
    "TrafficSign": (255, 255, 0),
    "TrafficLight": (200, 200, 0),
    "Pole": (255, 130, 0),
    "Misc": (80, 80, 80),
    "Truck": (160, 60, 60),
    "Car": (255, 127, 80),
    "Van": (0, 139, 139),
    "Undefined": (0, 0, 0),
}


@pytest.fixture(scope="module")
def vkitti(tmp_path_factory):
    """Five scenes of 12 frames in eight variations, two of which are not the paper's."""
    root = tmp_path_factory.mktemp("vkitti")
    colors = np.array(list(COLORS.values()))
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 15
    for place, scene in enumerate(("Scene01", "Scene02", "Scene06", "Scene18", "Scene20")):
        for variation in (*VARIATIONS, "rain", "30-deg-left"):
            folder = root / scene / variation
            for frame in range(12):
                save(folder / f"frames/rgb/Camera_0/rgb_{frame:05d}.jpg", picture(10 * place + frame))
                save(folder / f"frames/classSegmentation/Camera_0/classgt_{frame:05d}.png", colors[ids])
            lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in COLORS.items()]
            (folder / "colors.txt").write_text("\n".join(["Category r g b", *lines]))
    return root


class TestVirtualKitti:
    def test_six_variations_and_the_colour_table(self, vkitti, tmp_path):
        assert run("vkitti2", vkitti, "--split", "validation", "--out", tmp_path / "bag") == 0
        images, labels = content(tmp_path / "bag")
        assert len(images) == len(labels) == 6 * 12
        assert {frame_id for frame_id, _ in images} == {f"Scene01_{variation}" for variation in VARIATIONS}
        expected = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 15
        expected[expected == 14] = 255  # undefined
        for ids in labels.values():
            np.testing.assert_array_equal(ids, expected)
        with BagReader(tmp_path / "bag") as bag:
            assert read_label_set(bag) == STREET
        index = FrameIndex([BagSource(tmp_path / "bag")])
        assert [stop - start for start, stop in index.sequences] == [
            12
        ] * 6  # no window over a variation's end

    def test_scenes_are_in_one_split_each(self, vkitti):
        seen = {
            split: {frame.frame_id.split("_")[0] for frame in vkitti2.find_frames(vkitti, split)}
            for split in vkitti2.SPLITS
        }
        assert sorted(sum(map(sorted, seen.values()), [])) == [
            "Scene01",
            "Scene02",
            "Scene06",
            "Scene18",
            "Scene20",
        ]

    def test_shares_of_the_real_scenes(self):
        """Frames of the five scenes as published: 447, 233, 270, 339, 837."""
        frames = {"Scene01": 447, "Scene02": 233, "Scene06": 270, "Scene18": 339, "Scene20": 837}
        shares = [
            sum(frames[s] for s in vkitti2.SCENES[split]) / sum(frames.values()) for split in vkitti2.SPLITS
        ]
        assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.025)

    def test_cuts_in_time_are_the_same_for_all_variations_and_keep_apart(self, vkitti, monkeypatch):
        monkeypatch.setattr(vkitti2, "GUARD", 1)
        numbers = {}
        for split in vkitti2.SPLITS:
            by_sequence: dict = {}
            for frame in vkitti2.find_frames(vkitti, split, by="time"):
                by_sequence.setdefault(frame.frame_id, set()).add(int(frame.image.stem[-5:]))
            assert len(by_sequence) == 5 * 6
            assert len({frozenset(s) for s in by_sequence.values()}) == 1  # variations show the same street
            numbers[split] = sorted(next(iter(by_sequence.values())))
        # 12 frames cut at 8 and 11, a frame left out at each cut.
        assert numbers == {"train": [0, 1, 2, 3, 4, 5, 6], "validation": [8, 9], "test": [11]}

    def test_mistakes_name_the_file(self, vkitti, tmp_path, capsys):
        assert run("vkitti2", tmp_path, "--out", tmp_path / "bag") == 2
        assert "lacks Scene06, Scene18, Scene20" in one_line(capsys)
        assert run("vkitti2", vkitti, "--camera", 1, "--out", tmp_path / "bag") == 2
        assert "Camera_1 is not a folder; expected frames/rgb/Camera_N" in one_line(capsys)
        label = vkitti / "Scene02/fog/frames/classSegmentation/Camera_0/classgt_00003.png"
        whole = label.read_bytes()
        save(label, np.full((16, 24, 3), 5))
        assert run("vkitti2", vkitti, "--split", "test", "--out", tmp_path / "bag") == 2
        assert (
            "fog/frames/classSegmentation/Camera_0/classgt_00003.png: no class has the colour 5,5,5"
            in one_line(capsys)
        )
        label.unlink()
        assert run("vkitti2", vkitti, "--split", "test", "--out", tmp_path / "bag") == 2
        assert "rgb_00003.jpg has no label" in one_line(capsys)
        label.write_bytes(whole)
        table = vkitti / "Scene02/clone/colors.txt"
        whole = table.read_bytes()
        table.write_text("Category r g b\nTerrain 210 0\n")
        assert run("vkitti2", vkitti, "--split", "test", "--out", tmp_path / "bag") == 2
        assert "colors.txt, line 2: expected NAME R G B" in one_line(capsys)
        table.write_bytes(whole)
        assert not (tmp_path / "bag").exists()


@pytest.fixture
def camvid_tree(tmp_path):
    root = tmp_path / "camvid"
    names = ("0001TP_006690", "0001TP_006720", "0016E5_00390", "Seq05VD_f00000")
    colors = [color for group in camvid.GROUPS.values() for color in group.values()] + [(0, 0, 0)]
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % len(colors)
    for shade, name in enumerate(names):
        save(root / "701_StillsRaw_full" / f"{name}.png", picture(shade))
        save(root / "LabeledApproved_full" / f"{name}_L.png", np.array(colors)[ids])
    return root


class TestCamVid:
    def test_32_painted_classes_become_11(self, camvid_tree, tmp_path):
        assert run("camvid", camvid_tree, "--out", tmp_path / "bag") == 0
        images, labels = content(tmp_path / "bag")
        assert [i for i, _ in images] == ["camvid_0001TP"] * 2 + ["camvid_0016E5", "camvid_Seq05VD"]
        stamps = [stamp for _, stamp in images]
        assert stamps[1] - stamps[0] == 1_000_000_000 and min(np.diff(stamps[1:])) > 500e9
        assert len(camvid.GROUPS) == 11 and sum(map(len, camvid.GROUPS.values())) == 31  # and void
        own = {name: group[next(iter(group))] for name, group in camvid.GROUPS.items()}
        assert tuple(own[name] for name in CAMVID.names) == CAMVID.colors
        count = [CAMVID.names.index(name) for name, group in camvid.GROUPS.items() for _ in group] + [255]
        expected = np.array(count)[np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 32]
        for ids in labels.values():
            np.testing.assert_array_equal(ids, expected)

    def test_labels_of_ids_with_11_for_void(self, tmp_path):
        root = tmp_path / "segnet"
        ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 12
        save(root / "train/0001TP_006690.png", picture(1))
        save(root / "trainannot/0001TP_006690.png", ids)
        assert run("camvid", root, "--out", tmp_path / "bag") == 0
        found = next(iter(content(tmp_path / "bag")[1].values()))
        np.testing.assert_array_equal(found, np.where(ids == 11, 255, ids))

    def test_a_list_chooses_a_split(self, camvid_tree, tmp_path, capsys):
        (tmp_path / "val.txt").write_text("/SegNet/val/0016E5_00390.png /SegNet/valannot/0016E5_00390.png\n")
        assert run("camvid", camvid_tree, "--list", tmp_path / "val.txt", "--out", tmp_path / "bag") == 0
        assert [i for i, _ in content(tmp_path / "bag")[0]] == ["camvid_0016E5"]
        (tmp_path / "val.txt").write_text("0016E5_99999.png\n")
        assert run("camvid", camvid_tree, "--list", tmp_path / "val.txt", "--out", tmp_path / "b2") == 2
        assert "lists 0016E5_99999, of which there is no image" in one_line(capsys)

    def test_mistakes_name_the_file(self, camvid_tree, tmp_path, capsys):
        label = camvid_tree / "LabeledApproved_full/0016E5_00390_L.png"
        save(label, np.full((16, 24, 3), 9))
        assert run("camvid", camvid_tree, "--out", tmp_path / "bag") == 2
        assert "0016E5_00390_L.png: no class has the colour 9,9,9" in one_line(capsys)
        save(label, np.full((16, 24), 77))
        assert run("camvid", camvid_tree, "--out", tmp_path / "bag") == 2
        assert "0016E5_00390_L.png: class id out of range; expected 0..11 or 255, got 77" in one_line(capsys)
        save(camvid_tree / "701_StillsRaw_full/holiday.png", picture(1))
        assert run("camvid", camvid_tree, "--out", tmp_path / "bag") == 2
        assert "holiday.png: expected SEQUENCE_FRAME.png" in one_line(capsys)
        assert not (tmp_path / "bag").exists()


class TestImages:
    def test_in_the_order_of_their_numbers(self, tmp_path):
        for number in (1, 2, 10):
            save(tmp_path / f"in/frame{number}.{'jpg' if number == 2 else 'png'}", picture(number))
        (tmp_path / "in/notes.txt").write_text("x")
        assert (
            run("images", tmp_path / "in", "--rate", 4, "--frame-id", "mast", "--out", tmp_path / "bag") == 0
        )
        images, labels = content(tmp_path / "bag")
        assert [image[0, 0, 1] for image in images.values()] == pytest.approx(
            [1, 2, 10], abs=2
        ) and labels == {}
        assert [i for i, _ in images] == ["mast"] * 3
        assert np.diff([stamp for _, stamp in images]).tolist() == [250_000_000] * 2

    def test_with_masks_of_ids_and_colours(self, tmp_path):
        ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 11
        for number in range(3):
            save(tmp_path / f"in/{number}.png", picture(number))
        save(tmp_path / "masks/0.png", ids)
        save(tmp_path / "masks/2.png", CAMVID.palette()[ids])
        assert (
            run(
                "images",
                tmp_path / "in",
                "--masks",
                tmp_path / "masks",
                "--labels",
                "camvid",
                "--out",
                tmp_path / "bag",
                "--storage",
                "sqlite3",
            )
            == 0
        )
        _, labels = content(tmp_path / "bag")
        assert len(labels) == 2
        for found in labels.values():
            np.testing.assert_array_equal(found, ids)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photos_are_turned_as_viewers_show_them(self, tmp_path, orientation):
        """The mask is painted on what a viewer shows; Pillow is the viewer."""
        stored = smooth_picture(1, SIZE)
        (tmp_path / "in").mkdir()
        (tmp_path / "in/0.jpg").write_bytes(with_orientation(jpeg_file(stored), orientation))
        with Image.open(tmp_path / "in/0.jpg") as photo:
            shown = np.asarray(ImageOps.exif_transpose(photo))
        ids = shown[..., 0] // 26
        save(tmp_path / "masks/0.png", ids)
        assert (
            run(
                "images",
                tmp_path / "in",
                "--masks",
                tmp_path / "masks",
                "--labels",
                "camvid",
                "--out",
                tmp_path / "bag",
            )
            == 0
        )
        images, labels = content(tmp_path / "bag")
        found = next(iter(images.values()))
        assert found.shape == shown.shape and np.abs(found.astype(int) - shown).max() <= 2
        np.testing.assert_array_equal(next(iter(labels.values())), ids)

    def test_a_mask_of_the_photo_as_it_is_stored_names_exif(self, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/0.jpg").write_bytes(with_orientation(jpeg_file(picture(1)), 6))
        save(tmp_path / "masks/0.png", np.zeros(SIZE[::-1]))
        assert (
            run(
                "images",
                tmp_path / "in",
                "--masks",
                tmp_path / "masks",
                "--labels",
                "camvid",
                "--out",
                tmp_path / "bag",
            )
            == 2
        )
        assert "24x16 px, its image 0.jpg 16x24, rotated by its EXIF orientation" in one_line(capsys)

    def test_turned_and_resized(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/0.jpg").write_bytes(with_orientation(jpeg_file(picture(1)), 8))
        assert run("images", tmp_path / "in", "--size", "8x12", "--jpeg", "--out", tmp_path / "bag") == 0
        assert next(iter(content(tmp_path / "bag")[0].values())).shape == (12, 8, 3)

    def test_what_lies_behind_an_image_does_not_go_into_the_bag(self, tmp_path):
        (tmp_path / "in").mkdir()
        whole = jpeg_file(smooth_picture(1))
        (tmp_path / "in/0.jpg").write_bytes(whole + bytes(range(250)) * 8)
        assert run("images", tmp_path / "in", "--out", tmp_path / "bag") == 0
        with BagReader(tmp_path / "bag") as bag:
            assert next(m.data.tobytes() for _, _, m in bag.messages([IMAGE])) == whole

    def test_masks_are_read_alike(self, tmp_path, capsys):
        """A mask that contains only index 0 is read like the other masks of its folder."""
        for number in range(2):
            save(tmp_path / f"in/{number}.png", picture(number))
        palette = [(0, 0, 0), (1, 2, 3), (4, 5, 6)]
        (tmp_path / "masks").mkdir()
        blank = np.zeros(SIZE[::-1], int)
        (tmp_path / "masks/0.png").write_bytes(png_file(blank, INDEXED, 1, palette=palette[:1]))
        (tmp_path / "masks/1.png").write_bytes(png_file(blank + 2, INDEXED, 2, palette=palette))
        assert (
            run(
                "images",
                tmp_path / "in",
                "--masks",
                tmp_path / "masks",
                "--labels",
                "camvid",
                "--out",
                tmp_path / "bag",
            )
            == 0
        )
        assert [int(ids.max()) for ids in content(tmp_path / "bag")[1].values()] == [0, 2]
        assert "the indices of 2 indexed masks are taken as class ids" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--rate", "0"], "rate: out of range; expected 0.001 to 1e+06 Hz"),
            (["--masks", "masks"], "--masks: no class list"),
            (
                ["--masks", "masks", "--labels", "camvid"],
                "masks is not a folder; expected a folder of labels",
            ),
            (["--masks", "in", "--labels", "camvid"], "0.png: no class has the colour 255,0,0"),
        ],
    )
    def test_mistakes(self, tmp_path, monkeypatch, capsys, options, words):
        monkeypatch.chdir(tmp_path)
        save(tmp_path / "in/0.png", picture(0))
        assert run("images", "in", "--out", "bag", *options) == 2
        assert words in one_line(capsys) and not (tmp_path / "bag").exists()

    def test_a_pipe_among_the_images(self, tmp_path, capsys):
        """Nobody writes into it: reading it would never end."""
        (tmp_path / "images").mkdir()
        os.mkfifo(tmp_path / "images" / "0.png")
        assert main(["import", "images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 2
        assert "0.png: it is a pipe" in capsys.readouterr().err and not (tmp_path / "out").exists()

    def test_no_images_and_nothing_overwritten(self, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        assert run("images", tmp_path / "in", "--out", tmp_path / "bag") == 2
        assert "in: no image; expected files of .png, .jpg, .jpeg, got none" in one_line(capsys)
        assert run("images", tmp_path / "in", "--out", tmp_path / "in") == 2
        assert "nothing is overwritten" in one_line(capsys)
