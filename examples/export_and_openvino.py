# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to ONNX and run it in OpenVINO.

The loop uses neither PyTorch nor this package. `python export_and_openvino.py drive.mp4`
"""

import argparse
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import openvino

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", nargs="?", default="drive.mp4")
parser.add_argument("--checkpoint", default="street_tiny")
parser.add_argument("--out", type=Path, default=Path("vtseg.onnx"))
args = parser.parse_args()

subprocess.run(["vtseg", "export", args.checkpoint, "--out", args.out], check=True)

model = openvino.Core().read_model(args.out)
about = json.loads(model.get_rt_info(["framework", "vtseg_ros"]).value)
shapes = {port.any_name: port.get_shape() for port in model.inputs}
network = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

# The state: per-frame features of the older frames, empty at the start.
past, valid = np.zeros(shapes["past"], np.float32), np.zeros(shapes["valid"], bool)
video = cv2.VideoCapture(args.video)
while (read := video.read())[0]:
    rgb = cv2.cvtColor(cv2.resize(read[1], about["input_size"]), cv2.COLOR_BGR2RGB)
    images = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32) / 255
    logits, past, valid = network({"images": images, "past": past, "valid": valid}).values()
    mask = logits[0].argmax(axis=0)  # (h, w) ids of about["class_names"]
    print({about["class_names"][i]: f"{(mask == i).mean():.0%}" for i in np.unique(mask)})
