# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Train VTSeg from a package of `scripts/gpu_package.py` within a time limit, on a machine with one GPU and torch only.

`vtseg train` reads bags in worker processes, which cannot feed a fast GPU from compressed images on few cores. Here all
frames are in GPU memory, and geometry, colours and the teacher's soft targets are computed there. Losses, networks and
checkpoints are those of the package vtseg_ros. The learning rate follows a OneCycle schedule over the time limit.

Usage: python scripts/gpu_train.py drive_package.npz --out run --minutes 10 [--static-prior efficientvit_b0]
       The same command with --resume continues a run that was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.label_set import IGNORE, OUTSIDE, LabelSet
from vtseg_ros.model import VTSeg, load_checkpoint, save_checkpoint
from vtseg_ros.training.build import build_model, licence_of_run
from vtseg_ros.training.config import TrainConfig
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.loss import cross_entropy_sum
from vtseg_ros.training.teacher import Teacher, build_teacher

WARM_UP_SHARE = 0.15
NIGHT_SHARE = 0.1
"""Share of the images that are darkened after the teacher has seen them: its targets by day are right at night too."""


class Package:
    """Frames, labels and teacher of a package.

    Args:
        path: file of `scripts/gpu_package.py`.
        device: where the training frames are kept.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        arrays = np.load(path, allow_pickle=False)
        labels = json.loads(str(arrays["labels"]))
        self.labels = LabelSet(tuple(labels["names"]), tuple(tuple(color) for color in labels["colors"]))
        self.members = torch.from_numpy(arrays["members"]).to(device)
        with tempfile.TemporaryDirectory() as folder:
            config, teacher = Path(folder) / "train.yaml", Path(folder) / "teacher.safetensors"
            config.write_text(str(arrays["config"]))
            teacher.write_bytes(arrays["teacher"].tobytes())
            self.config: TrainConfig = load_config(config)
            stage = dataclasses.replace(self.config.stages[0], teacher=str(teacher))
            self.teacher: Teacher = build_teacher(stage, self.labels).to(device)
            self.licence = licence_of_run(dataclasses.replace(self.config, stages=(stage,)))
        self.stage = self.config.stages[0]
        self.images, self.ids = (_decode(arrays, "train", what).to(device) for what in ("images", "labels"))
        self.judged = tuple(_decode(arrays, "validation", what) for what in ("images", "labels"))
        self.judged_list = arrays["validation_list"]
        self.tables, self.sizes = arrays["validation_tables"], arrays["validation_sizes"]


def _decode(arrays: np.lib.npyio.NpzFile, part: str, what: str) -> Tensor:
    """Return images (n, 3, H, W) or labels (n, H, W), uint8."""
    data, ends = arrays[f"{part}_{what}"], arrays[f"{part}_{what}_end"]
    files = np.split(data, ends[:-1])
    if what == "labels":
        return torch.from_numpy(np.stack([cv2.imdecode(file, cv2.IMREAD_UNCHANGED) for file in files]))
    images = [cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def warp(images: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zoom, turn, shift and flip a batch.

    Args:
        images: (n, 3, H, W) uint8.
        ids: (n, H, W) uint8.
        generator: of the draws, on the CPU.

    Returns:
        images (n, 3, H, W) float32 in [0, 1], mirrored at the borders, and labels (n, H, W) uint8, OUTSIDE beyond the
        image.
    """
    count, _, height, width = images.shape
    draws = torch.rand(count, 5, generator=generator)
    scale = torch.exp(math.log(0.75) + draws[:, 0] * (math.log(2.0) - math.log(0.75)))
    angle = (draws[:, 1] - 0.5) * math.radians(8)
    flip = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    slack = (1 - 1 / scale).abs()
    shift_x, shift_y = (draws[:, 3] * 2 - 1) * slack, (draws[:, 4] * 2 - 1) * slack
    cos, sin, aspect = torch.cos(angle) / scale, torch.sin(angle) / scale, width / height
    rows = [
        torch.stack([cos * flip, -sin / aspect * flip, shift_x], dim=1),
        torch.stack([sin * aspect, cos, shift_y], dim=1),
    ]
    theta = torch.stack(rows, dim=1).to(images.device)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    warped = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    # Shifted so that the zeros beyond the image become OUTSIDE.
    shifted = (ids[:, None].int() - OUTSIDE).remainder(256).float()
    moved = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return warped.clamp(0, 1), ((moved[:, 0].round().int() + OUTSIDE) % 256).to(torch.uint8)


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, darken, blur and add noise: (n, 3, H, W) in [0, 1] -> the same."""
    count, device = images.shape[0], images.device
    draws = torch.rand(count, 8, generator=generator).to(device)[:, :, None, None, None]
    gain = 1 + (draws[:, 0] - 0.5) * 0.7
    contrast = 1 + (draws[:, 1] - 0.5) * 0.6
    saturation = 1 + (draws[:, 2] - 0.5) * 0.8
    tint = 1 + (torch.rand(count, 3, 1, 1, generator=generator).to(device) - 0.5) * 0.16
    out = images * gain * tint
    mean = out.mean(dim=(2, 3), keepdim=True)
    out = (out - mean) * contrast + mean
    gray = out.mean(dim=1, keepdim=True)
    out = (out - gray) * saturation + gray
    night = (draws[:, 3] < NIGHT_SHARE).float()
    dark = out.clamp(0, 1) ** 1.8 * (0.12 + 0.25 * draws[:, 4])
    out = out * (1 - night) + dark * night
    blurred = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    blur = (draws[:, 5] < 0.2).float()
    out = out * (1 - blur) + blurred * blur
    noise = torch.randn(out.shape, device=device) * (
        0.03 * draws[:, 6] * (draws[:, 7] < 0.3).float() + 0.02 * night
    )
    return (out + noise).clamp(0, 1)


@torch.inference_mode()
def validate(model: VTSeg, package: Package, device: torch.device, batch: int) -> dict[str, float]:
    """Return mIoU of network and static network: mean over the class lists that the validation frames have."""
    model.eval()
    counts = {name: [ConfusionMatrix(size) for size in package.sizes] for name in ("miou", "static_miou")}
    images, labels = package.judged
    for start in range(0, len(images), batch):
        video = images[start : start + batch].to(device)[:, None].float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, static = model(video, with_static=True)
        for name, scores in (("miou", logits), ("static_miou", static)):
            for offset, mask in enumerate(scores[:, -1].argmax(1).byte().cpu().numpy()):
                place = package.judged_list[start + offset]
                counts[name][place].update(package.tables[place][mask], labels[start + offset].numpy())
    model.train()
    return {name: float(np.mean([matrix.miou() for matrix in matrices])) for name, matrices in counts.items()}


def learning_rate(progress: float, peak: float) -> float:
    """Return the OneCycle learning rate at a share of the schedule, 0 to 1 (Smith and Topin, 2018)."""
    low, high = peak / 25, peak
    if progress < WARM_UP_SHARE:
        return low + (high - low) * (1 - math.cos(math.pi * progress / WARM_UP_SHARE)) / 2
    done = min(1.0, (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
    return high / 1e4 + (high - high / 1e4) * (1 + math.cos(math.pi * done)) / 2


class Run:
    """A training run.

    Args:
        package: what it learns from.
        args: options of the command line.
        device: GPU or CPU.
    """

    def __init__(self, package: Package, args: argparse.Namespace, device: torch.device) -> None:
        self.package, self.args, self.device = package, args, device
        torch.manual_seed(args.seed)
        model = package.config.model
        overrides = {**model.overrides, **({"static_prior": args.static_prior} if args.static_prior else {})}
        config = dataclasses.replace(package.config, model=dataclasses.replace(model, overrides=overrides))
        self.model: nn.Module = (
            build_model(config, package.labels).to(device, memory_format=torch.channels_last).train()
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=1e-4,
            weight_decay=package.config.weight_decay,
            fused=device.type == "cuda",
        )
        self.generator = torch.Generator().manual_seed(args.seed)
        self.iterations, self.spent_s, self.history = 0, 0.0, []
        self.state_file = args.out / "gpu_state.pt"
        if args.resume:
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.iterations, self.spent_s = state["iterations"], state["spent_s"]
        self.history = json.loads(state["history"])

    def save(self) -> None:
        """Write the state for --resume and the checkpoint, each to a temporary file that is then renamed."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "iterations": self.iterations,
            "spent_s": self.spent_s,
            "history": json.dumps(self.history),
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.state_file)
        width, height = self.package.config.data.size
        summary = {"iterations": self.iterations, "batch": self.args.batch, "history": self.history}
        model = self.model.float().eval()
        save_checkpoint(
            self.args.out / "last.safetensors",
            model,
            labels=self.package.labels,
            input_size=(width, height),
            training=summary,
            licence=self.package.licence,
        )
        model.train()
        (self.args.out / "history.json").write_text(json.dumps(self.history, indent=2) + "\n")

    def step(self) -> float:
        """Take one optimiser step; return the loss."""
        package, stage = self.package, self.package.stage
        chosen = torch.randint(len(package.images), (self.args.batch,), generator=self.generator).to(
            self.device
        )
        images, ids = warp(package.images[chosen], package.ids[chosen], self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            targets = package.teacher.targets(images)
            video = photometric(images, self.generator)[:, None]  # (n, 1, 3, H, W)
            logits, static = self.model(video, with_static=True)
        outside = ids == OUTSIDE
        known, valid = ids.masked_fill(outside, IGNORE), ~outside
        members = package.members if len(package.members) else None

        def loss_of(scores: Tensor) -> Tensor:
            scores = scores.float()
            labelled = cross_entropy_sum(scores, known[:, None], members)
            return labelled + package.teacher.loss_sum(scores.flatten(0, 1), targets, valid)

        loss = (loss_of(logits) + stage.static_loss * loss_of(static)) / valid.sum().clamp(min=1)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iterations += 1
        return float(loss.detach())

    def train(self) -> None:
        """Train until the time limit; validate and save now and then and at the end."""
        limit_s = self.args.minutes * 60
        last = time.monotonic()
        next_validation = self.spent_s + self.args.validate_every_s
        while self.spent_s < limit_s and (not self.args.iterations or self.iterations < self.args.iterations):
            progress = (
                self.iterations / self.args.iterations if self.args.iterations else self.spent_s / limit_s
            )
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(progress, self.args.max_lr or self.package.stage.max_lr)
            loss = self.step()
            if not math.isfinite(loss):
                raise SystemExit(
                    f"gpu_train: the loss is not finite in iteration {self.iterations}; lower --max-lr"
                )
            now = time.monotonic()
            self.spent_s += now - last
            last = now
            if self.iterations % 100 == 0:
                print(f"{self.spent_s:6.0f} s, iteration {self.iterations}, loss {loss:.3f}", flush=True)
            if self.spent_s >= next_validation:
                self.report(loss)
                next_validation = self.spent_s + self.args.validate_every_s
                last = time.monotonic()  # validation does not count
        self.report(loss)

    def report(self, loss: float) -> None:
        """Validate, print and save."""
        scores = validate(self.model, self.package, self.device, self.args.batch)
        self.history.append(
            {"iterations": self.iterations, "seconds": round(self.spent_s, 1), "loss": loss, **scores}
        )
        print(json.dumps(self.history[-1]), flush=True)
        self.save()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="training time, validation aside (default 10)"
    )
    parser.add_argument(
        "--iterations", type=int, default=0, help="end after this many as well; 0 = by time only"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--max-lr", type=float, default=0.0, help="peak learning rate; 0 = the configuration's"
    )
    parser.add_argument(
        "--static-prior", default="", help="such as efficientvit_b0 (default: the configuration's)"
    )
    parser.add_argument("--validate-every-s", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.resume and (args.out / "gpu_state.pt").exists():
        raise SystemExit(
            f"gpu_train: {args.out} holds a run; expected an empty folder. Add --resume or choose another"
        )
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    package = Package(args.package, device)
    print(
        f"{len(package.images)} training frames, {len(package.judged[0])} for validation, on {device}",
        flush=True,
    )
    run = Run(package, args, device)
    run.train()
    loaded = load_checkpoint(args.out / "last.safetensors")
    print(f"{args.out / 'last.safetensors'}: {loaded.architecture}, {run.iterations} iterations")


if __name__ == "__main__":
    main()
