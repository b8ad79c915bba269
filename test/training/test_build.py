# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a training starts from: SegFormer weights for the encoder, checkpoints, and what is refused."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

pytest.importorskip("lightning_fabric")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.label_set import CAMVID, STREET
from vtseg_ros.model import ERFNet, SegFormer, VTSeg, VTSegConfig, save_checkpoint
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.training.attention_statistics import AttentionShares
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig

SOURCE = (SourceConfig("unused"),)


def build(labels=STREET, **model):
    stage = "static" if model.get("architecture") in ("erfnet", "segformer_b0") else "video"
    config = TrainConfig(
        data=DataConfig(train=SOURCE, validation=SOURCE, size=(64, 32)),
        stages=(StageConfig(stage, steps=1),),
        model=ModelConfig(**model),
    )
    return build_model(config, labels).eval()


@pytest.fixture(scope="module")
def segformer():
    torch.manual_seed(4)
    return transformers.SegformerModel(transformers.SegformerConfig()).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(segformer, images):
    """Feature maps of RGB in [0, 1], normalised as the weights were trained."""
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        return segformer((images - mean) / std, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_encoder_starts_from_a_segformer(segformer, images, expected, tmp_path, name):
    state = segformer.state_dict()
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    model = build(init_encoder=str(tmp_path / name))
    with torch.no_grad():
        maps = model.encoder(model.normalize("encoder", images[:, None]))
    for ours, theirs in zip(maps, expected):
        assert torch.allclose(ours[:, 0], theirs, atol=1e-4)
    assert model.prior_mean.tolist() == [0, 0, 0]  # the static network's input stays in [0, 1]


def test_the_image_network_starts_from_it_too(segformer, images, expected, tmp_path):
    save_file(segformer.state_dict(), tmp_path / "model.safetensors")
    model = build(architecture="segformer_b0", init_encoder=str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        maps = model.encoder(model.normalization(images)[:, None])
    for ours, theirs in zip(maps, expected):
        assert torch.allclose(ours[:, 0], theirs, atol=1e-4)


class Payload:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


def test_files_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.bin").write_bytes(pickle.dumps({"x": Payload()}))
    torch.save({"x": Payload()}, tmp_path / "code2.bin")
    save_file({"foreign": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:-2])
    torch.save([1, 2], tmp_path / "list.bin")
    for name in (
        "code.bin",
        "code2.bin",
        "foreign.safetensors",
        "cut.safetensors",
        "list.bin",
        "missing.bin",
    ):
        with pytest.raises(CheckpointError, match="init_encoder") as caught:
            build(init_encoder=name)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "hacked").exists()
    with pytest.raises(ConfigError, match="erfnet has no encoder"):
        build(architecture="erfnet", init_encoder="x.bin")


def test_warm_starts(tmp_path):
    torch.manual_seed(2)
    erfnet, wrong = ERFNet(num_classes=len(STREET)), ERFNet(num_classes=len(CAMVID))
    save_checkpoint(tmp_path / "erfnet.safetensors", erfnet, labels=STREET, input_size=(64, 32))
    save_checkpoint(tmp_path / "camvid.safetensors", wrong, labels=CAMVID, input_size=(64, 32))
    segformer = SegFormer(num_classes=len(STREET))
    save_checkpoint(tmp_path / "segformer.safetensors", segformer, labels=STREET, input_size=(64, 32))
    tiny = VTSeg(VTSegConfig.preset("tiny", num_classes=len(STREET)))
    save_checkpoint(tmp_path / "tiny.safetensors", tiny, labels=STREET, input_size=(64, 32))

    def start(name, **model):
        return build(warm_start=str(tmp_path / f"{name}.safetensors"), **model)

    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        for architecture in ("vtseg", "gru"):
            model = start("erfnet", architecture=architecture)
            assert torch.equal(model.static_prior(image), erfnet.eval()(image))
        assert torch.equal(start("tiny", preset="tiny")(image[None]), tiny.eval()(image[None]))
        as_prior = start("segformer", overrides={"static_prior": "segformer_b0"})
        assert torch.equal(as_prior.static_prior(image), segformer.eval()(image))
    with pytest.raises(ConfigError, match="expected ERFNet, got SegFormer"):
        start("segformer")
    with pytest.raises(ConfigError, match="expected ERFNet, got VTSeg"):
        start("tiny", architecture="erfnet")
    with pytest.raises(CheckpointError, match="tiny.safetensors"):
        start("tiny", preset="b0")


def test_convolutions_over_time_start_as_those_of_one_frame(tmp_path):
    torch.manual_seed(4)
    flat = VTSeg(VTSegConfig.preset("tiny", num_classes=len(STREET)))
    save_checkpoint(tmp_path / "flat.safetensors", flat, labels=STREET, input_size=(64, 32))
    over_time = {"mix_ffn": "spatiotemporal"}
    model = build(preset="tiny", overrides=over_time, warm_start=str(tmp_path / "flat.safetensors")).eval()
    video = torch.rand(1, 3, 3, 32, 64)
    with torch.no_grad():
        assert torch.allclose(model(video), flat.eval()(video), atol=1e-5)
        for value in model.parameters():
            if value.dim() == 5:
                value.normal_()
        assert not torch.allclose(model(video), flat(video), atol=1e-2)
    save_checkpoint(tmp_path / "deep.safetensors", model, labels=STREET, input_size=(64, 32))
    with pytest.raises(CheckpointError, match="another shape"):
        build(preset="tiny", warm_start=str(tmp_path / "deep.safetensors"))


def test_a_warm_start_from_other_classes_takes_them_over_by_name(tmp_path, caplog):
    torch.manual_seed(2)
    erfnet = ERFNet(num_classes=len(CAMVID)).eval()
    save_checkpoint(tmp_path / "erfnet.safetensors", erfnet, labels=CAMVID, input_size=(64, 32))
    tiny = VTSeg(VTSegConfig.preset("tiny", num_classes=len(CAMVID)))
    tiny.set_normalization("encoder", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    save_checkpoint(tmp_path / "tiny.safetensors", tiny, labels=CAMVID, input_size=(64, 32))
    mapped = VTSegConfig.preset(
        "tiny", num_classes=len(CAMVID), prior_classes=2, class_mapping=(0, 1), static_prior="erfnet"
    )
    save_checkpoint(tmp_path / "mapped.safetensors", VTSeg(mapped), labels=CAMVID, input_size=(64, 32))
    old, new = (
        [CAMVID.names.index(n) for n in ("sky", "car")],
        [STREET.names.index(n) for n in ("sky", "car")],
    )

    image = torch.rand(1, 3, 32, 64)
    model = build(preset="tiny", warm_start=str(tmp_path / "erfnet.safetensors"))
    assert (
        "weights taken over by name: sky, tree, building, road, pole, car; as in warm_start_classes: none; "
        "newly initialised: terrain" in caplog.text
    )
    with torch.no_grad():
        assert torch.equal(model.static_prior(image)[:, new], erfnet(image)[:, old])
    model = build(preset="tiny", warm_start=str(tmp_path / "tiny.safetensors"))
    assert torch.equal(model.encoder_mean, tiny.encoder_mean)
    assert torch.equal(model.head.classify.weight[new], tiny.head.classify.weight[old])
    sources = {"truck": "car", "van": "car", "traffic-sign": "sign", "tree": "sky"}
    model = build(preset="tiny", warm_start=str(tmp_path / "erfnet.safetensors"), warm_start_classes=sources)
    assert "as in warm_start_classes: truck from car, van from car, traffic-sign from sign" in caplog.text
    old, new = (
        [CAMVID.names.index(n) for n in sources.values()],
        [STREET.names.index(n) for n in sources],
    )
    with torch.no_grad():
        assert torch.equal(model.static_prior(image)[:, new], erfnet(image)[:, old])
    for wrong, problem in (
        ({"lorry": "car"}, "unknown class of the data"),
        ({"truck": "lorry"}, "class of warm_start"),
    ):
        with pytest.raises(ConfigError, match=f"{problem}; expected one of .*, got 'lorry'"):
            build(preset="tiny", warm_start=str(tmp_path / "erfnet.safetensors"), warm_start_classes=wrong)
    with pytest.raises(ConfigError, match="warm_start_classes has no effect without warm_start"):
        build(preset="tiny", warm_start_classes=sources)
    with pytest.raises(ConfigError, match="which are not matched by name with a class_mapping"):
        build(preset="tiny", warm_start=str(tmp_path / "mapped.safetensors"))


def test_the_encoder_of_a_trained_network(tmp_path):
    torch.manual_seed(3)
    donors = {
        "segformer": SegFormer(num_classes=len(STREET)),
        "vtseg": VTSeg(VTSegConfig.preset("b0", num_classes=len(STREET), head_channels=16)),
        "tiny": VTSeg(VTSegConfig.preset("tiny", num_classes=len(STREET))),
        "erfnet": ERFNet(num_classes=len(STREET)),
    }
    donors["vtseg"].set_normalization("encoder", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    donors["segformer"].normalization.set((0.3, 0.5, 0.6), (0.2, 0.25, 0.3))
    for name, donor in donors.items():
        save_checkpoint(tmp_path / f"{name}.safetensors", donor.eval(), labels=STREET, input_size=(64, 32))

    def start(name, **model):
        return build(init_encoder=str(tmp_path / f"{name}.safetensors"), **model)

    video = torch.rand(1, 1, 3, 32, 64)
    with torch.no_grad():
        for name in ("segformer", "vtseg"):
            # The donor's normalisation belongs to its weights, whatever `normalize_encoder` asks for.
            model, donor = start(name, normalize_encoder=True), donors[name]
            given = (
                donor.normalize("encoder", video) if name == "vtseg" else donor.normalization(video[0])[None]
            )
            for ours, theirs in zip(model.encoder(model.normalize("encoder", video)), donor.encoder(given)):
                assert torch.equal(ours, theirs)
        image = video[0]
        started = start("segformer", architecture="segformer_b0")
        ours = started.encoder(started.normalization(image)[:, None])
        theirs = donors["segformer"].encoder(donors["segformer"].normalization(image)[:, None])
        assert torch.equal(ours[3], theirs[3])
    with pytest.raises(ConfigError, match="expected a segformer or vtseg, got ERFNet"):
        start("erfnet")
    with pytest.raises(ConfigError, match="expected a segformer, got VTSeg"):
        start("vtseg", architecture="segformer_b0")
    with pytest.raises(CheckpointError, match="init_encoder .*tiny.safetensors: .* has another shape"):
        start("tiny")


def test_the_decoder_starts_as_the_encoder_alone(segformer, images, tmp_path):
    """From weights for normalised RGB, folded into a first convolution that is fed with RGB in [0, 1]."""
    save_file(segformer.state_dict(), tmp_path / "model.safetensors")
    model = build(init_encoder=str(tmp_path / "model.safetensors"), init_decoder=True)
    size, video = images.shape[2:], images[:, None]
    static = torch.randn(2, 1, len(STREET), *size)
    with torch.no_grad():
        features = model.encoder(model.normalize("encoder", video))
        maps = model.decoder(static, video, features)
        assert all(map(torch.equal, maps, model.decoder(-5 * static, video, features)))
        inner = (
            ...,
            slice(4, -4),
            slice(4, -4),
        )  # away from the padded rim, where [0, 1] and normalised differ
        theirs = model.decoder.dec_blocks[0].norm(features[0][:, 0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    # Attention carries the rim's difference inwards: alike, not equal.
    alike = torch.corrcoef(torch.stack([maps[0][:, 0][inner].flatten(), theirs[inner].flatten()]))[0, 1]
    assert alike > 0.98
    model.decoder(static.requires_grad_(), video, features)[3].square().sum().backward()
    assert model.decoder.enc_blocks[0].embed.proj.weight.grad[:, : len(STREET)].abs().max() > 0
    with pytest.raises(ConfigError, match="erfnet has no decoder"):
        build(architecture="erfnet", init_decoder=True)


def test_attention_that_tells_tokens_apart():
    """Before any training: even with SegFormer's initialisation, not with Xavier's on normalised RGB."""
    video = torch.rand(1, 2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    video = torch.nn.functional.avg_pool3d(
        video, (1, 9, 9), stride=1, padding=(0, 4, 4)
    )  # patches that differ
    unevenness = {}
    for name, options in (("plain", {}), ("xavier", {"init": "xavier", "normalize_encoder": True})):
        torch.manual_seed(1)
        model = build(preset="tiny", **options)
        shares = AttentionShares(model, model.config.window)
        with torch.no_grad():
            model(video, shares.cache())
        unevenness[name] = 1 - shares.totals()[:, 1] / 2
    assert unevenness["plain"].max() < 1e-3 and (unevenness["xavier"] > 20 * unevenness["plain"]).all(), (
        unevenness
    )
    with pytest.raises(ConfigError, match="model.init must be one of segformer, xavier"):
        build(init="he")
