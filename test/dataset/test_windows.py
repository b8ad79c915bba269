# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames found, cut into sequences and windows, read at random, cached; corrupt ones counted."""

from __future__ import annotations

import os
import pickle
import shutil
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from bags.bagtools import CLASSES, START_NS, ids_of, picture, storage_file, undecodable_png, write_bag

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, IMAGE, NS, compressed_message, image_message, typestore
from vtseg_ros.dataset import frame_cache as cache_module
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import BagError, ConfigError, ImageError

TENTHS = [i / 10 for i in range(20)]


def index_of(*paths, **options) -> FrameIndex:
    return FrameIndex([path if isinstance(path, BagSource) else BagSource(path) for path in paths], **options)


def numbers_of(index: FrameIndex) -> list[int]:
    return [round((frame.stamp_ns - START_NS) * 10 / NS) for frame in index.frames]


class TestIndex:
    def test_a_long_pause_starts_a_new_sequence(self, tmp_path):
        bag = write_bag(tmp_path / "bag", [0, 0.1, 0.2, 1.2, 1.3, 9])
        assert index_of(bag).sequences == [(0, 5), (5, 6)]  # 1.0 s is not longer than 1.0 s
        assert index_of(bag, max_gap_s=0.99).sequences == [(0, 3), (3, 5), (5, 6)]
        assert index_of(bag, max_gap_s=100).sequences == [(0, 6)]

    def test_stamps_that_run_back_start_a_new_sequence(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            for at, tenth in enumerate((5, 6, 7, 1, 2, 2)):  # recorded in this order
                stamp = START_NS + tenth * NS // 10
                bag.write("/image", IMAGE, image_message(picture(tenth), "rgb8", stamp, "cam"), START_NS + at)
        index = index_of(tmp_path / "bag", need_labels=False)
        assert numbers_of(index) == [5, 6, 7, 1, 2]  # two equal stamps are one frame
        assert index.sequences == [(0, 3), (3, 5)]

    def test_several_bags_and_topics(self, tmp_path):
        one = write_bag(tmp_path / "one", TENTHS[:4])
        two = write_bag(tmp_path / "two", TENTHS[:3], storage="sqlite3", compressed=True)
        with BagWriter(tmp_path / "three") as bag:
            for camera in ("left", "right"):
                for number in range(2):
                    stamp = START_NS + number * NS // 10
                    bag.write_image(f"/{camera}/image", picture(number), stamp, camera)
                    bag.write_label(f"/{camera}/label", ids_of(number), stamp, camera)
        right = BagSource(tmp_path / "three", "/right/image", "/right/label")
        index = index_of(one, two, right)
        assert [frame.source for frame in index.frames] == [0] * 4 + [1] * 3 + [2] * 2
        assert index.sequences == [(0, 4), (4, 7), (7, 9)]  # never across bags
        assert index.topics[1:] == [
            ("/camera/image/compressed", "/camera/label/compressed"),
            ("/right/image", "/right/label"),
        ]
        with pytest.raises(
            BagError, match="several image topics: /left/image, /right/image. Choose one: --image-topic"
        ):
            index_of(tmp_path / "three")
        with pytest.raises(
            BagError, match="several label topics: /left/label, /right/label. Choose one: --label-topic"
        ):
            index_of(BagSource(tmp_path / "three", "/left/image"))
        with BagWriter(tmp_path / "again") as bag:  # labelled twice: naming the labels is enough
            bag.write_image("/image", picture(0), START_NS, "cam")
            for topic in ("/a/label", "/b/label"):
                bag.write_label(topic, ids_of(0), START_NS, "cam")
        assert index_of(BagSource(tmp_path / "again", label_topic="/b/label")).topics == [
            ("/image", "/b/label")
        ]

    def test_parts_of_a_bag_with_a_guard_between(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS)
        train = index_of(BagSource(bag, end_s=1.0))
        held_out = index_of(BagSource(bag, start_s=1.5))
        assert numbers_of(train) == list(range(10)) and numbers_of(held_out) == list(range(15, 20))
        assert held_out.windows(4)[0] == [0]  # its first window does not reach back over the cut

    def test_a_label_recorded_later_than_its_image_is_found(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            for number in range(4):
                bag.write_image("/image", picture(number), START_NS + number * NS, "cam")
            label = image_message(ids_of(1), "mono8", START_NS + NS, "cam")
            bag.write("/label", IMAGE, label, START_NS + 100 * NS)
        index = index_of(BagSource(tmp_path / "bag", end_s=3.0))
        assert [frame.label_ns is not None for frame in index.frames] == [False, True, False]

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ({"start_s": 50.0}, "no image on /camera/image in the chosen part"),
            ({"start_s": 1.0, "end_s": 0.5}, "no image on /camera/image in the chosen part"),
            (
                {"start_s": 0.1, "end_s": 0.4},
                "no label on /camera/label has the header stamp .* in the chosen part",
            ),
            ({"image_topic": "/nope"}, "no topic /nope. It has: /camera/image"),
            ({"label_topic": "/nope"}, "no topic /nope. It has: /camera/image"),
        ],
    )
    def test_empty_parts_and_missing_topics(self, tmp_path, source, words):
        bag = write_bag(tmp_path / "bag", TENTHS, label_stride=10)
        with pytest.raises(BagError, match=words):
            index_of(BagSource(bag, **source))

    def test_labels_are_needed_unless_told_otherwise(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS, label_stride=0)
        with pytest.raises(BagError, match="has no label topic. Add one with `vtseg labels merge`"):
            index_of(bag)
        assert len(index_of(bag, need_labels=False).frames) == 20

    def test_labels_of_other_stamps_are_refused(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            bag.write_image("/image", picture(0), START_NS, "cam")
            bag.write_label("/label", ids_of(0), START_NS + 1, "cam")
        with pytest.raises(BagError, match="Labels and images must have equal stamps"):
            index_of(tmp_path / "bag")

    def test_labels_without_an_image_are_counted_and_told(self, tmp_path, caplog):
        with BagWriter(tmp_path / "bag") as bag:
            for number in range(20):
                stamp = START_NS + number * NS // 10
                bag.write_image("/image", picture(number), stamp, "cam")
                bag.write_label("/label", ids_of(number), stamp + (37 if number % 4 == 0 else 0), "cam")
        index = index_of(tmp_path / "bag")
        assert index.unmatched_labels == 5 and len(index.labelled()) == 15
        assert "5 of the labels on /label have the header stamp of no image on /image" in caplog.text
        assert f"the first at stamp {START_NS + 37} ns" in caplog.text
        # Of a part: those of frames 4 and 8, between its first image and its last.
        part = index_of(BagSource(tmp_path / "bag", start_s=0.35, end_s=1.15))
        assert part.unmatched_labels == 2 and len(part.labelled()) == 6

    def test_labels_of_another_size_are_refused(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            bag.write_image("/image", picture(0, (64, 32)), START_NS, "cam")
            bag.write_label("/label", ids_of(0, (64, 48)), START_NS, "cam")
        with pytest.raises(BagError, match="has 64x48 px, its image 64x32"):
            index_of(tmp_path / "bag")

    def test_labels_in_the_red_channel_as_simulators_publish_them(self, tmp_path, caplog):
        with BagWriter(tmp_path / "bag") as writer:
            for number in range(3):
                stamp, ids = START_NS + number * NS // 10, ids_of(number)
                bgra = np.dstack([0 * ids, 0 * ids, ids, np.full_like(ids, 255)])
                writer.write(
                    "/camera/image", IMAGE, image_message(picture(number), "rgb8", stamp, "cam"), stamp
                )
                writer.write("/camera/label", IMAGE, image_message(bgra, "bgra8", stamp, "cam"), stamp)
        store = FrameStore(FrameIndex([BagSource(tmp_path / "bag")]))
        for number in range(3):
            np.testing.assert_array_equal(store.label(number), ids_of(number))
        assert caplog.messages == [
            "/camera/label: the class ids of the bgra8 labels are taken from the red channel"
        ]

    def test_a_topic_of_a_wrong_kind_is_refused(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS)
        with pytest.raises(
            BagError, match="first 5 messages on /camera/image: the channels of the label differ"
        ):
            index_of(BagSource(bag, "/camera/image", "/camera/image"))
        with BagWriter(tmp_path / "depth") as writer:
            writer.write_float("/depth", np.ones((4, 4), np.float32), START_NS, "cam")
        with pytest.raises(BagError, match="first 1 messages on /depth: unknown encoding '32FC1'"):
            index_of(BagSource(tmp_path / "depth", "/depth"), need_labels=False)

    def test_images_without_stamps_are_refused(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            bag.write("/image", IMAGE, image_message(picture(0), "rgb8", 0, "cam"), START_NS)
        with pytest.raises(BagError, match="all messages on /image have the header stamp zero"):
            index_of(tmp_path / "bag", need_labels=False)


class TestWindows:
    def test_newest_last_and_shorter_at_the_start(self, tmp_path):
        bag = write_bag(tmp_path / "bag", [*TENTHS[:5], *(t + 50 for t in TENTHS[:2])])
        windows = index_of(bag).windows(3)
        assert windows == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [5], [5, 6]]

    def test_only_labelled_frames_are_newest(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS, label_stride=5)
        assert index_of(bag).windows(3) == [[0], [3, 4, 5], [8, 9, 10], [13, 14, 15]]
        assert index_of(bag).windows(3, label_stride=2) == [[0], [8, 9, 10]]

    def test_every_nth_label_is_counted_over_sequences(self, tmp_path):
        """As in Cityscapes: a label in each sequence."""
        bag = write_bag(tmp_path / "bag", [10 * i + j / 10 for i in range(6) for j in (0, 1)], label_stride=2)
        index = index_of(bag)
        assert len(index.sequences) == 6
        assert index.labelled(2) == [(0, 0), (4, 4), (8, 8)]
        assert index.windows(2, label_stride=4) == [[0], [8]]

    def test_stride_counts_back_from_the_label(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS, label_stride=5)
        index = index_of(bag, stride=3)
        assert index.windows(3) == [[0], [2, 5], [4, 7, 10], [9, 12, 15]]  # labels 5 and 15 are not lost


@pytest.fixture
def _no_threads_of_opencv():
    """They do not survive a fork; training handles this."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("_no_threads_of_opencv")
class TestStore:
    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    def test_random_access(self, tmp_path, storage, rng):
        store = FrameStore(index_of(write_bag(tmp_path / "bag", TENTHS, label_stride=2, storage=storage)))
        for number in rng.permutation(20):
            np.testing.assert_array_equal(store.image(number), picture(number))
            label = store.label(number)
            assert label is None if number % 2 else np.array_equal(label, ids_of(number))

    def test_a_window_that_began_too_late_repeats_its_oldest_frame_without_its_label(self, tmp_path):
        store = FrameStore(index_of(write_bag(tmp_path / "bag", TENTHS[:4])))
        video, labels = store.window([0, 1], 4)
        assert [frame[0, 0, 0] for frame in video] == [0, 0, 0, 1]
        assert [ids[-1, -1] for ids in labels] == [255, 255, 0, 1]

    def test_images_and_labels_are_resized_alike(self, tmp_path):
        """A vertical edge stays where it is, in the image and in the label."""
        rgb, ids = np.zeros((64, 128, 3), np.uint8), np.zeros((64, 128), np.uint8)
        rgb[:, 72:], ids[:, 72:] = 200, 5
        with BagWriter(tmp_path / "bag") as bag:
            bag.write_image("/image", rgb, START_NS, "cam")
            bag.write_label("/label", ids, START_NS, "cam")
        store = FrameStore(index_of(tmp_path / "bag"), size=(32, 32))
        assert store.image(0).shape == (32, 32, 3) and store.label(0).shape == (32, 32)
        assert np.flatnonzero(np.diff(store.label(0)[0].astype(int))).tolist() == [17]  # 72 / 4 - 1
        np.testing.assert_array_equal(store.image(0)[:, :, 0] > 100, store.label(0) == 5)

    def test_a_bag_is_not_loaded_into_memory(self, tmp_path):
        """120 frames of 1 MB: reading some of them at random keeps a few in memory."""
        bag = write_bag(tmp_path / "bag", [i / 10 for i in range(120)], size=(704, 496), label_stride=60)
        tracemalloc.start()
        store = FrameStore(index_of(bag))
        for number in (3, 118, 60, 7):
            store.image(number)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 15e6

    @pytest.mark.slow  # starts processes
    def test_workers_of_a_data_loader_read_their_own_files(self, tmp_path):
        """Forked workers share open files with their parent, position and all, unless they open their own."""
        store = FrameStore(index_of(write_bag(tmp_path / "bag", TENTHS, size=(256, 192))))
        store.image(0)  # the parent's file is open when the workers are started

        class Frames(torch.utils.data.Dataset):
            def __len__(self):
                return 200

            def __getitem__(self, i):
                return i % 20, store.image(i % 20)[0, 0, :2].astype(int)

        loader = torch.utils.data.DataLoader(
            Frames(), num_workers=2, batch_size=5, multiprocessing_context="fork"
        )
        for numbers, pixels in loader:
            np.testing.assert_array_equal(pixels[:, 0], numbers)

    def test_it_can_be_sent_to_a_spawned_worker(self, tmp_path):
        store = FrameStore(index_of(write_bag(tmp_path / "bag", TENTHS[:3])), size=(32, 32))
        store.image(0)
        again = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(again.image(2), store.image(2))


def damaged_bag(path):
    """Frames 0 to 5; image 2 and label 4 look whole and do not decode, image 5 is cut, so that it has no stamp."""
    with BagWriter(path) as bag:
        for number in range(6):
            stamp = START_NS + number * NS // 10
            payload = cv2.imencode(".png", picture(number)[..., ::-1])[1]
            if number == 2:
                payload = undecodable_png(picture(2))
            message = compressed_message(payload, "png", stamp, "cam")
            data = bytes(typestore().serialize_cdr(message, COMPRESSED_IMAGE))
            bag.write_raw("/image/compressed", COMPRESSED_IMAGE, data[:60] if number == 5 else data, stamp)
            label = undecodable_png(ids_of(4)) if number == 4 else cv2.imencode(".png", ids_of(number))[1]
            message = compressed_message(label, "png", stamp, "cam")
            bag.write("/label/compressed", COMPRESSED_IMAGE, message, stamp)
    return path


@pytest.mark.usefixtures("_no_threads_of_opencv")
class TestCorrupt:
    def test_counted_and_logged_never_silent(self, tmp_path, caplog):
        index = index_of(damaged_bag(tmp_path / "bag"))
        assert numbers_of(index) == [0, 1, 2, 3, 4]
        assert [(c.topic, c.time_ns) for c in index.corrupt] == [
            ("/image/compressed", START_NS + 5 * NS // 10)
        ]
        store = FrameStore(index, size=(64, 32))
        assert store.corrupt_count() == 1
        with pytest.raises(ImageError):
            store.image(2)
        video, labels = store.window([0, 1, 2, 3], 4)  # a corrupt older frame cuts as a gap does
        assert [frame[0, 0, 0] for frame in video] == [3, 3, 3, 3] and (labels[:3] == 255).all()
        np.testing.assert_array_equal(labels[3], ids_of(3))
        video, labels = store.window([0, 1, 2], 3)  # a corrupt newest one leaves nothing to learn or score
        assert (video == 0).all() and (labels == 255).all()
        video, labels = store.window([3, 4], 2)  # a corrupt label is no label
        assert video[1, 0, 0, 0] == 4 and (labels[1] == 255).all()
        np.testing.assert_array_equal(labels[0], ids_of(3))
        store.window([0, 1, 2, 3], 4)
        assert store.corrupt_count() == 3  # each once
        assert sum("corrupt" in record.message for record in caplog.records) == 3
        assert "stamp 100200000000 ns" in caplog.text

    @pytest.mark.slow  # starts processes
    def test_what_workers_meet_is_counted_here(self, tmp_path):
        store = FrameStore(index_of(damaged_bag(tmp_path / "bag")), size=(64, 32))

        class Windows(torch.utils.data.Dataset):
            def __len__(self):
                return 2

            def __getitem__(self, i):
                return store.window([2 + 2 * i], 1)[1]

        list(torch.utils.data.DataLoader(Windows(), num_workers=2, multiprocessing_context="fork"))
        assert store.corrupt_count() == 3

    def test_without_a_size_there_is_no_black_frame_to_give(self, tmp_path):
        store = FrameStore(index_of(damaged_bag(tmp_path / "bag")))
        with pytest.raises(ImageError):
            store.window([1, 2], 2)


class TestCache:
    def cached(self, path, folder, size=(32, 32)):
        return FrameStore(index_of(path), size=size, cache_dir=folder)

    def test_it_holds_what_decoding_gives(self, tmp_path, monkeypatch):
        bag = write_bag(tmp_path / "bag", TENTHS, label_stride=2)
        plain, store = FrameStore(index_of(bag), size=(32, 32)), self.cached(bag, tmp_path / "cache")
        for number in range(20):
            np.testing.assert_array_equal(store.image(number), plain.image(number))
            expected = plain.label(number)
            assert (
                store.label(number) is None
                if expected is None
                else np.array_equal(store.label(number), expected)
            )
        monkeypatch.setattr(FrameStore, "_decode", None)  # the second time nothing is decoded
        again = self.cached(bag, tmp_path / "cache")
        np.testing.assert_array_equal(again.image(19), plain.image(19))

    def test_a_bag_that_changed_is_decoded_again(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS[:2])
        self.cached(bag, tmp_path / "cache")
        before = os.stat(storage_file(bag))
        shutil.rmtree(bag)
        with BagWriter(bag) as writer:  # the same stamps and places, other labels
            for number in range(2):
                stamp = START_NS + number * NS // 10
                writer.write_image("/camera/image", picture(number), stamp, "cam")
                writer.write_label("/camera/label", ids_of(number + 7), stamp, "cam")
        os.utime(storage_file(bag), ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert self.cached(bag, tmp_path / "cache").label(1)[-1, -1] == 8

    def test_it_does_not_travel_to_spawned_workers(self, tmp_path):
        store = self.cached(write_bag(tmp_path / "bag", TENTHS), tmp_path / "cache", (256, 256))
        sent = pickle.dumps(store)
        assert len(sent) < 20_000  # of 5 MB
        np.testing.assert_array_equal(pickle.loads(sent).image(7), store.image(7))

    def test_other_sizes_are_other_caches(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS[:2])
        self.cached(bag, tmp_path / "cache")
        assert self.cached(bag, tmp_path / "cache", (64, 32)).image(0).shape == (32, 64, 3)

    def test_corrupt_frames_stay_corrupt_when_the_cache_is_read_again(self, tmp_path):
        bag = damaged_bag(tmp_path / "bag")
        for _ in range(2):
            store = self.cached(bag, tmp_path / "cache")
            assert store.corrupt_count() == 3
            with pytest.raises(ImageError, match="corrupt when it was cached"):
                store.image(2)
            assert (store.window([1, 2], 2)[1] == 255).all()

    def test_a_full_disk_is_told_in_one_line(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        bag = write_bag(tmp_path / "bag", TENTHS[:2])
        monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
        with pytest.raises(ConfigError, match=r"frame cache \(0 MB\) cannot be written to .*No space left"):
            self.cached(bag, tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*.npy")) and not list(
            (tmp_path / "cache").glob("*.partial")
        )

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        bag = write_bag(tmp_path / "bag", TENTHS[:2])
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot be written"):
            self.cached(bag, tmp_path / "file")


class TestTimes:
    def test_one_message_without_a_stamp_does_not_cost_the_bag(self, tmp_path, caplog):
        with BagWriter(tmp_path / "bag") as bag:
            for number in range(4):
                stamp = 0 if number == 1 else START_NS + number
                bag.write(
                    "/image", IMAGE, image_message(picture(number), "rgb8", stamp, "cam"), START_NS + number
                )
        index = index_of(tmp_path / "bag", need_labels=False)
        assert [frame.stamp_ns - START_NS for frame in index.frames] == [0, 2, 3]
        assert len(index.corrupt) == 1 and "the header stamp is zero" in caplog.text

    def test_parts_are_measured_on_the_images(self, tmp_path):
        """A message of years later and one ten seconds earlier do not move them."""
        bag = write_bag(tmp_path / "bag", TENTHS[:8])
        with BagReader(bag) as old, BagWriter(tmp_path / "new") as new:
            new.write_label_map("/other_map", CLASSES, 10**18)
            new.write_label_map("/another_map", CLASSES, START_NS - 10 * NS)
            for topic, msgtype, time_ns, data in old.raw():
                new.write_raw(topic, msgtype, data, time_ns)
        with BagReader(tmp_path / "new") as new:
            assert new.span() == (START_NS - 10 * NS, START_NS + 7 * NS // 10)
            assert new.span(["/camera/image"]) == (START_NS, START_NS + 7 * NS // 10)
        part = index_of(BagSource(tmp_path / "new", start_s=0.2, end_s=0.5))
        assert [frame.stamp_ns - START_NS for frame in part.frames] == [n * NS // 10 for n in (2, 3, 4)]
