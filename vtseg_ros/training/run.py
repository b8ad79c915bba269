# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training runs: consecutive stages, resumable at any update, on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric.wrappers import _FabricModule
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.inference.precision import with_agreement
from vtseg_ros.model import load_checkpoint, save_checkpoint
from vtseg_ros.model.checkpoint import read_metadata, save_again
from vtseg_ros.model.licence import Licence, derived_licence
from vtseg_ros.model.registry import architecture_of, without_upsampling
from vtseg_ros.model.state_dicts import use_channels_last
from vtseg_ros.model.static_prior import EXTERNAL
from vtseg_ros.model.video_network import single_frames
from vtseg_ros.training.build import Network, build_model, has_prior, is_mapped, licence_of_run, window_length
from vtseg_ros.training.clock import Clock
from vtseg_ros.training.config import StageConfig, TrainConfig
from vtseg_ros.training.memory import keep_freed_memory
from vtseg_ros.training.processes import any_rank, launch
from vtseg_ros.training.record import Progress, Record
from vtseg_ros.training.state import (
    BEST,
    LAST,
    check_plan,
    load_state,
    plan_of,
    refuse_used,
    save_state,
    saving,
)
from vtseg_ros.training.teacher import build_teacher, teacher_digest
from vtseg_ros.training.training_data import TrainingData, build_labels
from vtseg_ros.training.update import backward, check_finite, update
from vtseg_ros.training.validation import Validator

log = logging.getLogger("vtseg_ros.training")

WARM_UP_SHARE = 0.3  # of the OneCycle schedule, its first phase
AGREEMENT_FRAMES = 8
"""Validation frames on which bf16 is compared with fp32 at the end."""


class Training:
    """A training run; see `train`."""

    def __init__(
        self,
        config: TrainConfig,
        output_dir: Path,
        *,
        resume: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.config, self.output_dir = config, output_dir
        self.should_stop = should_stop or (lambda: False)
        self.fabric = launch(config.device, config.precision)
        if not resume and self.fabric.is_global_zero:
            refuse_used(output_dir)
        self.labels = build_labels(config.data)
        torch.manual_seed(config.seed)
        self.model: Network = build_model(config, self.labels)
        self.licence = licence_of_run(config)
        self._check_prior()
        self.data = TrainingData(
            config,
            self.labels,
            length=window_length(config, self.model),
            needs_flow=architecture_of(self.model).needs_flow,
        )
        # A wrong teacher is refused now, before the first stage begins.
        self.teachers = [build_teacher(stage, self.labels) for stage in config.stages]
        self.steps_of = [self._steps(stage) for stage in config.stages]
        digests = [teacher_digest(stage.teacher) for stage in config.stages]
        self.plan = plan_of(config, self.steps_of, self.fabric.world_size, digests)
        self.state: dict[str, Any] = {}
        self.best_miou = self.validation_miou = float("nan")
        self.temperature = 1.0
        if resume:
            self._restore()
        self.record = None
        if self.fabric.is_global_zero:
            with saving(output_dir):
                output_dir.mkdir(parents=True, exist_ok=True)
                self.record = Record(
                    output_dir,
                    on_progress=on_progress,
                    history=self.state.get("history", []),
                    step=sum(self.steps_of[: self.state.get("stage", 0)]) + self.state.get("step", 0),
                )

    def close(self) -> None:
        """Close the record of the run."""
        if self.record is not None:
            self.record.close()

    def _restore(self) -> None:
        self.state = load_state(self.output_dir)
        check_plan(self.state, self.plan)
        self.model.load_state_dict(self.state["model"])
        self.best_miou, self.validation_miou = self.state["best_miou"], self.state["validation_miou"]
        # The configuration of a resumed run may leave out the weights that it started from.
        self.licence = derived_licence(self.licence, [Licence(**self.state.get("licence", {}))])
        self.temperature = self.state.get("temperature", 1.0)

    def _per_update(self, stage: StageConfig) -> int:
        return stage.batch * stage.accumulate * self.fabric.world_size

    def _steps(self, stage: StageConfig) -> int:
        return stage.steps or math.ceil(
            stage.epochs * len(self.data.windows(stage)) / self._per_update(stage)
        )

    def _check_prior(self) -> None:
        """Refuse stages and options that the static network does not support, before any stage begins."""
        if not has_prior(self.model):
            return
        external, stages = self._prior_is_external(), self.config.stages
        mapped = is_mapped(self.model)
        if (external or mapped) and any(stage.name == "static" for stage in stages):
            raise ConfigError(
                f"{'an external static network' if external else 'a static network with a class_mapping'} cannot be "
                "trained on the labels of these bags. Leave the stage `static` out"
            )
        if (external or mapped) and any(stage.static_loss for stage in stages):
            raise ConfigError(
                "static_loss: an external static network, or one with other classes, cannot be trained. Leave it out"
            )

    def _trained_part(self, stage: StageConfig) -> nn.Module:
        """Return the module that a stage trains, and freeze the rest."""
        if not has_prior(self.model):
            return cast(nn.Module, self.model)
        external = self._prior_is_external()
        if stage.name == "static":
            self.model.freeze_prior(False)
            return single_frames(self.model.static_prior)
        if stage.name == "end_to_end" and external:
            log.warning(
                "the static network is not a part of the checkpoint: it stays frozen in stage end_to_end"
            )
        self.model.freeze_prior(stage.name == "video" or external)
        return cast(nn.Module, self.model)

    def _prior_is_external(self) -> bool:
        """Return whether checkpoints leave out the weights of the static network, so that training it would be lost."""
        return bool(self.model.config_values().get("static_prior") == EXTERNAL)

    def run(self) -> bool:
        """Train all stages; return whether the run reached its end."""
        first = self.state.get("stage", 0)
        log.info(
            "labelled frames: %d for training, %d for validation",
            len(self.data.labelled),
            len(self.data.validation_windows),
        )
        for number, stage in enumerate(self.config.stages):
            if number >= first and not self._run_stage(number, stage):
                return False
        self._record_agreement()
        return True

    def set_up_stage(self, number: int) -> tuple[_FabricModule, Optimizer]:
        """Return the module that a stage trains and its optimiser, set up by Fabric."""
        stage = self.config.stages[number]
        part = self._trained_part(stage)
        part.train()
        use_channels_last(part)
        optimizer = AdamW(
            [p for p in part.parameters() if p.requires_grad],
            lr=stage.max_lr,
            weight_decay=self.config.weight_decay,
        )
        # The losses upsample logits only as far as they need.
        module, fabric_optimizer = self.fabric.setup(without_upsampling(part), optimizer)
        # Fabric derives the class of its optimiser from that of the wrapped one.
        return module, cast(Optimizer, fabric_optimizer)

    def _run_stage(self, number: int, stage: StageConfig) -> bool:
        config, fabric, steps = self.config, self.fabric, self.steps_of[number]
        module, optimizer = self.set_up_stage(number)
        schedule = OneCycleLR(
            optimizer,
            max_lr=stage.max_lr,
            total_steps=steps + 1,
            pct_start=WARM_UP_SHARE,
            anneal_strategy="cos",
        )
        start = 0
        if self.state and self.state["stage"] == number:
            start = self.state["step"]
            optimizer.load_state_dict(self.state["optimizer"])
            schedule.load_state_dict({**schedule.state_dict(), "last_epoch": start, "_step_count": start + 1})
            fabric.strategy.precision.load_state_dict(self.state.get("scaler", {}))
        validator = self.data.validator(stage, fabric=fabric, should_stop=self.should_stop)
        if self.state.get("validation_due") and not self._validate(number, stage, start, validator):
            return False  # stopped again; it is still due in the saved state
        self.state = {}
        teacher = self.teachers[number]
        if teacher is not None:
            teacher.to(fabric.device)
        members = self.data.members(fabric.device)
        batches = self.data.batches(number, steps=steps, start=start, fabric=fabric)
        clock = Clock()
        for step in range(start, steps):
            began = time.monotonic()
            chunk = [next(batches) for _ in range(stage.accumulate)]
            ready = time.monotonic()
            # Dropout depends only on the step: a resumed run draws the same random numbers.
            torch.manual_seed(
                (config.seed * 1000 + number) * 10_000_000 + step * fabric.world_size + fabric.global_rank
            )
            rate = optimizer.param_groups[0]["lr"]
            where = f"stage {stage.name}, step {step + 1} of {steps}, learning rate {rate:.3g}"
            loss = backward(
                fabric,
                module,
                chunk,
                image_network=stage.name == "static",
                newest_only=stage.name != "static" and architecture_of(self.model).trains_newest,
                static_loss=stage.static_loss,
                members=members,
                teacher=teacher,
                with_clean=self.data.with_clean(stage),
                gate_loss=stage.gate_loss,
            )
            check_finite(loss, "loss", where)
            fp16 = config.precision == "fp16"
            update(fabric, module, optimizer, clip_norm=config.clip_norm, fp16=fp16, where=where)
            schedule.step()
            clock.add(ready - began, time.monotonic() - ready)
            done = step + 1
            due = config.validate_every and done % config.validate_every == 0 or done == steps
            try:
                if due and self._validate(number, stage, done, validator):
                    due = False
            except VTSegError:  # such as a bad label: save the state, then stop
                self._save(number, done, optimizer, validation_due=True)
                raise
            self._report(number, stage, done, loss, rate, clock)
            stop = any_rank(fabric, self.should_stop())
            if done % config.save_every == 0 or done == steps or stop:
                self._save(number, done, optimizer, validation_due=bool(due))
                if stop and (due or done < steps or number < len(config.stages) - 1):
                    return False
        if clock.updates and fabric.is_global_zero:
            log.info(
                "stage %s: %d iterations in %.0f s, %.1f %% of it waiting for data",
                stage.name,
                clock.updates,
                clock.waited + clock.worked,
                100 * clock.share(),
            )
        return True

    def _validate(self, number: int, stage: StageConfig, step: int, validator: Validator) -> bool:
        """Validate and record the result; return False if stopped before the end."""
        on_prior = stage.name == "static" and has_prior(self.model)
        result = validator(self.model.static_prior if on_prior else self.model)
        if result is None:
            return False
        self.validation_miou = result.miou
        if not on_prior:
            self.temperature = result.temperature
        self.data.warn_of_corrupt()
        if self.record is None:
            return True
        with saving(self.output_dir):
            self.record.validation(stage.name, step, sum(self.steps_of[:number]) + step, result)
            if not on_prior and not self.best_miou >= result.miou:
                self.best_miou = result.miou
                self.save_weights(self.output_dir / BEST)
        return True

    def _report(
        self, number: int, stage: StageConfig, done: int, loss: float, rate: float, clock: Clock
    ) -> None:
        if self.record is None:
            return
        steps, overall = self.steps_of[number], sum(self.steps_of[:number]) + done
        per_update, windows = self._per_update(stage), len(self.data.windows(stage))
        epochs = max(1, math.ceil(steps * per_update / windows))
        log_it = done % self.config.log_every == 0 or done == steps
        progress = Progress(
            stage=stage.name,
            epoch=min(epochs, 1 + (done - 1) * per_update // windows),
            epochs=epochs,
            step=overall,
            steps=sum(self.steps_of),
            stage_step=done,
            stage_steps=steps,
            loss=loss,
            learning_rate=rate,
            validation_miou=self.validation_miou,
            seconds_left=clock.left(sum(self.steps_of) - overall),
            data_share=clock.share(),
        )
        self.record.update(progress, recent_share=clock.recent_share(), log_it=log_it)
        if log_it:
            clock.mark()

    def _save(self, number: int, step: int, optimizer: Optimizer, *, validation_due: bool) -> None:
        if self.record is None:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "stage": number,
            "step": step,
            "validation_due": validation_due,
            "best_miou": self.best_miou,
            "validation_miou": self.validation_miou,
            "temperature": self.temperature,
            "history": self.record.history,
            "plan": self.plan,
            "licence": self.licence.to_dict(),
        }
        with saving(self.output_dir):
            save_state(self.output_dir, state)
            self.save_weights(self.output_dir / LAST)

    def _record_agreement(self) -> None:
        """Measure on validation frames how far bf16 agrees with fp32, and store it in the finished checkpoints."""
        numbers = [window[-1] for window in self.data.validation_windows[:AGREEMENT_FRAMES]]
        if self.record is None or not numbers or architecture_of(self.model).needs_flow:
            return
        store = self.data.validation_store
        images = [store.window([number], 1)[0][0] for number in numbers]
        for path in (self.output_dir / BEST, self.output_dir / LAST):
            if not path.is_file():
                continue
            external = read_metadata(path)["config"].get("static_prior") == EXTERNAL
            prior = self.config.model.static_prior if external else None
            checkpoint = with_agreement(load_checkpoint(path, static_prior=prior), images)
            with saving(self.output_dir):
                save_again(path, checkpoint)
        log.info(
            "bf16 has the same class as fp32 on %.2f %% of the pixels of %d validation frames",
            100 * checkpoint.agreement["bf16"],
            len(images),
        )

    def save_weights(self, path: Path) -> None:
        """Write a checkpoint of the current network; only in the first process."""
        history = self.record.history if self.record is not None else []
        summary = {
            "config": json.loads(json.dumps(dataclasses.asdict(self.config), default=str)),
            "labelled_frames": len(self.data.labelled),
            "validation": history[-1] if history else {},
        }
        # Paths describe the machine and not the network.
        for key in ("train", "validation"):
            for source in summary["config"]["data"][key]:
                source["path"] = Path(source["path"]).name
        summary["config"]["data"].pop("cache_dir")
        for key in ("warm_start", "init_encoder", "static_prior"):
            summary["config"]["model"][key] = Path(summary["config"]["model"][key]).name
        for stage in summary["config"]["stages"]:
            stage["teacher"] = Path(stage["teacher"]).name
        save_checkpoint(
            path,
            self.model,
            labels=self.labels,
            input_size=self.config.data.size,
            training=summary,
            licence=self.licence,
            resize_mode=self.config.data.resize_mode,
            temperature=self.temperature,
        )


def train(
    config: TrainConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Run a training; under torchrun, together with the other processes.

    On a CPU, memory that the process frees stays with it (`memory.keep_freed_memory`).

    Writes `best.safetensors` (by validation mIoU), `last.safetensors`, the resumable state, `validation.jsonl` and
    TensorBoard files into `output_dir`.

    Args:
        config: Configuration of the run.
        output_dir: Folder of the run; created if missing.
        resume: Continue from the state in `output_dir`.
        on_progress: Called after every update, in the first process.
        should_stop: Called after every update; True in any process saves the state and returns.

    Returns:
        True if all stages are done, False if stopped before.

    Raises:
        ConfigError: For an invalid configuration or labels.
        BagError: If a bag cannot be used.
        CheckpointError: If a checkpoint or the saved state cannot be used.
        DeviceError: If the device or precision is not available.
        SaveError: If a file cannot be written; files saved before are complete.
        TrainingError: If the loss is not finite.
    """
    output_dir = Path(output_dir)
    training = Training(config, output_dir, resume=resume, on_progress=on_progress, should_stop=should_stop)
    if training.fabric.device.type == "cpu":
        keep_freed_memory()
    try:
        return training.run()
    finally:
        training.close()
