# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""STGRU: propagates the posteriors of a static network along optical flow, and gates them with the current frame.

Source: Nilsson and Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation", CVPR 2018. As in the
authors' own network, the reset gate acts on the warped past before every convolution that reads it. Their scale applies to
the past only, here it applies to the whole state (our choice: past and present start with the same scale).
The baseline GRU(.) of the VTSeg paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.registry import DEFAULT_STATIC_PRIOR, check_override_keys, register
from vtseg_ros.model.static_prior import build_prior
from vtseg_ros.model.video_network import VideoNetwork

DEFAULT_WINDOW = 4
"""Default number of frames of a training window."""
OVERRIDES = ("window", "static_prior")


def warp(past: Tensor, backward_flow: Tensor) -> Tensor:
    """Warp the past frame to the present one along the backward flow.

    Args:
        past: (n, C, H, W).
        backward_flow: (n, 2, H, W), (dx, dy) in px from the present frame to the past one; NaN = unknown, treated as zero.

    Returns:
        (n, C, H, W), bilinear; the border is repeated outside the image.
    """
    height, width = past.shape[2:]
    flow = torch.nan_to_num(backward_flow)
    xs = torch.arange(width, device=past.device, dtype=past.dtype)
    ys = torch.arange(height, device=past.device, dtype=past.dtype)
    x = (xs[None, None, :] + flow[:, 0] + 0.5) * (2.0 / width) - 1.0
    y = (ys[None, :, None] + flow[:, 1] + 0.5) * (2.0 / height) - 1.0
    grid = torch.stack([x, y], dim=-1)  # (n, H, W, 2)
    return F.grid_sample(past, grid, mode="bilinear", padding_mode="border", align_corners=False)


@register(
    "gru",
    title="GRU",
    build=lambda values, static_prior=None: STGRU(
        num_classes=values["num_classes"], prior_name=values["static_prior"]
    ),
    sizes={"GRU": lambda classes: STGRU(num_classes=classes)},
    video=True,
    needs_flow=True,
    least_window=2,
    options=("overrides", "flow"),
    class_dimensions={
        r"(past|present)_to_update\.weight": (1,),
        r"(past|present)_to_candidate\.weight": (0, 1),
    },
)
class STGRU(VideoNetwork):
    """Spatio-temporal gated recurrent unit over the posteriors of a static network.

    Args:
        num_classes: C.
        prior_name: a registered static network.
        kernel: size of the recurrent convolutions (the source: 7).
    """

    def __init__(self, *, num_classes: int, prior_name: str = DEFAULT_STATIC_PRIOR, kernel: int = 7) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.prior_name = prior_name
        self.static_prior = build_prior(prior_name, num_classes=num_classes)
        self.image_to_reset = nn.Conv2d(3, 1, kernel, padding=kernel // 2)
        self.past_to_update = nn.Conv2d(num_classes, 1, kernel, bias=False, padding=kernel // 2)
        self.present_to_update = nn.Conv2d(num_classes, 1, kernel, padding=kernel // 2)
        self.past_to_candidate = nn.Conv2d(num_classes, num_classes, kernel, bias=False, padding=kernel // 2)
        self.present_to_candidate = nn.Conv2d(
            num_classes, num_classes, kernel, bias=False, padding=kernel // 2
        )
        self.scale = nn.Parameter(torch.tensor(5.0))
        self._init_gates()

    @classmethod
    def configure(cls, *, num_classes: int, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network.configure`."""
        prior = overrides.get("static_prior", DEFAULT_STATIC_PRIOR)
        return {"num_classes": num_classes, "static_prior": prior}

    @classmethod
    def check_overrides(cls, overrides: Mapping[str, Any]) -> None:
        """See `Network.check_overrides`."""
        check_override_keys("gru", overrides, OVERRIDES)
        for key, value in overrides.items():
            if key == "window" and (type(value) is not int or value < 2):
                raise ConfigError(
                    f"model.overrides.window: out of range for gru; expected at least 2 frames, got {value!r}"
                )

    @classmethod
    def training_window(cls, overrides: Mapping[str, Any]) -> int | None:
        """See `Network.training_window`."""
        result: int | None = overrides.get("window", DEFAULT_WINDOW)
        return result

    def config_values(self) -> dict[str, Any]:
        """See `Network.config_values`."""
        return {"num_classes": self.num_classes, "static_prior": self.prior_name}

    def _init_gates(self) -> None:
        for conv in (self.image_to_reset, self.past_to_update, self.present_to_update):
            nn.init.normal_(conv.weight, std=1e-3)
        # Starts as a copy of its input, with little influence of the past.
        assert self.present_to_update.bias is not None and self.image_to_reset.bias is not None
        nn.init.constant_(self.present_to_update.bias, 2.0)
        nn.init.zeros_(self.image_to_reset.bias)
        middle = self.past_to_candidate.kernel_size[0] // 2
        for conv in (self.past_to_candidate, self.present_to_candidate):
            nn.init.normal_(conv.weight, std=1e-3)
            with torch.no_grad():
                conv.weight[:, :, middle, middle] += torch.eye(self.num_classes)

    def step(self, past: Tensor, present: Tensor, image: Tensor, past_image: Tensor, flow: Tensor) -> Tensor:
        """Run one recurrence.

        Args:
            past: (n, C, H, W) probabilities of the previous frame.
            present: (n, C, H, W) probabilities of the static network on this frame.
            image: (n, 3, H, W) in [0, 1].
            past_image: (n, 3, H, W) in [0, 1], of the previous frame.
            flow: (n, 2, H, W) backward flow, px, from this frame to the previous one.

        Returns:
            (n, C, H, W) logits of this frame (their softmax is its new state).
        """
        reset = 1.0 - torch.tanh(self.image_to_reset(image - warp(past_image, flow)).abs())
        trusted = reset * warp(past, flow)  # the past, where the flow explains the image
        candidate = self.present_to_candidate(present) + self.past_to_candidate(trusted)
        update = torch.sigmoid(self.past_to_update(trusted) + self.present_to_update(present))
        result: Tensor = self.scale * ((1.0 - update) * trusted + update * candidate)
        return result

    def forward(self, video: Tensor, flow: Tensor | None = None) -> Tensor:
        """Segment a window.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last.
            flow: (B, k - 1, 2, H, W) backward flow in px, entry t from frame t + 1 to frame t; may be None at k = 1.

        Returns:
            logits (B, k, C, H, W); the first frame's are the static network's.
        """
        frames = video.shape[1]
        static = self.static_prior(video.flatten(0, 1)).unflatten(0, (-1, frames))  # (B, k, C, H, W)
        return self.propagate(static, video, flow)

    def propagate(self, static: Tensor, video: Tensor, flow: Tensor | None) -> Tensor:
        """Run the recurrence over a window whose static logits are known.

        Args:
            static: (B, k, C, H, W) logits of the static network.
            video: as `forward`.
            flow: as `forward`.

        Returns:
            logits (B, k, C, H, W).
        """
        outputs = [static[:, 0]]
        for t in range(1, video.shape[1]):
            assert flow is not None
            outputs.append(
                self.step(
                    outputs[-1].softmax(1),
                    static[:, t].softmax(1),
                    video[:, t],
                    video[:, t - 1],
                    flow[:, t - 1],
                )
            )
        return torch.stack(outputs, dim=1)
