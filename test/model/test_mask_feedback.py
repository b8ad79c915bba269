# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A network of single frames that reads its previous mask: recurrence, streaming, training mode, checkpoints and runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.dataset.frame_index import BagSource, FrameIndex
from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import load_checkpoint, save_checkpoint
from vtseg_ros.model.cache import CausalCache, FrameCache
from vtseg_ros.model.efficientvit import EfficientViTB0
from vtseg_ros.model.mask_feedback import FeedbackEncoder, MaskFeedback, MaskFeedbackConfig, Previous
from vtseg_ros.model.vtseg import VTSeg
from vtseg_ros.model.vtseg_config import VTSegConfig

NS = 1_000_000_000
CLASSES = 4
SIZE = (64, 96)
LABELS = LabelSet.from_names([f"class_{number}" for number in range(CLASSES)])


VTSEG = VTSegConfig.preset("tiny", num_classes=CLASSES, embed_dims=(8, 16, 24, 32), head_channels=16)
PRIORS = ("efficientvit_b0", "vtseg")


def network(prior: str = "efficientvit_b0") -> MaskFeedback:
    """Random weights whose previous frame has an effect."""
    torch.manual_seed(3)
    inside = VTSEG.to_dict() if prior == "vtseg" else {}
    model = MaskFeedback(
        MaskFeedbackConfig(num_classes=CLASSES, static_prior=prior, static_prior_config=inside)
    )
    with torch.no_grad():
        for layer in model.encoder.out:
            torch.nn.init.normal_(layer.weight, std=1.0 if prior == "vtseg" else 0.3)
    return model.eval()


def clip(frames: int, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.rand(batch, frames, 3, *SIZE)


def efficientvit_by_hand(
    model: EfficientViTB0, image: torch.Tensor, maps: list[torch.Tensor]
) -> torch.Tensor:
    features = [model.backbone.stem((image - model.mean[:, None, None]) / model.std[:, None, None])]
    for stage, added in zip(model.backbone.stages, (*maps, 0)):
        features.append(stage(features[-1]) + added)
    return model.head(features[2:])


def vtseg_by_hand(model: VTSeg, image: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
    features = model.encoder(image[:, None])
    decoder, grids = model.decoder, []
    x = decoder.concat(model.static_prior(image), image)[:, None]
    for enc, dec, feature, added in zip(decoder.enc_blocks, decoder.dec_blocks, features, (*maps, 0)):
        added = added if isinstance(added, int) else added[:, None]
        x = dec(enc(x, FrameCache()) + added, feature, FrameCache())
        grids.append(x[:, 0])
    return model.head(grids)


BY_HAND = {"efficientvit_b0": efficientvit_by_hand, "vtseg": vtseg_by_hand}


def step_by_hand(model: MaskFeedback, video: torch.Tensor) -> torch.Tensor:
    """The recurrence written out with the static network and the encoder alone, (1, k, C, h, w)."""
    logits: list[torch.Tensor] = []
    for t in range(video.shape[1]):
        maps = [0, 0, 0]
        if t:
            size = (SIZE[0] // 4, SIZE[1] // 4)
            larger = logits[-1].shape[2] > size[0]
            mask = (
                F.avg_pool2d(logits[-1], 4)
                if larger
                else F.interpolate(logits[-1], size, mode="bilinear", align_corners=False)
            )
            x = F.conv2d(mask.softmax(1) - 0.25, model.encoder.mask.weight, model.encoder.mask.bias)
            x = x + F.conv2d(
                video[:, t - 1] - 0.45, model.encoder.pixels.weight.reshape(-1, 3, 4, 4), stride=4
            )
            for i, (layer, out) in enumerate(zip((nn.Identity(), *model.encoder.down), model.encoder.out)):
                x = F.hardswish(layer(x))
                maps[i] = out(x)
        logits.append(BY_HAND[model.config.static_prior](model.static_prior, video[:, t], maps))
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_the_recurrence_by_hand(prior):
    model, video = network(prior), clip(4)
    got = model.without_upsampling()(video)
    torch.testing.assert_close(got, step_by_hand(model, video))
    alone = model.without_upsampling()(video[:, -1:])
    assert (got[:, -1:] - alone).abs().max() > 0.05 * alone.abs().max()  # older frames count
    upsampled = F.interpolate(got[0], size=SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(video)[0], upsampled)


@torch.no_grad()
def test_an_untrained_encoder_has_no_effect():
    torch.manual_seed(1)
    model, video = MaskFeedback(MaskFeedbackConfig(num_classes=CLASSES)).eval(), clip(3)
    torch.testing.assert_close(model(video)[0], model.static_logits(video[0]))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kept", [1, 3])  # more cached frames than needed change nothing
@torch.no_grad()
def test_streaming_equals_the_whole_clip(kept, prior):
    model, video = network(prior), clip(6, batch=2)
    whole = model(video)
    past: dict[str, torch.Tensor] = {}
    for t in range(6):
        cache = CausalCache(past)
        torch.testing.assert_close(model(video[:, t : t + 1], cache)[:, -1], whole[:, t], atol=1e-4, rtol=0)
        past = {
            name: (torch.cat([past[name], new], 1) if past else new)[:, -kept:]
            for name, new in cache.new.items()
        }


@torch.no_grad()
def test_frames_that_do_not_exist_are_not_read():
    model, video = network(), clip(3)
    valid = torch.tensor([False, True, True])
    got = model(video, FrameCache(valid=valid))
    torch.testing.assert_close(got[:, 1:], model(video[:, 1:]))
    cache = CausalCache()
    model(video[:, :1], cache)
    later = model(video[:, 1:2], CausalCache(cache.new, valid=torch.tensor([False, True])))
    torch.testing.assert_close(later, model(video[:, 1:2]))


def test_only_the_newest_frame_is_trained():
    """Its gradient is that of the last step alone, after a random number of older frames without gradients."""
    model, video = network().train(), clip(3, batch=2)
    video.requires_grad_()
    starts = set()
    for seed in range(12):
        torch.manual_seed(seed)
        model.zero_grad(set_to_none=True)
        logits = model(video)
        assert logits.shape == (2, 1, CLASSES, *SIZE)
        logits.square().mean().backward()
        assert model.encoder.mask.weight.grad is not None and model.training
        starts.add(round(float(logits.detach().mean()), 5))
    assert len(starts) > 1
    model.eval()
    assert model(video).shape == (2, 3, CLASSES, *SIZE)


def test_older_frames_do_not_change_the_running_statistics():
    model, video = network(), clip(4, batch=2)
    norm = model.static_prior.backbone.stem[0].norm
    with torch.no_grad():
        model.train()
        torch.manual_seed(0)
        model(video)
        after = norm.running_mean.clone()
        norm.reset_running_stats()
        model.static_prior(video[:, -1])
    torch.testing.assert_close(after, norm.running_mean)
    assert int(norm.num_batches_tracked) == 1


def test_the_encoder_ignores_a_frame_that_does_not_exist():
    torch.manual_seed(0)
    encoder = FeedbackEncoder(CLASSES, (16, 32, 64))
    for layer in encoder.out:
        torch.nn.init.ones_(layer.bias)
    logits, images = torch.rand(2, CLASSES, 8, 12), torch.rand(2, 3, *SIZE)
    maps = encoder(Previous(logits, images, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)))
    assert [tuple(one.shape) for one in maps] == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6)]
    for one in maps:
        assert not one[0].any() and one[1].abs().max() > 0


@pytest.mark.parametrize("prior", PRIORS)
def test_a_checkpoint_contains_everything(prior, tmp_path):
    model, path = network(prior), tmp_path / "feedback.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    loaded = load_checkpoint(path)
    assert loaded.architecture == "mask_feedback" and loaded.config == {
        "num_classes": CLASSES,
        "static_prior": prior,
        "static_prior_config": VTSEG.to_dict() if prior == "vtseg" else {},
        "window": 2,
    }
    with torch.no_grad():
        assert torch.equal(loaded.network(clip(3)), model(clip(3)))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])  # compiles
def test_predictors_give_the_masks_of_the_whole_clip(backend, window, prior, tmp_path):
    if backend == "openvino":
        pytest.importorskip("openvino")
    model, path = network(prior), tmp_path / "feedback.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    predictor = VideoPredictor(path, device="cpu", backend=backend, precision="fp32", window=window)
    assert predictor.streaming == "causal"
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(6)]
    frames = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])[None] / 255
    with torch.no_grad():
        whole = model.static_logits(frames[0])[None] if window == 1 else model(frames)
    for logits, image in zip(whole[0], images):
        assert (predictor.step(image).mask == logits.argmax(0).numpy()).mean() > 0.99
    assert predictor.history == (0 if window == 1 else 30)


def test_longer_windows_are_refused(tmp_path, capsys):
    from vtseg_ros.cli import main

    path = tmp_path / "feedback.safetensors"
    save_checkpoint(path, network(), labels=LABELS, input_size=(96, 64))
    with pytest.raises(ConfigError, match="window: longer than the network supports; expected at most 2"):
        VideoPredictor(path, device="cpu", backend="torch", window=3)
    assert main(["export", str(path), "--out", str(tmp_path / "feedback.onnx"), "--window", "3"]) == 2
    assert "expected at most 2 frames, got 3" in capsys.readouterr().err


@pytest.mark.parametrize("window", [None, 1, 3, "x"])
def test_a_checkpoint_with_another_window_is_refused(window, tmp_path):
    model, path = network(), tmp_path / "feedback.safetensors"
    values = {**model.config_values(), "window": window}
    model.config_values = lambda: values
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    with pytest.raises(CheckpointError, match="window: out of range for mask_feedback; expected 2"):
        load_checkpoint(path)


def test_the_image_network_cannot_be_replaced(tmp_path):
    path, other = tmp_path / "feedback.safetensors", tmp_path / "other.safetensors"
    save_checkpoint(path, network(), labels=LABELS, input_size=(96, 64))
    save_checkpoint(other, EfficientViTB0(num_classes=CLASSES), labels=LABELS, input_size=(96, 64))
    with pytest.raises(
        CheckpointError, match="static_prior: cannot replace .* Leave the parameter static_prior out"
    ):
        load_checkpoint(path, static_prior=str(other))


def test_scores_of_single_labels_are_those_of_the_running_node(tmp_path):
    """A mask reaches back further than the window, so all frames before a label are segmented."""
    from vtseg_ros.evaluation.protocol import evaluate
    from vtseg_ros.evaluation.selection import Selection, open_systems

    model, path = network(), tmp_path / "feedback.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, CLASSES, SIZE, dtype=np.uint8)
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_label_map("/camera/label_map", LABELS, NS)
        for number, image in enumerate(images):
            bag.write_image("/camera/image", image, NS + number * NS // 10, "camera")
        bag.write_label("/camera/label", label, NS + 7 * NS // 10, "camera")
    store = FrameStore(FrameIndex([BagSource(tmp_path / "bag")]))
    selection = Selection([str(path)], windows=(2,), device="cpu", precision="fp32")
    (scores,) = evaluate(store, open_systems(selection, store.index)).scores
    with torch.no_grad():
        coarse = model.without_upsampling()(torch.from_numpy(images).permute(0, 3, 1, 2)[None] / 255)[0, -1:]
        mask = F.interpolate(coarse, SIZE, mode="bicubic", align_corners=False)[0].argmax(0).numpy()
    expected = ConfusionMatrix(CLASSES)
    expected.update(mask.astype(np.uint8), label)
    assert np.abs(scores.confusion.matrix - expected.matrix).sum() < 0.01 * label.size


def test_exact_streaming_is_refused(tmp_path):
    path = tmp_path / "feedback.safetensors"
    save_checkpoint(path, network(), labels=LABELS, input_size=(96, 64))
    with pytest.raises(ConfigError, match="streaming: exact does not fit .* expected causal"):
        VideoPredictor(path, device="cpu", backend="torch", streaming="exact")


@pytest.mark.slow  # exports
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("options", [[], ["--full-window"]])
def test_an_onnx_file_gives_the_same_masks(options, prior, tmp_path):
    pytest.importorskip("onnxruntime")
    from vtseg_ros.cli import main

    path = tmp_path / "feedback.safetensors"
    save_checkpoint(path, network(prior), labels=LABELS, input_size=(96, 64))
    out = tmp_path / "feedback.onnx"
    assert main(["export", str(path), "--out", str(out), *options]) == 0  # compares the two


@pytest.mark.parametrize("prior", PRIORS)
def test_reduced_precision_keeps_fp32_logits(prior):
    model = network(prior)
    reduced = optimise(model, torch.device("cpu"), torch.bfloat16)
    assert reduced.encoder.mask.weight.dtype == torch.bfloat16
    assert model.encoder.mask.weight.dtype == torch.float32
    part = "encoder" if prior == "vtseg" else "backbone"
    for one, dtype in ((reduced, torch.bfloat16), (model, torch.float32)):
        assert next(getattr(one.static_prior, part).parameters()).dtype == dtype
    with torch.no_grad():
        logits = reduced(clip(3))
        assert logits.dtype == torch.float32
        assert (logits - model(clip(3))).abs().max() < 0.1 * model(clip(3)).abs().max()


@pytest.mark.parametrize("prior", ["erfnet", "segformer_b0", "external", "mask_feedback"])
def test_other_static_networks_are_refused(prior):
    with pytest.raises(
        ConfigError,
        match="static_prior: does not fit .* expected one of efficientvit_b0, efficientvit_b1, vtseg",
    ):
        MaskFeedback(MaskFeedbackConfig(num_classes=2, static_prior=prior))


@pytest.mark.parametrize(
    "overrides",
    [
        {"windw": 3},
        {"window": 1},
        {"window": 65},
        {"window": 2.5},
        {"static_prior": "erfnet"},
        {"static_prior": ["efficientvit_b0"]},
    ],
)
def test_overrides_without_sense(overrides):
    with pytest.raises(ConfigError, match="overrides"):
        MaskFeedback.check_overrides(overrides)
