"""STGRU: a static network's posteriors propagated along optical flow and gated against the present.

Source: Nilsson and Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation", CVPR 2018. As in the
authors' own network, the reset gate acts on the warped past before every convolution that reads it; their scale is on
the past alone and here on the whole (our choice: past and present then start on one scale).
The baseline GRU(.) of the VTSeg paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.model.priors import build_prior


def warp(past: Tensor, backward_flow: Tensor) -> Tensor:
    """Look up the past frame where the flow says that a pixel of the present came from.

    Args:
        past: (n, C, H, W).
        backward_flow: (n, 2, H, W), (dx, dy) in px from the present frame to the past one; NaN = unknown, kept still.

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


class STGRU(nn.Module):
    """Spatio-temporal gated recurrent unit over the posteriors of a static network.

    Args:
        num_classes: C.
        prior_name: a registered static network.
        kernel: size of the recurrent convolutions (the source: 7).
    """

    def __init__(self, *, num_classes: int, prior_name: str = "erfnet", kernel: int = 7) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.prior_name = prior_name
        self.static_prior = build_prior(prior_name, num_classes=num_classes)
        conv = dict(kernel_size=kernel, padding=kernel // 2)
        self.image_to_reset = nn.Conv2d(3, 1, **conv)
        self.past_to_update = nn.Conv2d(num_classes, 1, bias=False, **conv)
        self.present_to_update = nn.Conv2d(num_classes, 1, **conv)
        self.past_to_candidate = nn.Conv2d(num_classes, num_classes, bias=False, **conv)
        self.present_to_candidate = nn.Conv2d(num_classes, num_classes, bias=False, **conv)
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.prior_frozen = False
        self._init_gates()

    def _init_gates(self) -> None:
        for conv in (self.image_to_reset, self.past_to_update, self.present_to_update):
            nn.init.normal_(conv.weight, std=1e-3)
        # Starts as a copy of what it reads, with little of the past let in.
        nn.init.constant_(self.present_to_update.bias, 2.0)
        nn.init.zeros_(self.image_to_reset.bias)
        middle = self.past_to_candidate.kernel_size[0] // 2
        for conv in (self.past_to_candidate, self.present_to_candidate):
            nn.init.normal_(conv.weight, std=1e-3)
            with torch.no_grad():
                conv.weight[:, :, middle, middle] += torch.eye(self.num_classes)

    def freeze_prior(self, frozen: bool = True) -> None:
        """Keep the static network as it is (in eval mode too), or train it."""
        self.prior_frozen = frozen
        self.static_prior.requires_grad_(not frozen)
        self.static_prior.train(self.training and not frozen)

    def train(self, mode: bool = True) -> STGRU:
        super().train(mode)
        if self.prior_frozen:
            self.static_prior.eval()
        return self

    def step(self, past: Tensor, present: Tensor, image: Tensor, past_image: Tensor, flow: Tensor) -> Tensor:
        """One recurrence.

        Args:
            past: (n, C, H, W) probabilities of the previous frame.
            present: (n, C, H, W) probabilities of the static network on this frame.
            image, past_image: (n, 3, H, W) in [0, 1].
            flow: (n, 2, H, W) backward flow, px, from this frame to the previous one.

        Returns:
            (n, C, H, W) logits of this frame (their softmax is its new state).
        """
        reset = 1.0 - torch.tanh(self.image_to_reset(image - warp(past_image, flow)).abs())
        trusted = reset * warp(past, flow)  # the past, where the flow explains the image
        candidate = self.present_to_candidate(present) + self.past_to_candidate(trusted)
        update = torch.sigmoid(self.past_to_update(trusted) + self.present_to_update(present))
        return self.scale * ((1.0 - update) * trusted + update * candidate)

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
        """The recurrence over a window whose static logits are known.

        Args:
            static: (B, k, C, H, W) logits of the static network.
            video, flow: as `forward`.

        Returns:
            logits (B, k, C, H, W).
        """
        outputs = [static[:, 0]]
        for t in range(1, video.shape[1]):
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
