# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch on the CPU or a GPU: the streaming step eagerly, compiled, or as a CUDA graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vtseg_ros.inference.backends.base import Backend, BackendOptions, checked_input_size
from vtseg_ros.inference.devices import choose_precision, precision_name, resolve_device, resolve_precision
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.step import Step, build_step, choose_streaming
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.external_prior import check_prior_size
from vtseg_ros.model.registry import traits_of, without_upsampling
from vtseg_ros.model.video_network import VideoNetwork

log = logging.getLogger("vtseg_ros.inference")

StepFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TorchBackend(Backend):
    """A checkpoint in PyTorch.

    Args:
        checkpoint: with the network as trained.
        model: the same network, optimised, on `device`.
        input_size: (width, height) px.
        dtype: of weights and activations.
        streaming: `plain`, `exact` or `causal`.
        compile: use torch.compile; the first full window takes about a minute then.
        cuda_graphs: capture CUDA graphs on a GPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype,
        input_size: tuple[int, int],
        streaming: str,
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        video = traits_of(model).takes_cache
        super().__init__(
            checkpoint=checkpoint,
            device=device,
            precision=precision_name(dtype),
            input_size=input_size,
            streaming=streaming,
            video=video,
            depth=cast(VideoNetwork, model).causal_depth if video else 1,
            longest_window=cast(VideoNetwork, model).longest_window if video else None,
        )
        self.model = model
        self.step = build_step(model, (input_size[1], input_size[0]), streaming)
        graph = cuda_graphs and device.type == "cuda"
        self._runner = StepRunner(self.step, window=self.window, compile=compile, graph=graph)

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> TorchBackend:
        """See `Backend.open`."""
        device = resolve_device(options.device)
        resolve_precision(options.precision, device)  # reported before a large file is read
        threads = options.thread_count(of_two=1)
        if threads is not None:
            torch.set_num_threads(threads)
        if not isinstance(source, Checkpoint):
            source = load_checkpoint(source, static_prior=options.static_prior)
        dtype = choose_precision(options.precision, device, source.agreement)
        network = source.network
        width, height = checked_input_size(source, options)
        if traits_of(network).takes_cache:
            check_prior_size(cast(VideoNetwork, network).static_prior, (height, width))
        if options.coarse_logits:
            network = without_upsampling(network)
        model = optimise(network, device, dtype)
        return cls(
            source,
            model,
            device=device,
            dtype=dtype,
            input_size=(width, height),
            streaming=choose_streaming(model, options.streaming),
            compile=options.compile,
            cuda_graphs=options.cuda_graphs,
        )

    @property
    def mode(self) -> str:
        """`eager`, `compile`, `graph` or `compile+graph`."""
        return self._runner.mode

    def set_window(self, frames: int | None) -> None:
        """See `Backend.set_window`."""
        super().set_window(frames)
        self._runner.window = self.window

    def one_frame(self) -> Callable[[], object]:
        """See `Backend.one_frame`."""
        images = torch.zeros(1, 3, self.input_size[1], self.input_size[0], device=self.device)
        past = torch.zeros(
            1, self.window - 1, self.step.state_size, dtype=self.step.state_dtype, device=self.device
        )
        return lambda: self.step(images, past)

    def run(self, images: Tensor, past: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """See `Backend.run`; the cached values of a frame are a row (S,)."""
        return self._runner(images, past)


class StepRunner:
    """Run a step for the windows of several cameras: eagerly, compiled, or as a CUDA graph.

    Compiled code and graphs have static shapes, so they are used for full windows: all frames but the first few.
    If they fail, the reason is logged once, and the step runs eagerly. Not thread-safe; call it in inference
    mode.

    Args:
        step: the step.
        window: frames k of a full window.
        compile: use torch.compile; the first full window then takes about a minute.
        graph: capture CUDA graphs, one per number of cameras; on a GPU only.
    """

    def __init__(self, step: Step, *, window: int, compile: bool = False, graph: bool = False) -> None:
        self.step = step
        self.window = window
        self._compiled: StepFunction | None = None
        if compile:
            # Separate code for each number of cameras instead of one variant for all shapes.
            self._compiled = torch.compile(step, dynamic=False)
        self._graph = graph
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._too_large: set[tuple[int, ...]] = set()
        """Graphs that did not fit into memory, which are not tried again."""

    @property
    def mode(self) -> str:
        """`eager`, `compile`, `graph` or `compile+graph`: how full windows are executed."""
        parts = ["compile"] * (self._compiled is not None) + ["graph"] * self._graph
        return "+".join(parts) or "eager"

    def __call__(self, images: Tensor, past: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of the newest frames.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            past: for each camera the rows (S,) of its older frames, the same number for all.

        Returns:
            logits (B, C, H, W), valid until the next call, and a row (S,) per camera.
        """
        older = len(past[0])
        if older + 1 == self.window:
            if self._graph:
                answer = self._replay(images, past)
                if answer is not None:
                    return answer
            if self._compiled is not None:
                result = self._run_compiled(images, _stack(past, self.step, images))
                if result is not None:
                    return result[0], list(result[1].unbind(0))
        logits, kept = self.step(images, _stack(past, self.step, images))
        return logits, list(kept.unbind(0))

    def _run_compiled(self, images: Tensor, past: Tensor) -> tuple[Tensor, Tensor] | None:
        try:
            return cast(StepFunction, self._compiled)(images, past)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as err:  # inductor raises many kinds of errors: no compiler, missing headers, an operator
            log.warning("torch.compile is not used: %s", _first_line(err))
            self._compiled = None
            return None

    def _replay(self, images: Tensor, past: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]] | None:
        key = (images.shape[0], len(past[0]))
        if key in self._too_large:
            return None
        if key not in self._graphs:
            rows = _stack(past, self.step, images)
            # The compiler runs before the capture, and may fail.
            compiled = self._compiled is not None and self._run_compiled(images, rows) is not None
            try:
                step = cast(StepFunction, self._compiled if compiled else self.step)
                self._graphs[key] = _Graph(step, images, rows)
            except torch.OutOfMemoryError:
                self._graphs.clear()
                self._too_large.add(key)
                raise
            except Exception as err:  # an operator that cannot be captured
                log.warning("CUDA graphs are not used: %s", _first_line(err))
                self._graph = False
                return None
        return self._graphs[key](images, past)


class _Graph:
    """A captured step with its own input and output memory."""

    WARM_UP = 3
    ONE_AT_A_TIME = threading.Lock()
    """Lock for the capture: a process captures one graph at a time, and a node may load a network while another one runs."""

    def __init__(self, step: StepFunction, images: Tensor, past: Tensor) -> None:
        self.images, self.past = images.clone(), past.clone()
        self.graph = torch.cuda.CUDAGraph()
        # Streams and captures belong to the current device, which may differ from that of the images.
        with self.ONE_AT_A_TIME, torch.cuda.device(images.device):
            before, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(before)
            # A separate stream for the capture, because a failed capture may leave its stream set.
            with torch.cuda.stream(side):
                for _ in range(self.WARM_UP):
                    step(self.images, self.past)
                # Only this thread is captured; others may allocate memory meanwhile.
                with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                    self.logits, self.kept = step(self.images, self.past)
            before.wait_stream(side)

    def __call__(self, images: Tensor, past: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        self.images.copy_(images)
        for camera, rows in enumerate(past):
            if rows:
                torch.stack(list(rows), out=self.past[camera])
        with torch.cuda.device(self.images.device):
            self.graph.replay()
        return self.logits, list(self.kept.clone().unbind(0))


def _stack(past: Sequence[Sequence[Tensor]], step: Step, images: Tensor) -> Tensor:
    """Stack the states of the cameras, (B, m, S)."""
    if not past[0]:
        return images.new_empty(len(past), 0, step.state_size, dtype=step.state_dtype)
    result: Tensor = torch.stack([row for rows in past for row in rows]).unflatten(0, (len(past), -1))
    return result


def _first_line(err: Exception) -> str:
    text = str(err).strip()
    return f"{type(err).__name__}: {text.splitlines()[0]}" if text else type(err).__name__
