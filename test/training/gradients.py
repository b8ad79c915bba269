# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of updates, for test_processes.py: `gradients.py CONFIG FOLDER`, alone or under torchrun.

For each stage one update's, from the initial weights, with BatchNorm and dropout in eval mode; then a validation. The first process
writes losses and gradients, each one how many labelled pixels it had.
"""

import sys
from pathlib import Path

import torch

from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.loss import labelled_pixels
from vtseg_ros.training.run import Training
from vtseg_ros.training.update import backward

config, folder = load_config(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
training = Training(config, folder)
counts, results = [], []
for number, stage in enumerate(config.stages):
    module, optimizer = training.set_up_stage(number)
    training.model.eval()
    batches = training.data.batches(number, steps=training.steps_of[number], start=0, fabric=training.fabric)
    chunk = [next(batches) for _ in range(stage.accumulate)]
    counts.append(sum(int(labelled_pixels(batch[1])) for batch in chunk))
    loss = backward(
        training.fabric,
        module,
        chunk,
        image_network=False,
        static_loss=stage.static_loss,
        members=training.data.members(training.fabric.device),
        teacher=training.teachers[number],
    )
    gradients = {name: p.grad for name, p in training.model.named_parameters() if p.grad is not None}
    results.append({"loss": loss, "gradients": gradients})
    optimizer.zero_grad(set_to_none=True)
validator = training.data.validator(config.stages[0], fabric=training.fabric, should_stop=lambda: False)
result = validator(training.model)
scores = {"miou": result.miou, "static_miou": result.static_miou, "agreement": result.agreement}
scores |= {"sweep": list(result.miou_by_window), "attention": result.cross_frame_attention}
torch.save(counts, folder / f"counts_{training.fabric.global_rank}.pt")
if training.fabric.is_global_zero:
    torch.save({"updates": results, "validation": scores}, folder / "gradients.pt")
training.close()
