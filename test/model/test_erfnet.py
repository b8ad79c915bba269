# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ERFNet against a second building of the published network from its layer table."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vtseg_ros.errors import CheckpointError
from vtseg_ros.label_set import CITYSCAPES, LabelSet
from vtseg_ros.model import ERFNet, save_checkpoint
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig

# (kind, channels, dropout, dilation) of Romera et al., Table I, with the authors' dropout rates.
ENCODER = [
    ("down", 64),
    *[("nb", 64, 0.03, 1)] * 5,
    ("down", 128),
    *[("nb", 128, 0.3, d) for d in (2, 4, 8, 16)] * 2,
]
DECODER = [("up", 64), *[("nb", 64, 0, 1)] * 2, ("up", 16), *[("nb", 16, 0, 1)] * 2]


def functional_erfnet(state: dict, image: torch.Tensor, training: bool = False) -> list[torch.Tensor]:
    """The maps after each block and the logits, straight from a state dict under the published key names."""

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"].clone() for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, training=training, eps=1e-3)

    def up(x, name):
        y = F.conv_transpose2d(
            x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], stride=2, padding=1, output_padding=1
        )
        return F.relu(norm(y, f"{name}.bn"))

    def down(x, name):
        both = torch.cat([conv(x, f"{name}.conv", stride=2, padding=1), F.max_pool2d(x, 2, 2)], 1)
        return F.relu(norm(both, f"{name}.bn"))

    def block(x, name, dropout, d):
        y = F.relu(conv(x, f"{name}.conv3x1_1", padding=(1, 0)))
        y = F.relu(norm(conv(y, f"{name}.conv1x3_1", padding=(0, 1)), f"{name}.bn1"))
        y = F.relu(conv(y, f"{name}.conv3x1_2", padding=(d, 0), dilation=(d, 1)))
        y = norm(conv(y, f"{name}.conv1x3_2", padding=(0, d), dilation=(1, d)), f"{name}.bn2")
        return F.relu(F.dropout2d(y, dropout, training) + x)

    maps = [down(image, "encoder.initial_block")]
    for part, table in (("encoder", ENCODER), ("decoder", DECODER)):
        for index, (kind, _, *rest) in enumerate(table):
            name = f"{part}.layers.{index}"
            step = {"down": down, "up": up}.get(kind)
            maps.append(step(maps[-1], name) if step else block(maps[-1], name, *rest))
    weight, bias = state["decoder.output_conv.weight"], state["decoder.output_conv.bias"]
    return [*maps, F.conv_transpose2d(maps[-1], weight, bias, stride=2)]


def maps_of(network: ERFNet, image: torch.Tensor) -> list[torch.Tensor]:
    """The maps after each block of our network, and its logits."""
    maps: list[torch.Tensor] = []
    blocks = [network.encoder.initial_block, *network.encoder.layers, *network.decoder.layers]
    hooks = [block.register_forward_hook(lambda *a: maps.append(a[2])) for block in blocks]
    maps.append(network(image))
    for hook in hooks:
        hook.remove()
    return maps


def randomised(num_classes: int = 20) -> ERFNet:
    torch.manual_seed(0)
    network = ERFNet(num_classes=num_classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.001, 0.5)  # small: eps must matter
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.05, 0.3)
    return network


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_published_network_layer_by_layer(training):
    """In training too: the same random numbers must be drawn for the same dropout, in the same place."""
    network, image = randomised().train(training), torch.rand(2, 3, 64, 96)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        torch.manual_seed(1)
        got = maps_of(network, image)
        torch.manual_seed(1)
        expected = functional_erfnet(state, image, training)
    assert len(got) == len(expected) == 1 + len(ENCODER) + len(DECODER) + 1
    for number, (ours, theirs) in enumerate(zip(got, expected)):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4), f"after block {number}"


def test_parameters():
    assert sum(p.numel() for p in ERFNet(num_classes=20).parameters()) == 2_064_256


def test_dropout_rates():
    rates = [m.p for m in ERFNet(num_classes=2).modules() if isinstance(m, nn.Dropout2d)]
    assert rates == [0.03] * 5 + [0.3] * 8 + [0.0] * 4


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_key_names_load(prefix):
    source, target = randomised(), ERFNet(num_classes=20).eval()
    published = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    published[f"{prefix}encoder.output_conv.weight"] = torch.zeros(20, 128, 1, 1)
    published[f"{prefix}encoder.output_conv.bias"] = torch.zeros(20)
    target.load_reference_state_dict(published)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source(image), target(image))


def test_another_class_count_is_refused():
    with pytest.raises(CheckpointError, match="output_conv.*another shape"):
        ERFNet(num_classes=19).load_reference_state_dict(randomised(20).state_dict())


def test_a_published_file_becomes_the_prior_of_19_classes(tmp_path):
    """The published file (DataParallel, 19 classes and one that is ignored), loaded as in the documentation."""
    published = {f"module.{key}": value for key, value in randomised(20).state_dict().items()}
    torch.save(published, tmp_path / "erfnet_pretrained.pth")
    network = ERFNet(num_classes=20)
    network.load_reference_state_dict(torch.load(tmp_path / "erfnet_pretrained.pth", weights_only=True))
    labels = LabelSet((*CITYSCAPES.names, "ignored"), (*CITYSCAPES.colors, (0, 0, 0)))
    save_checkpoint(tmp_path / "erfnet.safetensors", network, labels=labels, input_size=(64, 32))
    config = TrainConfig(
        data=DataConfig(train=(SourceConfig("a"),), validation=(SourceConfig("b"),), size=(64, 32)),
        stages=(StageConfig("video", steps=1),),
        model=ModelConfig(
            preset="tiny",
            overrides={"prior_classes": 20, "class_mapping": [*range(19), -1]},
            warm_start=str(tmp_path / "erfnet.safetensors"),
        ),
    )
    model = build_model(config, CITYSCAPES).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model.static_logits(image), network.eval()(image)[:, :19])
