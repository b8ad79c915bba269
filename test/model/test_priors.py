# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Static networks that are files or factories of the user's: what they give, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import VTSeg, VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.checkpoint import load_external_prior
from vtseg_ros.model.external_prior import check_prior_size

SIZE = (32, 64)  # height, width
LABELS = LabelSet.from_names(("road", "building", "car"))
MAPPING = (0, 0, 1, -1, 2)  # of 5 classes of the user's own
USERS_MODULE = """
import torch
from torch import nn

def network(num_classes):
    torch.manual_seed(11)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

def no_module(num_classes):
    return 3

def no_arguments():
    return nn.Identity()

def flat(num_classes):
    return nn.Flatten()
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A folder with one network in every form, exported for one image of 64x32."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_net.py").write_text(USERS_MODULE)
    namespace: dict = {}
    exec(USERS_MODULE, namespace)
    network = namespace["network"](5).eval()
    example = torch.zeros(1, 3, *SIZE)
    torch.jit.trace(network, example).save(str(folder / "net.pt"))
    torch.export.save(torch.export.export(network, (example,)), folder / "net.pt2")
    torch.onnx.export(network, (example,), str(folder / "net.onnx"), dynamo=False)
    return folder, network


SOURCES = ["net.pt", "net.pt2", "net.onnx", "users_net:network"]


def source_of(users, name, monkeypatch) -> str:
    monkeypatch.syspath_prepend(str(users[0]))
    return name if ":" in name else str(users[0] / name)


@pytest.mark.parametrize("name", SOURCES)
def test_every_form_gives_the_networks_logits(users, name, monkeypatch):
    prior = load_external_prior(source_of(users, name, monkeypatch), num_classes=5, size=SIZE)
    for batch in (1, 3):
        images = torch.rand(batch, 3, *SIZE)
        with torch.no_grad():
            assert torch.allclose(prior(images), users[1](images), atol=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_as_the_prior_of_a_vtseg(users, name, monkeypatch, tmp_path):
    """With another class list, in training and eval mode, saved without it, loaded with it, in the predictor."""
    source = source_of(users, name, monkeypatch)
    torch.manual_seed(2)
    config = VTSegConfig.preset(
        "tiny", num_classes=3, window=2, static_prior="external", prior_classes=5, class_mapping=MAPPING
    )
    model = VTSeg(config, static_prior=load_external_prior(source, num_classes=5, size=SIZE))
    model.freeze_prior(True)
    model.train()
    video = torch.rand(1, 2, 3, *SIZE)
    model(video).square().mean().backward()
    assert model.head.classify.weight.grad is not None
    model.eval()
    with torch.no_grad():
        own = users[1](video[0])
        # Classes 0 and 1 of the user's are road, 2 is building, 3 nothing, 4 car.
        expected = torch.stack([torch.maximum(own[:, 0], own[:, 1]), own[:, 2], own[:, 4]], 1)
        assert torch.allclose(model.static_logits(video[0]), expected, atol=1e-5)
        logits = model(video)[:, -1]
    file = tmp_path / "v.safetensors"
    save_checkpoint(file, model, labels=LABELS, input_size=SIZE[::-1])
    loaded = load_checkpoint(file, static_prior=source)
    with torch.no_grad():
        assert torch.allclose(loaded.model(video)[:, -1], logits, atol=1e-5)
    segmenter = VideoPredictor(file, device="cpu", static_prior=source)
    frames = (video[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    for frame in frames:
        result = segmenter.step(frame)
    with torch.no_grad():
        whole = model(torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255)[0, -1].argmax(0)
    assert (torch.from_numpy(result.mask) == whole).float().mean() > 0.999


def test_a_checkpoint_does_not_bring_or_name_its_external_prior(users, tmp_path, monkeypatch, capsys):
    config = VTSegConfig.preset(
        "tiny", num_classes=3, static_prior="external", prior_classes=5, class_mapping=MAPPING
    )
    prior = load_external_prior(source_of(users, "net.pt", monkeypatch), num_classes=5, size=SIZE)
    file = tmp_path / "v.safetensors"
    save_checkpoint(file, VTSeg(config, static_prior=prior), labels=LABELS, input_size=SIZE[::-1])
    with pytest.raises(CheckpointError, match="Name it by the parameter `static_prior`"):
        load_checkpoint(file)
    assert main(["info", str(file)]) == 2
    assert main(["info", str(file), "--static-prior", str(users[0] / "net.pt")]) == 0
    assert "external" in capsys.readouterr().out


def test_wrong_priors_are_refused_with_expected_and_got(users, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(users[0]))
    (tmp_path / "broken.pt").write_bytes(b"PK not a module")
    (tmp_path / "broken.pt2").write_bytes((users[0] / "net.pt2").read_bytes()[:900])
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for source, classes, error, words in (
        (users[0] / "net.pt", 4, ConfigError, r"expected \(1, 4, 32, 64\), got \(1, 5, 32, 64\)"),
        (users[0] / "net.onnx", 4, ConfigError, r"expected \(1, 4, 32, 64\), got \(1, 5, 32, 64\)"),
        ("users_net:flat", 5, ConfigError, r"got \(1, 6144\)"),
        ("users_net:no_module", 5, ConfigError, "expected a torch.nn.Module, got int"),
        ("users_net:no_arguments", 5, ConfigError, "calling it with num_classes=5 fails"),
        ("users_net:missing", 5, ConfigError, "cannot be imported"),
        ("no_such_package:factory", 5, ConfigError, "cannot be imported"),
        (
            tmp_path / "missing.pt",
            5,
            ConfigError,
            "no such file; expected a TorchScript, torch.export, ONNX or .safetensors file, or package.module:factory",
        ),
        (tmp_path / "broken.pt", 5, CheckpointError, "cannot be read as TorchScript"),
        (tmp_path / "broken.pt2", 5, CheckpointError, "cannot be read as torch.export"),
        (tmp_path / "broken.onnx", 5, CheckpointError, "cannot be read as ONNX"),
    ):
        with pytest.raises(error, match=words) as raised:
            load_external_prior(str(source), num_classes=classes, size=SIZE)
        assert len(str(raised.value).splitlines()) == 1


def test_a_file_exported_for_another_size_says_which_was_tried(users):
    with pytest.raises(ConfigError, match=r"fails on an image of shape \(1, 3, 64, 64\)"):
        load_external_prior(str(users[0] / "net.pt2"), num_classes=5, size=(64, 64))


def test_the_size_is_tried_where_the_network_is():
    """On a GPU as on `meta`, where this test has it."""
    network = nn.Conv2d(3, 2, 3, padding=1).to("meta")
    check_prior_size(network, (32, 64))
    with pytest.raises(ConfigError, match="fails on images of 64x32 px"):
        check_prior_size(nn.Conv2d(4, 2, 3).to("meta"), (32, 64))


def test_other_classes_need_a_mapping():
    with pytest.raises(
        ConfigError, match="class_mapping: missing; .* 5 classes of the static network, since VTSeg has 3"
    ):
        VTSegConfig.preset("tiny", num_classes=3, prior_classes=5)
    with pytest.raises(ConfigError, match=r"\(5\), got 2"):
        VTSegConfig.preset("tiny", num_classes=3, prior_classes=5, class_mapping=(0, 1))


def test_segformer_as_a_registered_prior():
    model = VTSeg(VTSegConfig.preset("tiny", num_classes=3, static_prior="segformer_b0")).eval()
    video = torch.rand(1, 1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(model.static_logits(video[0]), model.static_prior(video[0]))
    assert any(isinstance(module, nn.Dropout) for module in model.static_prior.modules())
