# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parts of long bags: where they begin, and masks that equal those of the unsplit run byte by byte."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import make_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.conftest import NS, masks_of, write_images
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE, image_message, typestore
from vtseg_ros.fleet import plan_tasks
from vtseg_ros.fleet.parts import plan_spans, warm_up_start
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.window import Action, FrameWindow

TENTH = NS // 10
TOPIC = "/camera/image"


def write_disordered(path, rng, cut):
    """Frames at 10 Hz, up to 16 after frame `cut`; regular ones around it.

    Near the begin and the end are late, repeated and zero stamps, a pause, a step back of the clock, another frame_id, and
    images that cannot be decoded, also shortly before the cut.
    """
    stamps = [NS + index * TENTH for index in range(cut + 16)]
    stamps[2], stamps[3] = stamps[3], stamps[2]
    stamps[5] = stamps[4]
    stamps[cut + 6 : cut + 9] = [stamp + 3 * NS for stamp in stamps[cut + 6 : cut + 9]]
    stamps[cut + 9] = 0
    stamps[cut + 12 :] = [stamp - 2 * NS for stamp in stamps[cut + 12 :]]
    with BagWriter(path) as bag:
        for index, stamp in enumerate(stamps):
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            kind = "rgb16" if index in (cut - 7, cut - 4, cut + 4) else "rgb8"  # which does not fit the data
            frame_id = "other" if index >= cut + 14 else "camera"
            data = typestore().serialize_cdr(image_message(image, kind, stamp, frame_id), IMAGE)
            bag.write_raw(TOPIC, IMAGE, data[:50] if index == cut + 7 else data, NS + index * TENTH)
    return len(stamps)


def qos_of(folder):
    with BagReader(folder / "masks") as bag:
        return bag.qos


@pytest.mark.parametrize(("attention", "window", "cut"), [("full", 4, 32), ("causal", 2, 66)])
def test_masks_of_parts_equal_those_of_the_unsplit_run(segment, tmp_path, rng, attention, window, cut):
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", attention=attention)
    options = [tmp_path / "drive", "--window", window]
    total = write_disordered(tmp_path / "drive", rng, cut)
    predictor = VideoPredictor(checkpoint, device="cpu", window=window)
    needed = predictor.history + window - 1
    with BagReader(tmp_path / "drive") as bag:  # reading begins before the part, not with the bag
        assert warm_up_start(bag, TOPIC, NS + cut * TENTH, frames=needed, max_gap_ns=NS) is not None
    single, out = tmp_path / "single", tmp_path / "parts"
    files = ["--json", tmp_path / "single.json"]
    assert segment(*options, "--out", single / "masks", *files, checkpoint=checkpoint) == 0
    expected = masks_of(single)
    lost = len(json.loads((tmp_path / "single.json").read_text())["left_out"])
    assert len(expected) + lost == total and lost >= 6
    options += ["--out", out, "--ray", "none", "--part-frames", cut, "--json", out / "outcomes.json"]
    assert segment(*options, checkpoint=checkpoint) == 0
    assert masks_of(out / "drive") == expected
    assert qos_of(out / "drive") == qos_of(single)  # players keep the class list for late subscribers
    found = json.loads((out / "outcomes.json").read_text())[0]
    assert found["result"]["parts"] == 2 and len(found["result"]["left_out"]) == lost
    assert sorted(path.name for path in out.iterdir()) == ["drive", "outcomes.json"]  # no parts are left
    assert segment(*options, checkpoint=checkpoint) == 0
    assert json.loads((out / "outcomes.json").read_text())[0]["state"] == "skipped"


def test_complete_parts_are_not_computed_again(segment, tmp_path, rng):
    write_images(tmp_path / "drive", rng, [NS + index * TENTH for index in range(9)])
    task = plan_tasks([tmp_path / "drive"], tmp_path / "out", part_frames=4)[0]
    assert [part.frames for part in task.parts] == [4, 4, 1]
    options = [tmp_path / "drive", "--out", tmp_path / "out", "--ray", "none", "--part-frames", "4"]
    last = task.parts[2].output
    last.mkdir(parents=True)
    (last / "stranger").touch()
    assert segment(*options) == 1  # the last part's place is taken
    assert not task.output.exists()
    before = (task.parts[0].output / "result.json").stat().st_mtime_ns
    assert segment(*options) == 1
    assert (task.parts[0].output / "result.json").stat().st_mtime_ns == before
    (last / "stranger").unlink()
    last.rmdir()
    assert segment(*options, "--json", tmp_path / "second.json") == 0
    assert len(masks_of(task.output)) == 9
    assert json.loads((tmp_path / "second.json").read_text())[0]["state"] == "done"


def test_spans_keep_equal_times_together(tmp_path, rng):
    times = [1, 2, 3, 3, 3, 4, 5]
    with BagWriter(tmp_path / "bag") as bag:
        for index, time_ns in enumerate(times):
            image = np.zeros((4, 4, 3), np.uint8)
            data = typestore().serialize_cdr(image_message(image, "rgb8", index + 1, "camera"), IMAGE)
            bag.write_raw(TOPIC, IMAGE, data, time_ns * NS)
    with BagReader(tmp_path / "bag") as bag:
        assert plan_spans(bag, TOPIC, 7) == [(None, None)]
        assert plan_spans(bag, TOPIC, 3) == [(None, 3 * NS), (3 * NS, 5 * NS), (5 * NS, None)]
        assert plan_spans(bag, TOPIC, 2) == [(None, 3 * NS), (3 * NS, 5 * NS), (5 * NS, None)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 1, 0, -3, -15, 15]), min_size=60, max_size=120), st.integers(1, 6)
)
def test_the_window_at_a_part_is_that_of_an_unsplit_run(tmp_path_factory, steps, frames):
    """Steps between stamps in tenths of a second: mostly regular, with repeats, late frames, pauses and jumps back."""
    stamps = (NS * 100 + np.cumsum(steps) * TENTH).tolist()
    path = tmp_path_factory.mktemp("bags") / "bag"
    image = np.zeros((4, 4, 3), np.uint8)
    with BagWriter(path) as bag:
        for index, stamp in enumerate(stamps):
            data = typestore().serialize_cdr(image_message(image, "rgb8", stamp, "camera"), IMAGE)
            bag.write_raw(TOPIC, IMAGE, data, (index + 1) * TENTH)

    def window_at(begin, stop):
        """The newest `frames` frames of the window before frame `stop`, and the newest stamp."""
        window, held = FrameWindow(1.0), []
        for index in range(begin, stop):
            action = window.push(stamps[index], (4, 4), "camera").action
            if action is Action.RESTART:
                held.clear()
            if action is not Action.DROP:
                held.append(index)
        return held[-frames:], held[-1]

    with BagReader(path) as bag:
        for start in range(30, len(stamps), 15):
            begin_ns = warm_up_start(bag, TOPIC, (start + 1) * TENTH, frames=frames, max_gap_ns=NS)
            begin = 0 if begin_ns is None else begin_ns // TENTH - 1
            assert window_at(begin, start) == window_at(0, start)
