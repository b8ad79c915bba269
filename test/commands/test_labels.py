# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg labels`: frames out, labels of three tools back in, and everything that does not fit refused file by file."""

from __future__ import annotations

import json
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from bags.bagtools import CLASSES, START_NS, ids_of, picture, storage_file, write_bag
from bags.files import GREY, INDEXED, RGB, png_file
from rosbags.rosbag2 import StoragePlugin, Writer

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import LATCHED, BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, IMAGE, NS, image_message, stamp_of, typestore
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.cli import main
from vtseg_ros.labelling.palette import format_palette

TENTHS = [i / 10 for i in range(20)]
TOPIC = "/camera/label/compressed"


@pytest.fixture
def bag(tmp_path):
    """20 frames without labels, and a class list."""
    return write_bag(tmp_path / "drive", TENTHS, label_stride=0)


def name_of(number: int) -> str:
    return f"frame_{START_NS + number * NS // 10:019d}.png"


def save(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def labels_in(path, topic: str = TOPIC) -> dict[int, np.ndarray]:
    """Class ids by frame number."""
    with BagReader(path) as found:
        return {
            round((stamp_of(m) - START_NS) * 10 / NS): decode_label(m) for _, _, m in found.messages([topic])
        }


def merge(bag, masks, out, *options) -> int:
    return main(["labels", "merge", str(bag), str(masks), "--out", str(out), *map(str, options)])


class TestExtract:
    def extract(self, bag, out, *options) -> int:
        return main(["labels", "extract", str(bag), "--out", str(out), *map(str, options)])

    def test_every_nth_frame_with_its_stamp_in_its_name(self, bag, tmp_path):
        assert self.extract(bag, tmp_path / "out", "--every", 6, "--json", tmp_path / "told.json") == 0
        names = [name_of(number) for number in (0, 6, 12, 18)]
        assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [*names, "labelmap.txt"]
        for name, number in zip(names, (0, 6, 12, 18)):
            np.testing.assert_array_equal(
                cv2.imread(str(tmp_path / "out" / name))[..., ::-1], picture(number)
            )
        assert (tmp_path / "out" / "labelmap.txt").read_text() == format_palette(CLASSES)
        assert json.loads((tmp_path / "told.json").read_text()) == {
            "frames": names,
            "left_out": [],
            "messages_missing": 0,
        }

    def test_a_number_of_frames(self, bag, tmp_path):
        assert self.extract(bag, tmp_path / "out", "--count", 5) == 0
        assert sorted(f.name for f in (tmp_path / "out").glob("*.png")) == [
            name_of(n) for n in (0, 5, 10, 14, 19)
        ]
        assert self.extract(bag, tmp_path / "all", "--count", 500) == 0
        assert len(list((tmp_path / "all").glob("*.png"))) == 20

    def test_corrupt_frames_and_frames_without_a_stamp_are_said(self, tmp_path, capsys):
        with BagWriter(tmp_path / "bag") as writer:
            for number, stamp in enumerate((START_NS, 0, START_NS + 5, START_NS, START_NS + 7)):
                message = image_message(picture(number), "8UC5" if number == 4 else "rgb8", stamp, "cam")
                writer.write("/image", IMAGE, message, START_NS + number)
        assert self.extract(tmp_path / "bag", tmp_path / "out", "--every", 1) == 0
        out = capsys.readouterr().out
        assert "2 frames" in out and out.count("left out") == 3
        assert "stamp is zero" in out and "same stamp" in out and "unknown encoding '8UC5'" in out

    @pytest.mark.parametrize(("stamp", "words"), [(0, "stamp is zero"), (-3 * 10**9, "stamp is negative")])
    def test_frames_that_cannot_be_named_leave_no_folder(self, tmp_path, capsys, stamp, words):
        """The name of a frame is its stamp, in digits."""
        with BagWriter(tmp_path / "bag") as writer:
            writer.write("/image", IMAGE, image_message(picture(0), "rgb8", stamp, "cam"), START_NS)
        assert self.extract(tmp_path / "bag", tmp_path / "out") == 2
        assert words in capsys.readouterr().out and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--every", "0"], "--every: out of range; expected at least 1"),
            (["--count", "-1"], "--count: out of range; expected at least 1"),
            (["--image-topic", "/nope"], "no topic /nope"),
            (
                ["--image-topic", "/camera/label_map"],
                "is not an image topic; expected sensor_msgs/msg/Image, sensor_msgs/msg/CompressedImage, ",
            ),
        ],
    )
    def test_mistakes(self, bag, tmp_path, capsys, options, words):
        assert self.extract(bag, tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "out").exists()

    def test_nothing_is_overwritten(self, bag, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.png").write_text("x")
        assert self.extract(bag, tmp_path / "out") == 2
        assert "choose another --out" in capsys.readouterr().err
        assert (tmp_path / "out" / "mine.png").read_text() == "x"

    def test_a_full_disk(self, bag, tmp_path, monkeypatch, capsys):
        from vtseg_ros.commands import labels

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(labels, "write_frame", full)
        assert self.extract(bag, tmp_path / "out") == 2
        assert "cannot be written" in (err := capsys.readouterr().err) and "No space left on device" in err


class TestMerge:
    @pytest.mark.parametrize("topic", ["", "labels", "/no space", "/a//b", "/a/", "/1a", "/ä"])
    def test_topics_that_ros_cannot_publish(self, bag, tmp_path, capsys, topic):
        save(tmp_path / "masks" / name_of(0), ids_of(0))
        assert merge(bag, tmp_path / "masks", tmp_path / "out", f"--topic={topic}") == 2
        assert "--topic: not a topic name; expected one such as" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_ids(self, bag, tmp_path):
        for number in (3, 0, 12):
            save(tmp_path / "masks" / name_of(number), ids_of(number))
        assert merge(bag, tmp_path / "masks", tmp_path / "out") == 0
        found = labels_in(tmp_path / "out")
        assert list(found) == [0, 3, 12]
        for number, ids in found.items():
            np.testing.assert_array_equal(ids, ids_of(number))
        with BagReader(tmp_path / "out") as merged, BagReader(bag) as before:
            assert read_label_set(merged) == CLASSES
            for topic in before.topics:
                copied = [(t, d) for _, _, t, d in merged.raw([topic])]
                assert copied == [(t, d) for _, _, t, d in before.raw([topic])]
            label = next(m for _, _, m in merged.messages([TOPIC]))
            assert label.header.frame_id == "cam" and "png" in label.format
            assert merged.topics[TOPIC].msgtype == COMPRESSED_IMAGE
            assert {**merged.qos, TOPIC: None} == {**before.qos, TOPIC: None}
            assert merged.qos["/camera/label_map"] == [LATCHED]

    def test_times_are_the_images_even_when_stamps_are_not(self, tmp_path):
        with BagWriter(tmp_path / "bag") as writer:
            for number in range(3):
                message = image_message(picture(number), "rgb8", START_NS + number, "cam")
                writer.write("/image", IMAGE, message, START_NS + 1000 - 100 * number)
        save(tmp_path / "masks" / f"frame_{START_NS + 1:019d}.png", ids_of(1))
        assert merge(tmp_path / "bag", tmp_path / "masks", tmp_path / "out", "--storage", "sqlite3") == 0
        with BagReader(tmp_path / "out") as merged:
            assert [(t, time - START_NS) for t, _, time, _ in merged.raw()] == [
                ("/image", 800),
                ("/image", 900),
                (TOPIC, 900),
                ("/image", 1000),
            ]

    def test_colours_through_a_palette_file_and_changed_names(self, bag, tmp_path):
        (tmp_path / "list.txt").write_text(format_palette(CLASSES))
        save(tmp_path / "masks" / f"0a1b2c3d-{name_of(7)[:-4]}_label.PNG.png", CLASSES.palette()[ids_of(7)])
        assert merge(bag, tmp_path / "masks", tmp_path / "out", "--labels", tmp_path / "list.txt") == 0
        np.testing.assert_array_equal(labels_in(tmp_path / "out")[7], ids_of(7))

    def test_a_bag_without_a_class_list_gets_the_one_that_was_named(self, tmp_path):
        bag = write_bag(tmp_path / "plain", TENTHS, label_stride=0, label_map=False)
        save(tmp_path / "masks" / name_of(1), np.full((32, 64), 10, np.uint8))
        assert merge(bag, tmp_path / "masks", tmp_path / "named", "--labels", "camvid") == 0
        with BagReader(tmp_path / "named") as merged:
            assert read_label_set(merged).names[10] == "bicyclist"
        assert merge(bag, tmp_path / "masks", tmp_path / "nameless") == 0
        with BagReader(tmp_path / "nameless") as merged:
            assert read_label_set(merged) is None
        assert labels_in(tmp_path / "nameless")[1].max() == 10

    def test_more_labels_join_those_that_are_there(self, bag, tmp_path, capsys):
        save(tmp_path / "one" / name_of(1), ids_of(1))
        save(tmp_path / "two" / name_of(2), ids_of(2))
        assert merge(bag, tmp_path / "one", tmp_path / "first") == 0
        assert merge(tmp_path / "first", tmp_path / "two", tmp_path / "second") == 0
        assert list(labels_in(tmp_path / "second")) == [1, 2]
        assert merge(tmp_path / "second", tmp_path / "one", tmp_path / "third") == 2
        assert "has a label with the stamp" in capsys.readouterr().err

    def test_types_that_only_the_bag_knows_are_copied(self, tmp_path):
        with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            odd = writer.add_connection(
                "/odd", "mine_msgs/msg/Odd", msgdef="uint8 value\n", rihs01="RIHS01_00"
            )
            image = writer.add_connection("/image", IMAGE, typestore=typestore())
            message = image_message(picture(0), "rgb8", START_NS, "cam")
            writer.write(image, START_NS, typestore().serialize_cdr(message, IMAGE))
            writer.write(odd, START_NS + 1, b"\x00\x01\x00\x00\x07")
        save(tmp_path / "masks" / name_of(0), ids_of(0))
        assert merge(tmp_path / "bag", tmp_path / "masks", tmp_path / "out") == 0
        with BagReader(tmp_path / "out") as merged:
            assert [d for _, _, _, d in merged.raw(["/odd"])] == [b"\x00\x01\x00\x00\x07"]
            assert merged.definitions["mine_msgs/msg/Odd"][0] == "uint8 value\n"

    def test_what_does_not_fit_is_refused_file_by_file_and_nothing_is_written(self, bag, tmp_path, capsys):
        masks = tmp_path / "masks"
        save(masks / name_of(0), ids_of(0))
        save(masks / name_of(1), np.zeros((32, 60), np.uint8))
        save(masks / name_of(2), np.full((32, 64), 20, np.uint8))
        save(masks / name_of(3), np.full((32, 64, 3), (7, 8, 7), np.uint8))
        save(masks / name_of(400), ids_of(0))
        save(masks / "frame_12.png", ids_of(0))
        save(masks / f"again_{name_of(0)}", ids_of(0))
        save(masks / name_of(5), np.full((32, 64), 256, np.uint16))
        (masks / name_of(6)).write_bytes(b"no picture")
        cut = (masks / name_of(0)).read_bytes()
        (masks / name_of(7)).write_bytes(cut[: len(cut) // 2])
        assert merge(bag, masks, tmp_path / "out") == 2
        err = capsys.readouterr().err
        told = dict(
            line.split("refused ", 1)[1].split(": ", 1) for line in err.splitlines() if "refused " in line
        )
        for name, words in {
            name_of(1): "60x32 px, its image 64x32",
            name_of(2): "class id 20 (row 0, column 0) is not in the list of 20 classes",
            name_of(3): "no class has the colour 7,8,7",
            name_of(400): "the bag has no image with the stamp",
            "frame_12.png": "no stamp of 19 digits",
            name_of(5): "class id out of range; expected 0..255, got 256",
            name_of(6): "not a png",
            name_of(7): "truncated",
        }.items():
            assert words in told[name], told
        twins = [name for name in told if name.endswith(name_of(0))]
        assert len(twins) == 1 and "has the stamp of" in told[twins[0]]
        assert "9 of 10 files" in err.splitlines()[-1] and "nothing was written" in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        assert merge(bag, masks, tmp_path / "out", "--skip-refused") == 0
        assert list(labels_in(tmp_path / "out")) == [0]

    def test_files_named_to_lead_outside_are_only_read(self, bag, tmp_path, capsys):
        """A zip entry `../../x`: its label is merged by the stamp in its name, and no such file is made."""
        payload = cv2.imencode(".png", ids_of(2))[1].tobytes()
        with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
            archive.writestr(f"../../{name_of(2)}", payload)
        before = sorted(f for f in tmp_path.parent.rglob("*") if tmp_path not in f.parents)
        assert merge(bag, tmp_path / "export.zip", tmp_path / "out") == 0
        assert list(labels_in(tmp_path / "out")) == [2]
        assert (
            not (tmp_path.parent / name_of(2)).exists() and not (tmp_path.parent.parent / name_of(2)).exists()
        )
        assert sorted(f for f in tmp_path.parent.rglob("*") if tmp_path not in f.parents) == before

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda masks: None, "no labels at"),
            (lambda masks: masks.mkdir(), "contains no .png file"),
            (lambda masks: masks.write_text("x"), "neither a folder nor a zip archive"),
            (lambda masks: save(masks / "a.png", ids_of(0)), "1 of 1 files"),
        ],
    )
    def test_mistakes(self, bag, tmp_path, capsys, make, words):
        make(tmp_path / "masks")
        assert merge(bag, tmp_path / "masks", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert words in err.splitlines()[-1] and not (tmp_path / "out").exists()

    def test_nothing_is_overwritten(self, bag, tmp_path, capsys):
        save(tmp_path / "masks" / name_of(0), ids_of(0))
        before = storage_file(bag).read_bytes()
        assert merge(bag, tmp_path / "masks", bag) == 2
        assert "nothing is overwritten" in capsys.readouterr().err
        assert storage_file(bag).read_bytes() == before

    def test_a_class_list_that_is_not_the_bags(self, bag, tmp_path, capsys):
        save(tmp_path / "masks" / name_of(0), ids_of(0))
        assert merge(bag, tmp_path / "masks", tmp_path / "out", "--labels", "street") == 2
        assert "the bag's class list does not have: terrain" in capsys.readouterr().err


class TestMasksOfTheField:
    """Masks as tools write them, through the whole command."""

    def put(self, folder, number: int, file: bytes) -> None:
        folder.mkdir(exist_ok=True)
        (folder / name_of(number)).write_bytes(file)

    def test_one_bit_and_indexed_files(self, bag, tmp_path, capsys):
        ids = ids_of(1) % 2
        self.put(tmp_path / "masks", 1, png_file(ids, GREY, 1))
        palette = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
        self.put(tmp_path / "masks", 3, png_file(np.full((32, 64), 3), INDEXED, 8, palette=palette))
        assert merge(bag, tmp_path / "masks", tmp_path / "out", "--json", tmp_path / "told.json") == 0
        found = labels_in(tmp_path / "out")
        np.testing.assert_array_equal(found[1], ids)
        assert (found[3] == 3).all()
        out = capsys.readouterr().out
        assert "the indices of 1 indexed masks are taken as class ids" in out
        assert "classes that never occur: 0 (class0), 2 (class2), 4 (class4)" in out
        assert len(json.loads((tmp_path / "told.json").read_text())["notes"]) == 2

    def test_0_and_255_are_told(self, tmp_path, capsys):
        bag = write_bag(tmp_path / "plain", TENTHS, label_stride=0, label_map=False)
        (tmp_path / "two.txt").write_text("ground:9,9,9::\nroad:8,8,8::\n")
        self.put(tmp_path / "masks", 0, png_file(np.repeat([[0, 255]], 32, 0).repeat(32, 1), GREY))
        assert merge(bag, tmp_path / "masks", tmp_path / "out", "--labels", tmp_path / "two.txt") == 0
        line = "255 means unlabelled: 50.0 % of the pixels; classes that never occur: 1 (road)"
        assert line in capsys.readouterr().out

    def test_smoothed_edges_by_choice(self, bag, tmp_path, capsys):
        colors = CLASSES.palette()[ids_of(7)]
        colors[20, 30] += 1
        self.put(tmp_path / "masks", 7, png_file(colors, RGB))
        assert merge(bag, tmp_path / "masks", tmp_path / "out") == 2
        assert "(row 20, column 30)" in (err := capsys.readouterr().err) and "--unknown unlabelled" in err
        assert merge(bag, tmp_path / "masks", tmp_path / "out", "--unknown", "unlabelled") == 0
        expected = ids_of(7)
        expected[20, 30] = 255
        np.testing.assert_array_equal(labels_in(tmp_path / "out")[7], expected)
        assert "1 pixels (0.049 %) have no class or are transparent in part" in capsys.readouterr().out

    @pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("zipped", [False, True])
    def test_class_lists_of_windows(self, tmp_path, codec, zipped):
        bag = write_bag(tmp_path / "plain", TENTHS, label_stride=0, label_map=False)
        text = "road:128,64,128::\r\nsky:70,130,180::\r\n".encode(codec)
        self.put(tmp_path / "masks", 0, png_file(ids_of(0) % 2, GREY))
        masks, options = tmp_path / "masks", ["--labels", tmp_path / "list.txt"]
        (tmp_path / "list.txt").write_bytes(text)
        if zipped:
            (masks / "labelmap.txt").write_bytes(text)
            masks, options = shutil.make_archive(str(tmp_path / "masks_zip"), "zip", masks), []
        assert merge(bag, masks, tmp_path / "out", *options) == 0
        with BagReader(tmp_path / "out") as merged:
            assert read_label_set(merged).names == ("road", "sky")

    def test_images_in_the_bag_are_told_of_once(self, tmp_path, caplog):
        with BagWriter(tmp_path / "bag") as writer:
            for number in range(4):
                message = image_message(picture(number)[..., 2], "8UC1", START_NS + number, "cam")
                writer.write("/infra", IMAGE, message, START_NS + number)
        assert (
            main(["labels", "extract", str(tmp_path / "bag"), "--every", "1", "--out", str(tmp_path / "out")])
            == 0
        )
        assert len(list((tmp_path / "out").glob("*.png"))) == 4
        assert len(caplog.messages) == 1 and "/infra: the encoding '8UC1'" in caplog.messages[0]


class TestCvat:
    """Exports of the shape that CVAT documents for "Segmentation mask 1.1"."""

    def export(self, folder, names, *, background: bool = True):
        palette = CLASSES.palette()
        lines = format_palette(CLASSES).splitlines()
        # CVAT sorts as it likes, and adds a background.
        body = sorted(lines[1:], reverse=True)
        (folder / "SegmentationClass").mkdir(parents=True)
        (folder / "labelmap.txt").write_text(
            "\n".join([lines[0], *(["background:0,0,0::"] * background), *body])
        )
        listed = folder / "ImageSets" / "Segmentation" / "default.txt"
        listed.parent.mkdir(parents=True)
        listed.write_text("\n".join(name[:-4] for name in names))
        for name, ids in names.items():
            save(folder / "SegmentationClass" / name, palette[ids])
            save(folder / "SegmentationObject" / name, np.full((*ids.shape, 3), 77, np.uint8))
        return folder

    @pytest.mark.parametrize("zipped", [False, True])
    def test_folder_and_zip(self, bag, tmp_path, zipped):
        masks = self.export(tmp_path / "task", {name_of(n): ids_of(n) for n in (2, 5)})
        if zipped:
            masks = shutil.make_archive(str(tmp_path / "task_export"), "zip", masks)
        assert merge(bag, masks, tmp_path / "out") == 0
        found = labels_in(tmp_path / "out")
        assert list(found) == [2, 5]
        np.testing.assert_array_equal(found[5], ids_of(5))  # in the bag's order, not the export's

    def test_a_bag_without_a_list_takes_the_exports(self, tmp_path):
        bag = write_bag(tmp_path / "plain", TENTHS, label_stride=0, label_map=False)
        masks = self.export(tmp_path / "task", {name_of(2): ids_of(2)})
        assert merge(bag, masks, tmp_path / "out") == 0
        with BagReader(tmp_path / "out") as merged:
            names = read_label_set(merged).names
        assert names[labels_in(tmp_path / "out")[2][-1, -1]] == "class2" and "background" not in names

    def test_masks_of_ids_with_a_background_line_are_refused(self, bag, tmp_path, capsys):
        masks = self.export(tmp_path / "task", {})
        save(masks / "SegmentationClass" / name_of(1), ids_of(1))
        assert merge(bag, masks, tmp_path / "out") == 2
        assert "their meaning is unclear" in capsys.readouterr().err

    def test_an_export_without_its_list(self, tmp_path, capsys):
        bag = write_bag(tmp_path / "plain", TENTHS, label_stride=0, label_map=False)
        masks = self.export(tmp_path / "task", {name_of(2): ids_of(2)})
        (masks / "labelmap.txt").unlink()
        assert merge(bag, masks, tmp_path / "out") == 2
        assert "has no labelmap.txt. Name a class list" in capsys.readouterr().err


class TestLabelStudio:
    """Exports "Brush labels to PNG": a mask of 0 and 255 per region, named by task, annotation, tag and class."""

    def export(self, folder, *, tasks=((31, 4), (32, 9)), minimal=False):
        folder.mkdir()
        listed = []
        for task, number in tasks:
            image = f"/data/upload/1/6a3e1f2b-{name_of(number)}"
            listed.append({"id": task, "image": image} if minimal else {"id": task, "data": {"img": image}})
            for region, (name, rows) in enumerate(
                (("class1", (0, 10)), ("class11", (8, 20)), ("class1", (25, 32)))
            ):
                mask = np.zeros((32, 64), np.uint8)
                mask[slice(*rows)] = 255
                again = {0: 0, 1: 0, 2: 1}[region]
                save(
                    folder / f"task-{task}-annotation-{task + 5}-by-me@here.org-tag-{name}-{again}.png", mask
                )
        (folder / "project-1.json").write_text(json.dumps(listed))
        return folder

    @pytest.mark.parametrize("minimal", [False, True])
    def test_regions_become_one_label(self, bag, tmp_path, minimal):
        assert merge(bag, self.export(tmp_path / "export", minimal=minimal), tmp_path / "out") == 0
        found = labels_in(tmp_path / "out")
        assert list(found) == [4, 9]
        expected = np.repeat([1, 255, 11, 255, 1], [8, 2, 10, 5, 7])  # what two classes claim is neither
        np.testing.assert_array_equal(found[4], np.repeat(expected[:, None], 64, axis=1))

    def test_what_does_not_fit(self, bag, tmp_path, capsys):
        masks = self.export(tmp_path / "export")
        whole = np.full((32, 64), 255, np.uint8)
        save(masks / "task-77-annotation-1-by-1-tag-class1-0.png", whole)
        save(masks / "task-31-annotation-36-by-1-tag-tram-0.png", whole)
        save(masks / "task-32-annotation-99-by-2-tag-class2-0.png", whole)
        assert merge(bag, masks, tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert "no .json export next to it contains the frame of task 77" in err
        assert "its name ends in none of the class names" in err
        assert err.count("its task has 2 annotations (37, 99): keep one") == 4


def test_extracted_painted_and_merged_again(tmp_path, capsys):
    """The round trip on a labelled bag: its frames, painted with its labels, are its labels."""
    source = write_bag(tmp_path / "truth", TENTHS, compressed=True, size=(40, 24))
    assert main(["labels", "extract", str(source), "--out", str(tmp_path / "frames"), "--every", "5"]) == 0
    truth = labels_in(source)
    for number in (0, 5, 10, 15):
        image = cv2.imread(str(tmp_path / "frames" / name_of(number)))
        assert np.abs(image[..., ::-1].astype(int) - picture(number, (40, 24))).max() <= 12  # the bag's jpeg
        save(tmp_path / "frames" / name_of(number), CLASSES.palette()[truth[number]])
    assert merge(source, tmp_path / "frames", tmp_path / "out", "--topic", "/mine/label") == 0
    assert "/camera/label/compressed also contains labels" in capsys.readouterr().out
    found = labels_in(tmp_path / "out", "/mine/label")
    assert list(found) == [0, 5, 10, 15]
    for number, ids in found.items():
        np.testing.assert_array_equal(ids, truth[number])
    with BagReader(tmp_path / "out") as merged:
        assert len(list(merged.messages(["/camera/image/compressed"]))) == 20
        assert decode_any(merged.read("/camera/image/compressed", START_NS)).shape == (24, 40, 3)
