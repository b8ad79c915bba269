"""A training run: stages one after the other, resumable at any update, on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from vtseg_ros.data.augmentation import Augmentation
from vtseg_ros.data.flow import WindowFlow
from vtseg_ros.data.windows import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.labels import IGNORE
from vtseg_ros.model import save_checkpoint
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.priors import is_exported
from vtseg_ros.training.build import build_labels, build_model, has_prior, window_length
from vtseg_ros.training.config import StageConfig, TrainConfig
from vtseg_ros.training.loss import cross_entropy_sum, labelled_pixels
from vtseg_ros.training.samples import Positions, Samples, build_loader
from vtseg_ros.training.state import load_state, save_state
from vtseg_ros.training.validation import Validation, validate

log = logging.getLogger("vtseg_ros.training")

FABRIC_PRECISION = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
WARM_UP_SHARE = 0.3  # of the OneCycle schedule, its first phase


class TrainingError(VTSegError):
    """A training that cannot go on: the loss is not finite."""


@dataclass(frozen=True)
class Progress:
    """Where a training is; figures of the last update.

    Attributes:
        stage: name of the stage.
        epoch, epochs: of the stage, 1-based.
        step, steps: optimiser updates, all stages.
        loss: mean cross-entropy over labelled pixels, nats.
        learning_rate: of the last update.
        validation_miou: 0..100; NaN before the first.
        seconds_left: estimate.
        data_share: share of the time spent waiting for data, 0..1.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_miou: float
    seconds_left: float
    data_share: float


class Training:
    """State of a run; see `train`."""

    def __init__(
        self,
        config: TrainConfig,
        output_dir: Path,
        *,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.config, self.output_dir = config, output_dir
        self.on_progress, self.should_stop = on_progress, should_stop or (lambda: False)
        self.fabric = Fabric(accelerator=config.device, precision=FABRIC_PRECISION[config.precision], devices="auto"
                             if config.device != "cpu" else 1)  # fmt: skip
        self.fabric.launch()
        output_dir.mkdir(parents=True, exist_ok=True)
        self.labels = build_labels(config)
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.labels))
        self.length = window_length(config, self.model)
        self.train_store = self._store(config.data.train)
        self.validation_store = self._store(config.data.validation)
        self.windows = self.train_store.index.windows(self.length, label_every=config.data.label_every)
        self.validation_windows = self.validation_store.index.windows(
            self.length, label_every=config.data.validation_every
        )
        self.train_flow = self.validation_flow = None
        if isinstance(self.model, STGRU):
            flow = dict(source=config.model.flow, stride=config.data.stride)
            self.train_flow = WindowFlow(index=self.train_store.index, **flow)
            self.validation_flow = WindowFlow(index=self.validation_store.index, **flow)
        self.best_miou = float("nan")
        self.validation_miou = float("nan")
        self.history: list[dict[str, Any]] = []
        self.steps_of = [self._steps(stage) for stage in config.stages]
        self.total_steps = sum(self.steps_of)
        self.writer = self._open_tensorboard()

    def _store(self, sources) -> FrameStore:
        data = self.config.data
        index = FrameIndex(
            [BagSource(Path(s.path), s.image_topic, s.label_topic, s.start_s, s.end_s) for s in sources],
            max_gap_s=data.max_gap_s,
            stride=data.stride,
        )
        return FrameStore(
            index, size=data.size, cache_dir=Path(data.cache_dir).expanduser() if data.cache_dir else None
        )

    def _steps(self, stage: StageConfig) -> int:
        if stage.steps:
            return stage.steps
        per_update = stage.batch * stage.accumulate * self.fabric.world_size
        return math.ceil(stage.epochs * len(self.windows) / per_update)

    def _open_tensorboard(self):
        if not self.fabric.is_global_zero:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.output_dir / "tensorboard"))

    def _trained_part(self, stage: StageConfig) -> nn.Module:
        """The module that a stage trains; freezes the rest."""
        if not has_prior(self.model):
            return self.model
        exported = is_exported(self.model.static_prior)
        if stage.name == "prior":
            if exported:
                raise ConfigError("an exported static prior cannot be trained: leave the stage `prior` out")
            self.model.freeze_prior(False)
            return self.model.static_prior
        if stage.name == "end_to_end" and exported:
            log.warning("the static prior is an exported file: it stays frozen in stage end_to_end")
        self.model.freeze_prior(stage.name == "video" or exported)
        return self.model

    def run(self, resume: bool) -> bool:
        """Train all stages; returns whether it ran to the end."""
        first_stage, first_step, optimizer_state = 0, 0, None
        if resume:
            state = load_state(self.output_dir)
            self.model.load_state_dict(state["model"])
            first_stage, first_step, optimizer_state = state["stage"], state["step"], state["optimizer"]
            self.best_miou, self.validation_miou = state["best_miou"], state["validation_miou"]
            self.history = state["history"]
        for number, stage in enumerate(self.config.stages):
            if number < first_stage:
                continue
            start = first_step if number == first_stage else 0
            if not self._run_stage(number, stage, start, optimizer_state if number == first_stage else None):
                return False
        return True

    def _run_stage(self, number: int, stage: StageConfig, start: int, optimizer_state: dict | None) -> bool:
        config, fabric = self.config, self.fabric
        steps = self.steps_of[number]
        part = self._trained_part(stage)
        part.train()
        part.to(
            memory_format=torch.channels_last
        )  # what convolutions like best, on the CPU and on tensor cores
        length = 1 if stage.name == "prior" else self.length
        optimizer = AdamW(
            [p for p in part.parameters() if p.requires_grad],
            lr=stage.max_lr,
            weight_decay=config.weight_decay,
        )
        module, optimizer = fabric.setup(part, optimizer)
        schedule = OneCycleLR(
            optimizer,
            max_lr=stage.max_lr,
            total_steps=steps + 1,
            pct_start=WARM_UP_SHARE,
            anneal_strategy="cos",
        )
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
            schedule.load_state_dict({**schedule.state_dict(), "last_epoch": start, "_step_count": start + 1})
        windows = [window[-length:] for window in self.windows]
        samples = Samples(
            self.train_store,
            windows,
            length=length,
            augmentation=Augmentation(config.augmentation),
            seed=config.seed,
            stage=number,
            flow=self.train_flow if length > 1 else None,
        )
        positions = Positions(
            first=start * stage.accumulate,
            last=steps * stage.accumulate,
            batch=stage.batch,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        batches = iter(
            build_loader(samples, positions, config.data.workers, pin_memory=fabric.device.type == "cuda")
        )
        epochs = max(1, math.ceil(steps * stage.batch * stage.accumulate * fabric.world_size / len(windows)))
        waited = worked = 0.0
        for step in range(start, steps):
            began = time.monotonic()
            chunk = [next(batches) for _ in range(stage.accumulate)]
            ready = time.monotonic()
            # Dropout depends on the step alone, so that a resumed run draws what the first one would have.
            torch.manual_seed(
                (config.seed * 1000 + number) * 10_000_000 + step * fabric.world_size + fabric.global_rank
            )
            rate = optimizer.param_groups[0]["lr"]
            loss = self._update(module, optimizer, chunk, stage.name == "prior")
            schedule.step()
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is not finite ({loss}) in stage {stage.name}, step {step + 1}, learning rate {rate:.3g}. "
                    "Lower max_lr, or use fp32 or bf16"
                )
            waited, worked = waited + ready - began, worked + time.monotonic() - ready
            done = step + 1
            if config.validate_every and done % config.validate_every == 0 or done == steps:
                self._validate(number, stage, done, length)
            self._report(number, stage, done, epochs, loss, rate, waited, worked, done - start)
            if done % config.save_every == 0 or done == steps or self.should_stop():
                self._save(number, done, optimizer)
                if self.should_stop() and not (done == steps and number == len(self.config.stages) - 1):
                    return False
        return True

    def _update(self, module, optimizer, chunk, image_network: bool) -> float:
        """One optimiser update over accumulated batches; returns the mean loss over all labelled pixels."""
        fabric = self.fabric
        for batch in chunk:
            self._check_ids(batch[1])
        chunk = [fabric.to_device(batch) for batch in chunk]
        count = sum(labelled_pixels(batch[1]) for batch in chunk)
        count = fabric.all_reduce(count, reduce_op="sum") if fabric.world_size > 1 else count
        count = count.clamp(min=1)
        total = torch.zeros((), device=fabric.device)
        for index, (video, labels, *flow) in enumerate(chunk):
            video = video.float().div_(255)
            if image_network:
                video, labels = video[:, -1].contiguous(memory_format=torch.channels_last), labels[:, -1]
            with fabric.no_backward_sync(module, enabled=index < len(chunk) - 1):
                # Gradients are averaged over ranks: scaled so that the mean is over all ranks' labelled pixels.
                loss = cross_entropy_sum(module(video, *flow), labels) * (fabric.world_size / count)
                fabric.backward(loss)
            total += loss.detach()
        if self.config.clip_norm > 0:
            fabric.clip_gradients(module, optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if fabric.world_size > 1:
            total = fabric.all_reduce(total, reduce_op="mean")
        return float(total)

    def _check_ids(self, labels: torch.Tensor) -> None:
        # Here and not in the loss: on a GPU an id without a logit ends the process in an assertion.
        highest = int(torch.where(labels == IGNORE, 0, labels).max())
        if highest >= len(self.labels):
            raise ConfigError(
                f"a label has the class id {highest}, but the class list has {len(self.labels)} classes "
                f"(0..{len(self.labels) - 1}; {IGNORE} = unlabelled): data.labels or data.class_names must be the bags' own"
            )

    def _validate(self, number: int, stage: StageConfig, step: int, length: int) -> None:
        if not self.fabric.is_global_zero:
            return
        network = self.model
        if stage.name == "prior" and has_prior(network):
            network = network.static_prior
        result = validate(
            network,
            self.validation_store,
            self.validation_windows,
            length=length,
            num_classes=len(self.labels),
            device=self.fabric.device,
            flow=self.validation_flow,
        )
        self.validation_miou = result.miou
        self._note(number, stage, step, result)
        better = not self.best_miou >= result.miou
        if stage.name != "prior" or not has_prior(self.model):
            if better:
                self.best_miou = result.miou
                self.save_weights(self.output_dir / "best.safetensors")

    def _note(self, number: int, stage: StageConfig, step: int, result: Validation) -> None:
        overall = sum(self.steps_of[:number]) + step
        values = {key: value for key, value in dataclasses.asdict(result).items() if key != "iou"}
        entry = {"stage": stage.name, "step": overall, **values, "iou": [float(v) for v in result.iou]}
        self.history.append(entry)
        with (self.output_dir / "validation.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for key, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(f"validation/{key}", value, overall)
        text = ", ".join(f"{key} {value:.2f}" for key, value in values.items() if math.isfinite(value))
        log.info("validation, stage %s, step %d: %s", stage.name, step, text)

    def _report(self, number, stage, done, epochs, loss, rate, waited, worked, ran) -> None:
        if not self.fabric.is_global_zero:
            return
        overall = sum(self.steps_of[:number]) + done
        left = (waited + worked) / ran * (self.total_steps - overall)
        share = waited / max(waited + worked, 1e-9)
        per_update = stage.batch * stage.accumulate * self.fabric.world_size
        epoch = min(epochs, 1 + (done - 1) * per_update // len(self.windows))
        if done % self.config.log_every == 0 or done == self.steps_of[number]:
            log.info(
                "stage %s, step %d/%d: loss %.4f, learning rate %.2e, waited for data %.1f %%, %.0f s left",
                stage.name, done, self.steps_of[number], loss, rate, 100 * share, left,
            )  # fmt: skip
            self.writer.add_scalar("train/loss", loss, overall)
            self.writer.add_scalar("train/learning_rate", rate, overall)
            self.writer.add_scalar("train/data_share", share, overall)
        if self.on_progress:
            self.on_progress(
                Progress(
                    stage.name,
                    epoch,
                    epochs,
                    overall,
                    self.total_steps,
                    loss,
                    rate,
                    self.validation_miou,
                    left,
                    share,
                )  # fmt: skip
            )

    def _save(self, number: int, step: int, optimizer) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "stage": number,
            "step": step,
            "best_miou": self.best_miou,
            "validation_miou": self.validation_miou,
            "history": self.history,
        }
        save_state(self.output_dir, state)
        self.save_weights(self.output_dir / "last.safetensors")

    def save_weights(self, path: Path) -> None:
        """A checkpoint of the network as it is."""
        summary = {
            "config": json.loads(json.dumps(dataclasses.asdict(self.config), default=str)),
            "labelled_frames": len(self.windows),
            "validation": self.history[-1] if self.history else {},
        }
        # Where the bags lay says something of the machine and nothing of the network.
        for key in ("train", "validation"):
            for source in summary["config"]["data"][key]:
                source["path"] = Path(source["path"]).name
        summary["config"]["data"].pop("cache_dir")
        summary["config"]["model"]["warm_start"] = Path(self.config.model.warm_start).name
        save_checkpoint(
            path, self.model, labels=self.labels, input_size=self.config.data.size, training=summary
        )


def train(
    config: TrainConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train as configured.

    Writes `best.safetensors` (by validation mIoU), `last.safetensors`, the resumable state, `validation.jsonl` and
    TensorBoard files into `output_dir`.

    Args:
        config: what to train on what.
        output_dir: made if missing.
        resume: go on from the state in `output_dir`.
        on_progress: called after every update.
        should_stop: asked after every update; True = save and return.

    Returns:
        True when all stages are done, False when stopped before.

    Raises:
        ConfigError, BagError, CheckpointError: for wrong input.
        TrainingError: if the loss is not finite.
    """
    training = Training(config, Path(output_dir), on_progress=on_progress, should_stop=should_stop)
    try:
        return training.run(resume)
    finally:
        if training.writer is not None:
            training.writer.close()
