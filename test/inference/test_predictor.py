# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The predictor: exact streaming against the full window, cameras, sizes, refusals."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from conftest import make_checkpoint, randomize_batch_norm

from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError, ImageError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference.optimise import fuse
from vtseg_ros.inference.postprocess import MaskOptions, apply_ego_mask, to_mask
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import (
    EfficientViTB0,
    ERFNet,
    SegFormer,
    VTSeg,
    VTSegConfig,
    load_checkpoint,
    save_checkpoint,
)

NS = 1_000_000_000
TICK = NS // 10


def images(count, height=40, width=72):
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return [np.roll(base, 3 * index, axis=1) for index in range(count)]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The content of the tiny checkpoint, which predictors copy: reading it takes as long as the rest of most tests."""
    return load_checkpoint(tiny_checkpoint)


def test_warm_up_and_resets(tiny_checkpoint):
    segmenter = VideoPredictor(tiny_checkpoint, device="cpu")
    seen = [segmenter.step(image, (i + 1) * TICK).frames_in_window for i, image in enumerate(images(6))]
    assert seen == [1, 2, 3, 4, 4, 4]
    segmenter.reset()
    assert segmenter.step(images(1)[0], 99 * TICK).frames_in_window == 1
    repeated = segmenter.step(images(1)[0], 99 * TICK)
    assert repeated.dropped == "repeated stamp 9.900000000 s" and repeated.frames_in_window == 0
    assert "pause" in segmenter.step(images(1)[0], 999 * TICK).restarted


def test_late_frames_leave_the_window_as_it_was(loaded):
    stamps = [33, 66, 133, 100, 166, 233, 200, 266]
    late = VideoPredictor(loaded, device="cpu", window=4, max_gap_s=1.0)
    without = VideoPredictor(loaded, device="cpu", window=4, max_gap_s=1.0)
    seen = []
    for stamp, image in zip(stamps, images(8)):
        result = late.step(image, 5 * NS + stamp * NS // 1000)
        seen.append(result.frames_in_window)
        if stamp in (100, 200):
            assert f"late stamp 5.{stamp}000000 s: 0.033 s older" in result.dropped
        else:
            expected = without.step(image, 5 * NS + stamp * NS // 1000)
            np.testing.assert_array_equal(result.mask, expected.mask)
    assert seen == [1, 2, 3, 0, 4, 4, 0, 4]


def test_several_cameras_equal_their_single_runs(loaded):
    both = VideoPredictor(loaded, device="cpu")
    alone = {name: VideoPredictor(loaded, device="cpu") for name in "ab"}
    first, second = images(5), images(5, 32, 64)
    for index in range(5):
        stamp = (index + 1) * TICK
        batch = [CameraFrame("a", first[index], stamp)]
        if index > 1:  # b joins later: windows of different lengths in one call
            batch.append(CameraFrame("b", second[index], stamp))
        for frame, result in zip(batch, both.step_many(batch)):
            expected = alone[frame.camera].step(frame.image, stamp)
            assert np.array_equal(result.mask, expected.mask)
            assert result.frames_in_window == expected.frames_in_window


@pytest.mark.parametrize(
    ("output", "shape"), [("input", (40, 72)), ("network", (32, 64)), ((20, 10), (10, 20))]
)
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_output_sizes(loaded, output, shape, upsampling):
    segmenter = VideoPredictor(loaded, device="cpu", output_size=output, upsampling=upsampling)
    result = segmenter.step(images(1)[0])
    assert result.mask.shape == result.confidence.shape == shape
    assert result.mask.dtype == result.confidence.dtype == np.uint8


def test_mask_and_confidence_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 2.0], [3.0, 2.0]]).reshape(1, 3, 1, 2)
    mask, confidence = to_mask(logits, MaskOptions((2, 1), min_confidence=0.5))
    # softmax(0, 1, 3) = 0.0420, 0.1142, 0.8438; three equal logits give 1/3, below the threshold.
    assert mask.tolist() == [[2, 255]]
    assert confidence.tolist() == [[round(0.8438 * 255), 85]]


def test_resize_is_antialiased():
    stripes = np.zeros((32, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # every second column: plain bilinear sampling would keep the stripes
    small = resize_rgb(stripes, (16, 8))
    assert small.shape == (8, 16, 3) and np.abs(small[:, 2:-2].astype(int) - 127).max() <= 12


def test_ego_mask_is_stretched():
    mask = np.arange(8, dtype=np.uint8).reshape(2, 4)
    assert apply_ego_mask(mask, np.array([[True, False]])).tolist() == [[255, 255, 2, 3], [255, 255, 6, 7]]


def test_image_networks_run_in_the_same_class(tmp_path):
    save_checkpoint(tmp_path / "e.safetensors", ERFNet(num_classes=14), labels=STREET, input_size=(64, 32))
    segmenter = VideoPredictor(tmp_path / "e.safetensors", device="cpu")
    assert [segmenter.step(image).frames_in_window for image in images(2)] == [1, 1]


@pytest.mark.parametrize("kind", [ERFNet, SegFormer, EfficientViTB0, VTSeg])
def test_folding_keeps_the_output(kind):
    torch.manual_seed(0)
    if kind is VTSeg:
        network, image = VTSeg(VTSegConfig.preset("tiny", num_classes=4)), torch.rand(1, 2, 3, 32, 64)
    else:
        network, image = kind(num_classes=4), torch.rand(1, 3, 32, 64)
    randomize_batch_norm(network.eval())
    folded = fuse(network)
    kinds = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in n.modules()) for n in (folded, network)]
    assert kinds[0] < kinds[1]
    with torch.no_grad():
        assert torch.allclose(folded(image), network(image), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(device="gpu"), DeviceError, "device: unknown"),
        (dict(device="cuda:7"), DeviceError, "CUDA devices"),
        (dict(device="cpu", precision="fp16"), DeviceError, "needs a GPU"),
        (dict(device="cpu", precision="int8"), DeviceError, "precision: unknown"),
        (dict(input_size=(65, 32)), ConfigError, "multiples of 32"),
        (dict(output_size="large"), ConfigError, "output_size"),
        (dict(streaming="fast"), ConfigError, "streaming"),
        (dict(upsampling="cubic"), ConfigError, "upsampling"),
        (dict(window=-1), ConfigError, "window"),
        (dict(max_gap_s=0.0), ConfigError, "max_gap"),
        (dict(min_confidence=2.0), ConfigError, "min_confidence"),
    ],
)
def test_wrong_options_are_refused_by_name(loaded, options, error, words):
    with pytest.raises(error, match=words):
        VideoPredictor(loaded, **{"device": "cpu", **options})


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_wrong_images_are_refused_and_forgotten(loaded, shape):
    segmenter = VideoPredictor(loaded, device="cpu")
    with pytest.raises(ImageError, match="H, W, 3"):
        segmenter.step(np.zeros(shape, np.uint8))
    assert segmenter.step(images(1)[0]).frames_in_window == 1


def test_out_of_memory_is_retried_one_camera_at_a_time(loaded, monkeypatch):
    segmenter = VideoPredictor(loaded, device="cpu")
    real, sizes = segmenter._logits, []

    def limited(group):
        sizes.append(len(group))
        if len(group) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(group)

    monkeypatch.setattr(segmenter, "_logits", limited)
    for expected in (1, 2):  # the windows go on
        results = segmenter.step_many([CameraFrame(name, images(1)[0]) for name in "abc"])
        assert [r.frames_in_window for r in results] == [expected] * 3
    assert sizes == [3, 1, 1, 1] * 2


def test_a_retry_finds_the_failed_passes_memory_free(loaded, monkeypatch):
    """An error that is still being handled holds its traceback, and that the tensors of the pass that failed."""
    segmenter = VideoPredictor(loaded, device="cpu")
    real, held = segmenter._logits, []

    def limited(group):
        if len(group) > 1:
            activations = torch.zeros(100)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        assert held[-1]() is None, "the activations of the failed pass are still there"
        return real(group)

    monkeypatch.setattr(segmenter, "_logits", limited)
    results = segmenter.step_many([CameraFrame(name, images(1)[0]) for name in "ab"])
    assert [r.frames_in_window for r in results] == [1, 1]


def test_out_of_memory_in_the_upsampling_is_retried_too(loaded, monkeypatch):
    segmenter = VideoPredictor(loaded, device="cpu")
    real, calls = segmenter.backend.to_mask, []

    def limited(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(*arguments, **options)

    monkeypatch.setattr(segmenter.backend, "to_mask", limited)
    for expected in (1, 2):
        results = segmenter.step_many([CameraFrame(name, images(1)[0]) for name in "ab"])
        assert [r.frames_in_window for r in results] == [expected] * 2


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (torch.OutOfMemoryError("out of memory"), "cpu is out of memory for an image of 64x64 px"),
        (MemoryError("Unable to allocate 12 GiB"), "Unable to allocate 12 GiB"),
    ],
)
def test_out_of_memory_for_one_cameras_image_leaves_the_others_alone(loaded, monkeypatch, cause, reason):
    from vtseg_ros.inference import predictor

    segmenter = VideoPredictor(loaded, device="cpu")
    real, large = predictor.to_input, np.zeros((64, 64, 3), np.uint8)

    def limited(image, *arguments):
        if image.shape[0] == 64:
            raise cause
        return real(image, *arguments)

    monkeypatch.setattr(predictor, "to_input", limited)
    for index in (1, 2):
        frames = [CameraFrame("a", images(1)[0], index * TICK), CameraFrame("b", large, index * TICK)]
        good, bad = segmenter.step_many(frames)
        assert good.error is None and good.frames_in_window == index
        assert str(bad.error) == reason and not bad.dropped
    # The frame that left nothing behind is not known: neither a repeated stamp nor a gap within a window.
    retried = segmenter.step(images(1)[0], 2 * TICK, camera="b")
    assert retried.frames_in_window == 1 and not retried.dropped


def test_after_a_failure_the_window_starts_anew(loaded, monkeypatch):
    segmenter = VideoPredictor(loaded, device="cpu")
    segmenter.step(images(1)[0], TICK)
    with monkeypatch.context() as patch:
        patch.setattr(segmenter.backend.model.head, "forward", lambda maps: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segmenter.step(images(2)[1], 2 * TICK)
    assert segmenter.step(images(2)[1], 3 * TICK).frames_in_window == 1


def test_one_cameras_failure_leaves_the_others_alone(loaded, monkeypatch):
    segmenter, alone = (VideoPredictor(loaded, device="cpu") for _ in range(2))
    real = segmenter._logits

    def poisoned(group):
        if any(one.frame.image.min() == 255 for one in group):
            raise ValueError("white images are not liked")
        return real(group)

    monkeypatch.setattr(segmenter, "_logits", poisoned)
    white = np.full_like(images(1)[0], 255)
    for number, picture in enumerate(images(3)):
        good, bad = segmenter.step_many([CameraFrame("a", picture), CameraFrame("b", white)])
        assert np.array_equal(good.mask, alone.step(picture).mask)
        assert good.error is None and good.frames_in_window == number + 1
        assert isinstance(bad.error, ValueError) and bad.mask.size == 0 and bad.frames_in_window == 0
    assert segmenter.step(picture, camera="b").frames_in_window == 1


def test_an_external_prior_must_be_named_by_the_user(tmp_path):
    class Flat(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.stack([image[:, 0], image[:, 1], image[:, 2], image[:, 0], image[:, 1]], 1)

    torch.jit.script(Flat()).save(tmp_path / "flat.pt")
    mapping = (0, 1, 2, 3, -1)
    config = VTSegConfig.preset(
        "tiny", num_classes=14, static_prior="external", prior_classes=5, class_mapping=mapping
    )
    model = VTSeg(config, static_prior=Flat())
    save_checkpoint(tmp_path / "v.safetensors", model, labels=STREET, input_size=(64, 32))
    with pytest.raises(CheckpointError, match="static_prior"):
        VideoPredictor(tmp_path / "v.safetensors", device="cpu")
    segmenter = VideoPredictor(
        tmp_path / "v.safetensors", device="cpu", static_prior=str(tmp_path / "flat.pt")
    )
    assert segmenter.step(images(1)[0]).mask.max() < 14


def test_older_frames_change_the_mask(tmp_path):
    segmenter = VideoPredictor(
        make_checkpoint(tmp_path / "c.safetensors"), device="cpu", output_size="network"
    )
    newest, older = images(2)
    alone = segmenter.step(newest, TICK)
    segmenter.reset()
    segmenter.step(older[:, ::-1].copy(), TICK)
    assert not np.array_equal(segmenter.step(newest, 2 * TICK).confidence, alone.confidence)


class Columns(torch.nn.Module):
    """Class 1 where the red channel is above a half, else class 0."""

    def forward(self, images):
        return torch.cat([0.5 - images[:, :1], images[:, :1] - 0.5], dim=1) * 100


@pytest.mark.parametrize(
    ("mode", "seen"), [("stretch", slice(None)), ("letterbox", slice(None)), ("crop", slice(16, 48))]
)
def test_masks_lie_on_their_image_in_each_resize_mode(tmp_path, mode, seen):
    """An image with a bright square, taller than the input; what a crop does not see is unlabelled."""
    labels = LabelSet.from_names(["dark", "bright"])
    save_checkpoint(
        tmp_path / "c",
        ERFNet(num_classes=2),
        labels=labels,
        input_size=(64, 32),
        resize_mode=mode,
        temperature=50.0,
    )
    checkpoint = load_checkpoint(tmp_path / "c")
    predictor = VideoPredictor(checkpoint, device="cpu")
    assert (
        predictor.resize_mode == mode
        and VideoPredictor(checkpoint, device="cpu", resize_mode="stretch").resize_mode == "stretch"
    )
    image = np.zeros((64, 64, 3), np.uint8)
    image[24:40, 8:32] = 255
    predictor.backend.run = lambda images, past: (Columns()(images), [None])
    result = predictor.step(image)
    expected = np.full((64, 64), 255, np.uint8)
    expected[seen] = image[seen, :, 0] // 255
    inner = np.ones((64, 64), bool)
    for line in (24, 40):
        inner[line - 2 : line + 2] = False
    for line in (8, 32):
        inner[:, line - 2 : line + 2] = False
    assert result.mask.shape == (64, 64) and np.array_equal(result.mask[inner], expected[inner])
    # Logits 50 apart divided by 50 give a softmax of 1 / (1 + exp(-2)); unlabelled pixels have none.
    assert result.confidence[32, 20] == round(255 / (1 + np.exp(-2)))
    if mode == "crop":
        assert result.confidence[0, 0] == 0


def test_classes_to_keep(loaded):
    image = images(1)[0]
    every = VideoPredictor(loaded, device="cpu").step(image).mask
    segmenter = VideoPredictor(loaded, device="cpu", classes=["road", "sky"])
    kept = [STREET.names.index(name) for name in ("road", "sky")]
    assert np.array_equal(segmenter.step(image).mask, np.where(np.isin(every, kept), every, 255))
    with pytest.raises(ConfigError, match=r"^classes: unknown class; expected some of terrain, .*, got rod$"):
        segmenter.classes = ["rod", "sky"]
    assert segmenter.classes == ("road", "sky")
