# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Commands that SIGINT or SIGTERM ends: no incomplete file stays, complete ones are listed, `--resume` continues."""

from __future__ import annotations

import contextlib
import os
import signal

import cv2
import numpy as np
import pytest
from conftest import make_checkpoint

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE, image_message
from vtseg_ros.cli import main
from vtseg_ros.commands import interrupts
from vtseg_ros.errors import BagError
from vtseg_ros.inference import VideoPredictor

MASKS = "/segmentation/mask/compressed"


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(owner, method, calls, number): send this process a signal inside the n-th call."""

    def arrange(owner: type, name: str, calls: int, number: int) -> None:
        original, count = getattr(owner, name), [0]

        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] == calls:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # test runners with several processes ignore it
    yield arrange
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()


def masks(path):
    with BagReader(path) as bag:
        assert bag.missing == {}
        return [(time, bytes(data)) for _, _, time, data in bag.raw([MASKS])]


@pytest.fixture(scope="module", params=[{}, {"attention": "causal", "mix_ffn": "spatial"}])
def uninterrupted(request, tmp_path_factory, street_bag):
    """The command that segments a bag, without the output, and the masks of a run that is not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    checkpoint = make_checkpoint(folder / "c.safetensors", depths=(1, 1, 1, 1), **request.param)
    common = ["segment", str(street_bag), "--checkpoint", str(checkpoint), "--device", "cpu", "--out"]
    assert main([*common, str(folder / "whole")]) == 0
    return common, masks(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_segment_resumes(tmp_path, uninterrupted, interrupt, monkeypatch, capsys, number):
    common, whole = uninterrupted
    here = tmp_path / "here"
    command = [*common, str(here / "masks"), "--overlay", str(here / "12:31.mp4")]
    here.mkdir()
    for _ in range(2):  # a resumed run is interrupted too, after 12 more frames
        interrupt(VideoPredictor, "step", 12, number)
        assert main(command) == 1
        monkeypatch.undo()
        err = capsys.readouterr().err
        assert "of 30 masks were written to" in err and "12:31.mp4 was not written" in err
        assert [path.name for path in here.iterdir()] == ["masks"]
        command = [*command, "--resume"] if "--resume" not in command else command
    assert 12 < len(masks(here / "masks")) < 30
    assert main(command) == 0
    assert sorted(path.name for path in here.iterdir()) == ["12:31.mp4", "masks"]
    assert sorted(path.name for path in (here / "masks").iterdir()) == ["masks.mcap", "metadata.yaml"]
    assert masks(here / "masks") == whole
    video = cv2.VideoCapture(str(here / "12:31.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 30


def test_segment_interrupted_at_once(tmp_path, street_bag, tiny_checkpoint, interrupt, capsys):
    from vtseg_ros.commands import frame_source

    interrupt(frame_source, "_from_bag", 1, signal.SIGTERM)
    out = tmp_path / "masks"
    assert main(["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 1
    assert "stopped" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_masks_of_a_killed_run_are_resumed(tmp_path, street_bag, tiny_checkpoint):
    """Its bag has no metadata.yaml and its file no end."""
    common = ["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out"]
    assert main([*common, str(tmp_path / "whole")]) == 0
    assert main([*common, str(tmp_path / "cut")]) == 0
    (tmp_path / "cut" / "metadata.yaml").unlink()
    file = tmp_path / "cut" / "cut.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert main([*common, str(tmp_path / "cut"), "--resume"]) == 0
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")


def test_resume_with_stamps_that_come_again(tmp_path, tiny_checkpoint, rng):
    """A repeated stamp is dropped, and a second pass of a bag that loops is segmented, as without an interruption."""
    with BagWriter(tmp_path / "bag") as bag:
        for index, seconds in enumerate((1, 2, 2, 3, 1, 2, 3)):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            message = image_message(pixels, "rgb8", seconds * 10**9, "camera")
            bag.write("/camera/image", IMAGE, message, (index + 1) * 10**9)
    common = ["segment", str(tmp_path / "bag"), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    assert main([*common, "--out", str(tmp_path / "cut"), "--frames", "4"]) == 0
    assert len(masks(tmp_path / "whole")) == 6 and len(masks(tmp_path / "cut")) == 3
    assert main([*common, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")


def test_resume_refuses_other_classes(tmp_path, street_bag, tiny_checkpoint, capsys):
    from vtseg_ros.label_set import LabelSet

    with BagWriter(tmp_path / "masks") as bag:
        bag.write_label_map("/segmentation/label_map", LabelSet.from_names(["a", "b"]), 1)
        bag.write_label(MASKS, np.zeros((4, 4), np.uint8), 1, "c", compressed=True)
    before = masks(tmp_path / "masks")
    common = ["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--resume"]
    assert main([*common, "--out", str(tmp_path / "masks")]) == 2
    assert "got a, b" in capsys.readouterr().err
    assert masks(tmp_path / "masks") == before and len(list(tmp_path.iterdir())) == 1


def test_resume_on_a_full_disk_leaves_the_masks_alone(
    tmp_path, street_bag, tiny_checkpoint, monkeypatch, capsys
):
    common = ["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    command = [*common, "--out", str(tmp_path / "masks"), "--frames", "2"]
    assert main(command) == 0
    before = masks(tmp_path / "masks")

    def full(*_: object) -> None:
        raise BagError("no space left")

    monkeypatch.setattr(BagWriter, "__init__", full)
    assert main([*command, "--resume"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["masks"] and masks(tmp_path / "masks") == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
class TestNothingIsWritten:
    def test_evaluate(self, tmp_path, street_bag, tiny_checkpoint, interrupt, capsys, number):
        from vtseg_ros.dataset.frame_store import FrameStore

        interrupt(FrameStore, "image", 5, number)
        report = ["--out", str(tmp_path / "report"), "--json", str(tmp_path / "r.json")]
        assert main(["evaluate", str(street_bag), "--checkpoint", str(tiny_checkpoint), *report]) == 1
        assert "the report was not written" in capsys.readouterr().err and not list(tmp_path.iterdir())

    def test_import(self, tmp_path, interrupt, capsys, number):
        (tmp_path / "images").mkdir()
        for index in range(6):
            cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.zeros((4, 4, 3), np.uint8))
        interrupt(BagWriter, "write", 3, number)
        assert main(["import", "images", str(tmp_path / "images"), "--out", str(tmp_path / "bag")]) == 1
        assert "bag was not written" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["images"]

    def test_merge(self, tmp_path, street_bag, interrupt, capsys, number):
        assert main(["labels", "extract", str(street_bag), "--count", "2", "--out", str(tmp_path / "f")]) == 0
        for file in (tmp_path / "f").glob("*.png"):
            cv2.imwrite(str(file), np.zeros((64, 128), np.uint8))
        interrupt(BagWriter, "write_raw", 9, number)
        command = ["labels", "merge", str(street_bag), str(tmp_path / "f"), "--out", str(tmp_path / "bag")]
        assert main([*command, "--topic", "/camera/label2/compressed"]) == 1
        assert "bag was not written" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_signal_while_a_bag_is_finished(tmp_path, interrupt, capsys, storage):
    """The bag is either complete, and the line says so, or it does not stay."""
    from vtseg_ros.bags import bag_writer

    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((4, 4, 3), np.uint8))
    interrupt(bag_writer._Writer, "close", 1, signal.SIGINT)
    command = [
        "import",
        "images",
        str(tmp_path / "images"),
        "--storage",
        storage,
        "--out",
        str(tmp_path / "bag"),
    ]
    assert main(command) == 1
    assert "bag was not written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_signal_after_the_bag_is_complete(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt, match="bag is complete"), interrupts.unwritten(tmp_path / "bag"):
        (tmp_path / "bag").mkdir()
        raise KeyboardInterrupt


def test_outputs_are_named_before_the_work_begins(tmp_path, street_bag, tiny_checkpoint, interrupt, capsys):
    from vtseg_ros.commands import segment

    interrupt(segment, "_open_predictor", 1, signal.SIGINT)
    out = ["--out", str(tmp_path / "masks"), "--overlay", str(tmp_path / "o.mp4")]
    assert main(["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), *out]) == 1
    err = capsys.readouterr().err
    assert (
        "masks was not written; " in err and "o.mp4 was not written" in err and not list(tmp_path.iterdir())
    )


def test_a_signal_that_a_library_swallows(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    from vtseg_ros.commands import export

    def write(*_) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    class Result:
        frames, agreement, difference, largest = 1, 1.0, 0.0, 1.0

        def check(self, _) -> None:
            pass

    monkeypatch.setattr(export, "write_export", write)
    monkeypatch.setattr(export, "verify", lambda *_: Result())
    assert main(["export", str(tiny_checkpoint), "--out", str(tmp_path / "x.onnx")]) == 1
    assert "x.onnx was not written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_ego_mask_and_its_preview_are_both_there_or_none(tmp_path, street_bag, interrupt, capsys):
    from vtseg_ros.commands import ego_mask

    interrupt(ego_mask, "write_atomically", 2, signal.SIGTERM)
    assert main(["ego-mask", str(street_bag), "--out", str(tmp_path / "hood.png")]) == 1
    assert "hood.png was not written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_extract_without_a_frame_leaves_no_folder(tmp_path, street_bag, interrupt, capsys):
    from vtseg_ros.commands import labels

    interrupt(labels, "read_frames", 1, signal.SIGINT)
    assert main(["labels", "extract", str(street_bag), "--out", str(tmp_path / "f")]) == 1
    assert "f was not written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_extract_names_what_it_wrote(tmp_path, street_bag, interrupt, capsys):
    interrupt(BagReader, "read", 4, signal.SIGTERM)
    assert main(["labels", "extract", str(street_bag), "--every", "1", "--out", str(tmp_path / "f")]) == 1
    written = len(list((tmp_path / "f").glob("*.png")))
    assert f"{written} of 30 frames were written to {tmp_path / 'f'}" in capsys.readouterr().err
    assert 3 <= written <= 4
