# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""EfficientViT-Seg against the authors' own outputs, and its linear attention against sums worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import randomize_batch_norm
from torch.nn import functional as F

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.label_set import CAMVID, CITYSCAPES, STREET
from vtseg_ros.model import (
    EfficientViTB0,
    EfficientViTB1,
    EfficientViTSeg,
    VTSeg,
    VTSegConfig,
    load_checkpoint,
    save_checkpoint,
)
from vtseg_ros.model.efficientvit import MultiScaleAttention, relu_linear_attention
from vtseg_ros.profiling.flops import build, costs
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig

WEIGHTS = "efficientvit_seg_b0_cityscapes.pt"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(camvid):
    """The folder of the published weights and of what the authors' implementation makes of an image."""
    folder = camvid / "teacher"
    if not (folder / WEIGHTS).is_file():
        pytest.skip(f"no {WEIGHTS} in {folder}")
    return folder


@pytest.fixture(scope="module")
def reference(teacher):
    return {key: torch.from_numpy(value) for key, value in np.load(teacher / "reference.npz").items()}


def network(kind=EfficientViTB0, num_classes=5):
    torch.manual_seed(0)
    made = kind(num_classes=num_classes).eval()
    randomize_batch_norm(made)
    return made


def test_the_published_weights_give_the_authors_outputs(teacher, reference):
    model = EfficientViTSeg.from_official(teacher / WEIGHTS)
    assert type(model) is EfficientViTB0 and model.num_classes == 19 and not model.training
    images = reference["x"] * model.std[:, None, None] + model.mean[:, None, None]
    with torch.no_grad():
        for stage, grid in enumerate(model.backbone(reference["x"])):
            assert (grid - reference[f"stage{stage}"]).abs().max() < 1e-4, stage
        assert (model.coarse_logits(images) - reference["logits"]).abs().max() < 1e-4
        upsampled = F.interpolate(reference["logits"], size=(128, 256), mode="bilinear")
        assert (model(images) - upsampled).abs().max() < 1e-4


def test_a_file_and_its_content_load_alike(teacher):
    content = torch.load(teacher / WEIGHTS, weights_only=True)
    by_file = EfficientViTSeg.from_official(teacher / WEIGHTS).state_dict()
    by_content = EfficientViTB0(num_classes=19)
    by_content.load_official_state_dict({f"module.{k}": v for k, v in content["state_dict"].items()})
    for key, value in by_content.state_dict().items():
        assert torch.equal(value, by_file[key]), key


def test_parameters_and_operations():
    """B0: counted in the published file. B1 and the operations at 2048x1024: Table 6 of the paper (4.8 M, 25 G; 4.4 G)."""
    b0, b1 = (
        costs(build(f"EfficientViT-{name}", 19), size=(2048, 1024), frames=1)[-1] for name in ("B0", "B1")
    )
    assert b0.parameters == 706_691 and round(b0.macs / 1e9, 1) == 4.4
    assert round(b1.parameters / 1e6, 1) == 4.8 and round(b1.macs / 1e9) == 25


def published(model):
    """A state dict under the authors' key names, from their naming scheme: lists, residual blocks, convolution layers."""

    def official(key):
        part, *rest = key.split(".")
        if part == "backbone" and rest[0] == "stem":
            index, *rest = rest[1:]
            start = ["backbone.input_stem.op_list", index, *([] if index == "0" else ["main"])]
        elif part == "backbone":
            stage, index, *rest = rest[1:]
            start = ["backbone.stages", stage, "op_list", index]
            if rest[0] in ("attention", "feed_forward"):
                block = {"attention": "context_module", "feed_forward": "local_module"}[rest[0]]
                start, rest = [*start, block], rest[1:]
            start.append("main")
            if rest[0] == "qkv":
                rest = ["qkv", "conv", *rest[1:]]
            elif rest[0] == "aggregate":
                rest = ["aggreg", "0", *rest[1:]]
        elif rest[0] == "inputs":
            start, rest = ["head.input_ops", rest[1], *([] if rest[1] == "2" else ["op_list", "0"])], rest[2:]
        elif rest[0] == "middle":
            start, rest = ["head.middle.op_list", rest[1], "main"], rest[2:]
        elif rest[0] == "expand":
            start, rest = ["head.output_ops.0.op_list.0"], rest[1:]
        else:
            start, rest = ["head.output_ops.0.op_list.1.conv"], rest[1:]
        return ".".join([*start, *rest])

    return {official(key): value for key, value in model.state_dict().items() if key not in ("mean", "std")}


def test_the_published_names(teacher):
    """The names that the tests below give to random weights are those of the authors' file."""
    content = torch.load(teacher / WEIGHTS, weights_only=True)["state_dict"]
    ours = published(EfficientViTB0(num_classes=19))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in content.items()}


@pytest.mark.parametrize("kind", [EfficientViTB0, EfficientViTB1])
def test_the_kind_of_network_follows_from_the_shapes(kind):
    source, image = network(kind, num_classes=7), torch.rand(1, 3, 64, 96)
    loaded = EfficientViTSeg.from_official({"state_dict": published(source)})
    assert type(loaded) is kind and loaded.num_classes == 7
    with torch.no_grad():
        assert torch.equal(loaded(image), source(image))


def test_wrong_weights_are_refused_in_one_line(tmp_path):
    good = published(network())
    stem = "backbone.input_stem.op_list.0.conv.weight"
    (tmp_path / "broken.pt").write_bytes(b"PK no archive")
    torch.save({"state_dict": good, "code": pytest.raises}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for source, error, words in (
        ({**good, stem: torch.zeros(24, 3, 3, 3)}, CheckpointError, "stem of width 24"),
        ({"a": torch.zeros(2)}, CheckpointError, "width none and keys like a"),
        ({}, CheckpointError, "keys like none"),
        ({k: v for k, v in good.items() if "stages.3" not in k}, CheckpointError, "keys are missing"),
        ({**good, "extra": torch.zeros(1)}, CheckpointError, "1 keys are not of this network: extra"),
        ({**good, stem: torch.zeros(8, 4, 3, 3)}, CheckpointError, "another shape"),
        ({"state_dict": {"a": 3}}, CheckpointError, "not a mapping of names to tensors"),
        (tmp_path / "missing.pt", ConfigError, "no such file"),
        (tmp_path / "broken.pt", CheckpointError, "broken.pt: cannot be read"),
        (tmp_path / "code.pt", CheckpointError, "code.pt: cannot be read"),
        (tmp_path / "list.pt", CheckpointError, "got list"),
    ):
        with pytest.raises(error, match=words) as raised:
            EfficientViTSeg.from_official(source)
        assert len(str(raised.value).splitlines()) == 1


def test_linear_attention_by_hand():
    """One head of width 1, tokens q = (1, 2, -1), k = (1, -3, 2), v = (4, 100, -2); a negative value counts as 0.

    Each token's weights are q * (1, 0, 2): the mean of the values is (1 * 4 + 2 * -2) / 3 = 0 for the first two, and a
    query of 0 has no weights at all. With the last value 4: (4 + 8) / 3 = 4.
    """

    def tokens(*numbers):
        return torch.tensor(numbers, dtype=torch.float32).reshape(1, 1, 1, 3)

    queries, keys = tokens(1, 2, -1), tokens(1, -3, 2)
    assert relu_linear_attention(queries, keys, tokens(4, 100, -2)).flatten().tolist() == [0, 0, 0]
    assert relu_linear_attention(queries, keys, tokens(4, 100, 4)).flatten().tolist() == pytest.approx(
        [4, 4, 0]
    )


def test_linear_attention_is_the_quadratic_one():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 30, dtype=torch.float64)
    weights = torch.einsum("nhdq,nhdk->nhqk", q.relu(), k.relu())
    expected = torch.einsum("nhqk,nhdk->nhdq", weights / weights.sum(dim=3, keepdim=True), v)
    assert (relu_linear_attention(q, k, v) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_large_activations_do_not_overflow(dtype, autocast):
    """1024 tokens of 200 sum to 16 * 200 * 200 * 1024 = 6.6e8; fp16 ends at 65504."""
    torch.manual_seed(0)
    q, k, v = (200 * torch.rand(3, 1, 2, 16, 1024) + 100).to(dtype)
    expected = relu_linear_attention(q.float(), k.float(), v.float())
    # autocast gives matrix products of fp32 inputs to the reduced type, unless they are kept out of it.
    inputs = (q.float(), k.float(), v.float()) if autocast else (q, k, v)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        got = relu_linear_attention(*inputs)
    assert got.dtype == inputs[2].dtype and torch.isfinite(got).all()
    assert (got.float() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_attention_module_in_reduced_precision(dtype):
    torch.manual_seed(0)
    module = MultiScaleAttention(32).eval()
    images = 500 * torch.randn(1, 32, 24, 40)
    with torch.no_grad():
        expected = module(images)
        qkv = module.qkv(images)
        # What the sums would reach: far above the largest fp16 number.
        assert (qkv.relu() ** 2).sum(dim=(2, 3)).max() > 10 * torch.finfo(torch.float16).max
        got = module.to(dtype)(images.to(dtype))
    assert got.dtype == dtype and torch.isfinite(got).all()
    assert (got.float() - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 65), (100, 52), (7, 9)])
def test_sizes(size):
    model = network(num_classes=3)
    with torch.no_grad():
        logits, coarse = model(torch.rand(2, 3, *size)), model.coarse_logits(torch.rand(1, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert coarse.shape == (1, 3, -(-size[0] // 8), -(-size[1] // 8))


def test_images_are_normalised_once():
    """By itself, as the static network of a VTSeg, and on the mean colour, which becomes 0."""
    model, image = network(), torch.rand(1, 3, 32, 64)
    video_model = VTSeg(
        VTSegConfig.preset("tiny", num_classes=5, static_prior="efficientvit_b0"), static_prior=model
    ).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(video_model.static_logits(image), model(image))
        model(torch.tensor([0.485, 0.456, 0.406])[None, :, None, None].expand(1, 3, 32, 64))
    assert torch.equal(seen[0], seen[1]) and seen[2].abs().max() < 1e-6
    expected = (image[0, 2] - 0.406) / 0.225  # ImageNet's blue
    assert torch.allclose(seen[0][0, 2], expected, atol=1e-6)


@pytest.mark.slow  # trains
@pytest.mark.parametrize("kind", [EfficientViTB0, EfficientViTB1])
def test_it_learns(kind):
    torch.manual_seed(0)
    model = kind(num_classes=3)
    images = torch.rand(4, 3, 64, 64)
    labels = images.argmax(dim=1)  # the strongest colour of each pixel
    images = F.avg_pool2d(images, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels = images.argmax(dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("kind", [EfficientViTB0, EfficientViTB1])
def test_a_checkpoint_keeps_it(kind, tmp_path):
    model, image = network(kind, num_classes=len(CAMVID)), torch.rand(1, 3, 32, 64)
    model.mean.copy_(torch.tensor([0.3, 0.4, 0.5]))
    save_checkpoint(tmp_path / "e.safetensors", model, labels=CAMVID, input_size=(64, 32))
    loaded = load_checkpoint(tmp_path / "e.safetensors")
    assert type(loaded.model) is kind and loaded.architecture == kind.__name__.lower().replace(
        "vitb", "vit_b"
    )
    with torch.no_grad():
        assert torch.equal(loaded.model(image), model(image))


def training(model, size=(64, 32), stage="static"):
    return TrainConfig(
        data=DataConfig(train=(SourceConfig("a"),), validation=(SourceConfig("b"),), size=size),
        stages=(StageConfig(stage, steps=1),),
        model=model,
    )


def test_training_starts_from_it(tmp_path):
    """By itself, as the static network of both video networks, and with other classes."""
    source, image = network(num_classes=len(CITYSCAPES)), torch.rand(1, 3, 32, 64)
    file = str(tmp_path / "e.safetensors")
    save_checkpoint(file, source, labels=CITYSCAPES, input_size=(64, 32))
    static = {"static_prior": "efficientvit_b0"}
    with torch.no_grad():
        expected = source(image)
        alone = build_model(
            training(ModelConfig(architecture="efficientvit_b0", warm_start=file)), CITYSCAPES
        )
        assert torch.equal(alone.eval()(image), expected)
        for architecture in ("vtseg", "gru"):
            settings = ModelConfig(architecture=architecture, warm_start=file, overrides=static)
            model = build_model(training(settings, stage="video"), CITYSCAPES).eval()
            assert torch.equal(model.static_prior(image), expected)
        fewer = build_model(
            training(ModelConfig(architecture="efficientvit_b0", warm_start=file)), STREET
        ).eval()
        for name in set(STREET.names) & set(CITYSCAPES.names):
            ours, theirs = STREET.names.index(name), CITYSCAPES.names.index(name)
            assert torch.allclose(fewer(image)[:, ours], expected[:, theirs], atol=1e-5), name
    with pytest.raises(ConfigError, match="image network: its one stage is"):
        training(ModelConfig(architecture="efficientvit_b1"), stage="video")
    with pytest.raises(ConfigError, match="model.preset has no effect on efficientvit_b0"):
        training(ModelConfig(architecture="efficientvit_b0", preset="tiny"))


@pytest.fixture(scope="module", params=["exact", "causal"])
def video_checkpoint(request, tmp_path_factory):
    """A VTSeg on EfficientViT-B0."""
    torch.manual_seed(0)
    config = VTSegConfig.preset(
        "tiny",
        num_classes=6,
        window=3,
        depths=(1, 1, 1, 1),
        static_prior="efficientvit_b0",
        attention="causal" if request.param == "causal" else "full",
    )
    model = VTSeg(config).eval()
    randomize_batch_norm(model)
    torch.nn.init.normal_(model.head.classify.weight, std=1.0)
    path = tmp_path_factory.mktemp("video") / f"{request.param}.safetensors"
    labels = type(STREET)(STREET.names[:6], STREET.colors[:6])
    save_checkpoint(path, model, labels=labels, input_size=(64, 32))
    return path


def test_streaming_as_a_static_network(video_checkpoint, monkeypatch):
    """Exact: as the full window of the last three frames; causal: as one banded forward over the clip."""
    segmenter = VideoPredictor(video_checkpoint, device="cpu", streaming=video_checkpoint.stem)
    seen, run = [], segmenter.backend.run

    def spy(images, past):
        logits, kept = run(images, past)
        seen.append(logits.clone())
        return logits, kept

    monkeypatch.setattr(segmenter.backend, "run", spy)
    model = load_checkpoint(video_checkpoint).model
    frames = np.random.default_rng(1).integers(0, 256, (7, 32, 64, 3), dtype=np.uint8)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255
    with torch.inference_mode():
        clip = model(video)
        for t, frame in enumerate(frames):
            segmenter.step(frame)
            window = model(video[:, max(0, t - 2) : t + 1])[:, -1]
            expected = clip[:, t] if video_checkpoint.stem == "causal" else window
            assert (seen[-1] - expected).abs().max() < 1e-4, t
    assert seen[-1].std() > 0.1


@pytest.mark.parametrize("upsampling", ["bilinear", "bicubic", "nearest"])
def test_the_predictor_upsamples_once(upsampling, tmp_path):
    """Coarse logits to the mask's size; the mask of the network's own size where the mask is upsampled."""
    model = network(num_classes=len(CAMVID))
    image = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():  # no class is the best everywhere
        model.head.classify.bias -= model.coarse_logits(pixels).mean(dim=(0, 2, 3))
        model.head.classify.weight *= 10
        model.head.classify.bias *= 10
    save_checkpoint(tmp_path / "e.safetensors", model, labels=CAMVID, input_size=(96, 64))
    segmenter = VideoPredictor(
        tmp_path / "e.safetensors", device="cpu", precision="fp32", upsampling=upsampling
    )
    segmenter.output_size = (120, 80)
    with torch.no_grad():
        if upsampling == "nearest":
            ids = model(pixels).argmax(1, keepdim=True).float()
            expected = F.interpolate(ids, size=(80, 120), mode="nearest-exact")[0, 0]
        else:
            logits = F.interpolate(model.coarse_logits(pixels), size=(80, 120), mode=upsampling)
            expected = logits.argmax(1)[0]
    assert (segmenter.step(image).mask == expected.numpy()).mean() > 0.999
    assert len(np.unique(expected)) > 1


@pytest.mark.slow
@pytest.mark.long  # its layers are exported below, streaming steps in inference/test_export.py
def test_its_streaming_step_is_exported(video_checkpoint, tmp_path):
    report = tmp_path / "report.json"
    code = main(["export", str(video_checkpoint), "--out", str(tmp_path / "e.onnx"), "--json", str(report)])
    content = json.loads(report.read_text())
    assert code == 0 and content["agreement"] == 1.0 and content["difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_it_is_exported_by_itself(suffix, tmp_path):
    model, image = network(num_classes=len(CAMVID)), torch.rand(1, 3, 64, 96)
    save_checkpoint(tmp_path / "e.safetensors", model, labels=CAMVID, input_size=(96, 64))
    path = tmp_path / f"e.{suffix}"
    assert main(["export", str(tmp_path / "e.safetensors"), "--out", str(path)]) == 0
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
    else:
        logits = torch.export.load(str(path)).module()(image)
    with torch.no_grad():
        assert (logits - model(image)).abs().max() < 1e-3


def test_prepared_networks_agree():
    model, image = network(EfficientViTB1), torch.rand(2, 3, 64, 64)
    ready = optimise(model, CPU, torch.float32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ready.modules())
    with torch.no_grad():
        expected = model(image)
        assert expected.std() > 0.01
        assert (ready(image) - expected).abs().max() < 1e-4 * expected.abs().max()
