# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Time other ways to run a step in OpenVINO, in turns with the backend's: state, several cameras, pre- and postprocessing.

    python benchmarks/openvino_variants.py --checkpoint street_tiny --size 320x96 --threads 1

`rows` is the backend's step: one row of cached values per older frame, passed without a copy. `fields` passes every cached
tensor separately, `stateful` keeps the state in the runtime, `batch` processes two cameras at once (time per camera), and
`inside` takes a uint8 image and returns mask and confidence.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtseg_ros.commands.bench import _random_checkpoint
from vtseg_ros.inference.backends.openvino_backend import SplitStep, convert
from vtseg_ros.inference.backends.openvino_runtime import MaskModel, core, import_openvino, mask_outputs
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.inference.step import STREAMING, StreamStep, build_step
from vtseg_ros.model.checkpoint import load_checkpoint
from vtseg_ros.profiling.benchmark import BURST, with_attention
from vtseg_ros.profiling.moving_images import moving_picture
from vtseg_ros.sizes import parse_size

CPU = torch.device("cpu")
CAMERAS = 2
VARIANTS = ("fields", "stateful", "batch", "inside")

Frame = Callable[[np.ndarray], np.ndarray]
"""From (H, W, 3) uint8 RGB to a mask (H, W) uint8."""


class FieldStep(nn.Module):
    """A step with every cached tensor of every older frame as a separate input, and those of the new frame as outputs."""

    def __init__(self, step: StreamStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        """Return logits and the cached tensors of this frame; `fields` are ordered by tensor, then by age, oldest first."""
        names = list(self.step.layout)
        older = len(fields) // len(names)
        past = {
            name: torch.cat(fields[place * older : (place + 1) * older], dim=1)
            for place, name in enumerate(names)
        }
        cache = self.step._cache(past, None)
        logits = self.step.model(images[:, None], cache)
        return logits[:, -1], *(cache.new[name] for name in names)


class StateStep(nn.Module):
    """A step that takes and returns the cached values of all older frames."""

    def __init__(self, step: StreamStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and `past` (1, k - 1, S) for the next frame."""
        logits, row = self.step(images, past)
        return logits, torch.cat([past[:, 1:], row[:, None]], dim=1)


def shared(array: np.ndarray) -> Any:
    """Return a tensor of the runtime in the array's memory."""
    return import_openvino().Tensor(array, shared_memory=True)


class Benchmark:
    """Variants of one step with full windows, fp32."""

    def __init__(self, step: StreamStep, size: tuple[int, int], window: int, config: dict[str, Any]) -> None:
        self.step, self.size, self.older, self.config = step, size, window - 1, config
        width, height = size
        self.image = torch.rand(1, 3, height, width)
        self.row = torch.zeros(1, step.state_size)
        with torch.inference_mode():
            classes = step(self.image, self.row[:, None].repeat(1, self.older, 1))[0].shape
        self.mask = MaskModel(tuple(classes), size, config)

    def request(self, model: Any) -> Any:
        """Return an inference request of an openvino.Model."""
        return core().compile_model(model, "CPU", self.config).create_infer_request()

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Return the network's input, (1, 3, H, W) float32, contiguous."""
        return to_input(image, self.size, CPU).contiguous().numpy()

    def rows_model(self) -> Any:
        """Return the model of the backend's step."""
        there = torch.ones(self.older, dtype=torch.bool)
        return convert(SplitStep(self.step), (self.image, there, *[self.row] * self.older))

    def rows_call(self, request: Any) -> Callable[[np.ndarray], None]:
        """Return a function that runs the backend's step on an input."""
        there = np.ones(self.older, bool)
        rows = deque([np.zeros((1, self.step.state_size), np.float32)] * self.older, maxlen=self.older)

        def call(pixels: np.ndarray) -> None:
            left = np.empty((1, self.step.state_size), np.float32)
            request.set_input_tensor(0, shared(pixels))
            request.set_input_tensor(1, shared(there))
            for place, row in enumerate(rows, start=2):
                request.set_input_tensor(place, shared(row))
            request.set_output_tensor(1, shared(left))
            request.infer()
            rows.append(left)

        return call

    def rows(self) -> Frame:
        """The backend's step."""
        request = self.request(self.rows_model())
        call = self.rows_call(request)

        def frame(image: np.ndarray) -> np.ndarray:
            call(self.pixels(image))
            return self.mask(request.get_output_tensor(0).data, 0.0)[0]

        return frame

    def fields(self) -> Frame:
        """See `FieldStep`."""
        shapes = [(1, 1, *shape) for shape in self.step.layout.values()]
        zeros = [torch.zeros(shape) for shape in shapes for _ in range(self.older)]
        request = self.request(convert(FieldStep(self.step), (self.image, *zeros)))
        past = [deque([np.zeros(shape, np.float32)] * self.older, maxlen=self.older) for shape in shapes]

        def frame(image: np.ndarray) -> np.ndarray:
            new = [np.empty(shape, np.float32) for shape in shapes]
            pixels = self.pixels(image)  # the runtime does not own it
            request.set_input_tensor(0, shared(pixels))
            for place, row in enumerate((row for rows in past for row in rows), start=1):
                request.set_input_tensor(place, shared(row))
            for place, row in enumerate(new, start=1):
                request.set_output_tensor(place, shared(row))
            request.infer()
            for rows, row in zip(past, new, strict=True):
                rows.append(row)
            return self.mask(request.get_output_tensor(0).data, 0.0)[0]

        return frame

    def stateful(self) -> Frame:
        """See `StateStep`; the runtime keeps the state in variables (ReadValue, Assign)."""
        from openvino.passes import MakeStateful, Manager

        model = convert(StateStep(self.step), (self.image, self.row[:, None].repeat(1, self.older, 1)))
        names = ("past", "past_next")
        model.inputs[1].get_tensor().set_names({names[0]})
        model.outputs[1].get_tensor().set_names({names[1]})
        manager = Manager()
        manager.register_pass(MakeStateful(dict([names])))
        manager.run_passes(model)
        request = self.request(model)
        # Zero keys stand for valid frames in every variant.
        for state in request.query_state():
            state.state = import_openvino().Tensor(
                np.zeros((1, self.older, self.step.state_size), np.float32)
            )

        def frame(image: np.ndarray) -> np.ndarray:
            pixels = self.pixels(image)  # the runtime does not own it
            request.set_input_tensor(0, shared(pixels))
            request.infer()
            return self.mask(request.get_output_tensor(0).data, 0.0)[0]

        return frame

    def batch(self) -> Frame:
        """Two cameras at once; every call has the same image in both."""
        batched = [tensor.repeat(CAMERAS, 1) for tensor in [self.row] * self.older]
        there = torch.ones(self.older, dtype=torch.bool)
        images = self.image.repeat(CAMERAS, 1, 1, 1)
        request = self.request(convert(SplitStep(self.step), (images, there, *batched)))
        size = (CAMERAS, self.step.state_size)
        rows = deque([np.zeros(size, np.float32)] * self.older, maxlen=self.older)

        def frame(image: np.ndarray) -> np.ndarray:
            left = np.empty(size, np.float32)
            pixels = np.concatenate([self.pixels(image) for _ in range(CAMERAS)])
            request.set_input_tensor(0, shared(pixels))
            request.set_input_tensor(1, shared(there.numpy()))
            for place, row in enumerate(rows, start=2):
                request.set_input_tensor(place, shared(row))
            request.set_output_tensor(1, shared(left))
            request.infer()
            rows.append(left)
            logits = request.get_output_tensor(0).data
            return [self.mask(logits[place : place + 1], 0.0)[0] for place in range(CAMERAS)][0]

        return frame

    def inside(self) -> Frame:
        """The conversion of the image and the mask are parts of the compiled model."""
        openvino = import_openvino()
        model = self.rows_model()
        logits, row = (one.get_node().input_value(0) for one in model.outputs)
        results, threshold = mask_outputs(logits, self.size)
        outputs = [*(one.output(0) for one in results), row]
        model = openvino.Model(outputs, [*model.get_parameters(), threshold], "frame")
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input(0).tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        steps.input(0).preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
        steps.input(0).model().set_layout(openvino.Layout("NCHW"))
        request = self.request(steps.build())
        there, none = np.ones(self.older, bool), np.zeros(1, np.float32)
        rows = deque([np.zeros((1, self.step.state_size), np.float32)] * self.older, maxlen=self.older)

        def frame(image: np.ndarray) -> np.ndarray:
            left = np.empty((1, self.step.state_size), np.float32)
            request.set_input_tensor(0, shared(np.ascontiguousarray(image)[None]))
            request.set_input_tensor(1, shared(there))
            for place, row in enumerate([*rows, none], start=2):
                request.set_input_tensor(place, shared(row))
            request.set_output_tensor(2, shared(left))
            request.infer()
            rows.append(left)
            result: np.ndarray = request.get_output_tensor(0).data[0, 0].copy()
            return result

        return frame


def main() -> None:
    """Print the median of every variant and its ratio to the backend's step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="street_tiny", help="checkpoint, or b0 with random weights")
    parser.add_argument("--size", type=parse_size, default=(320, 96), metavar="WxH")
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument(
        "--streaming", choices=[mode for mode in STREAMING if mode != "plain"], default="exact"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = _random_checkpoint("b0") if args.checkpoint == "b0" else load_checkpoint(args.checkpoint)
    checkpoint = with_attention(checkpoint, "causal" if args.streaming == "causal" else "full")
    width, height = args.size
    step = build_step(optimise(checkpoint.network, CPU, torch.float32), (height, width), args.streaming)
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": args.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    benchmark = Benchmark(step, args.size, args.window, config)
    frames: dict[str, Frame] = {name: getattr(benchmark, name)() for name in ("rows", *args.variants)}
    times: dict[str, list[float]] = {name: [] for name in frames}
    processor: dict[str, list[float]] = {name: [] for name in frames}
    same = dict.fromkeys(frames, 0.0)
    images = moving_picture(args.size, BURST)
    for _ in range(args.rounds):
        expected: list[np.ndarray] = []
        for name, frame in frames.items():
            for number, image in enumerate(images):
                began, used = time.perf_counter(), time.process_time()
                mask = frame(image)
                if number:
                    times[name].append(1e3 * (time.perf_counter() - began))
                    processor[name].append(1e3 * (time.process_time() - used))
                if name == "rows":
                    expected.append(mask)
                same[name] += float((mask == expected[number]).mean()) / (args.rounds * BURST)
    print(f"{args.checkpoint}, {width}x{height}, {args.streaming}, k = {args.window}, {args.threads} threads")
    print("variant, median ms and ratio to rows: elapsed, processor time of all threads; same class as rows")
    for name in frames:
        cells = []
        for kind in (times, processor):
            median, base = (float(np.median(kind[one])) for one in (name, "rows"))
            per_camera = median / (CAMERAS if name == "batch" else 1)
            cells.append(f"{per_camera:>9.2f}{per_camera / base:>8.3f}")
        print(f"{name:<10}{cells[0]}{cells[1]}{100 * same[name]:>9.3f} %")


if __name__ == "__main__":
    main()
