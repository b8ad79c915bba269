# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Test and measure the package on a GPU: CUDA tests, `vtseg bench`, masks against those of the CPU, memory over time.

Each step runs in a process of its own with what is left of the time limit, so that a step that fails or hangs costs
only its own result. See scripts/gpu_check.sh.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vtseg_ros import __version__
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.devices import processor_name, resolve_device
from vtseg_ros.model.checkpoint import WEIGHTS_DIR, load_checkpoint
from vtseg_ros.profiling.moving_images import moving_picture

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 4
GPU_SIZES = ((1024, 512), (512, 512))
CPU_SIZE = (128, 64)
GPU_FRAMES, CPU_FRAMES = 2000, 50
MASK_FRAMES = 12
MIN_STEP_S = 5.0
MEMORY_SAMPLES = 10


def size_text(size: tuple[int, int]) -> str:
    """Return `WxH`."""
    return f"{size[0]}x{size[1]}"


class Check:
    """The steps of a check and their results.

    Args:
        device: `cuda`, `cuda:N` or `cpu`.
        out: folder of the report.
        minutes: time limit of all steps together.
    """

    def __init__(self, device: str, out: Path, minutes: float) -> None:
        self.device, self.out = device, out
        self.on_gpu = resolve_device(device).type == "cuda"
        self.end = time.monotonic() + 60 * minutes
        self.report: dict[str, Any] = {"machine": machine(device, self.on_gpu), "steps": {}}

    def run(self, name: str, command: list[str], share: float) -> str:
        """Run one step in a process; returns its standard output, empty where it failed.

        Args:
            name: of the step.
            command: arguments of Python.
            share: of the time that is left, at most.
        """
        left = self.end - time.monotonic()
        if left < MIN_STEP_S:
            self._record(name, "not run: out of time", 0.0)
            return ""
        began = time.monotonic()
        limit = max(MIN_STEP_S, share * left)
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            self._record(name, f"stopped after {limit:.0f} s", limit)
            return ""
        text = (done.stderr.strip() or done.stdout.strip()).splitlines()
        ok = done.returncode == 0
        self._record(name, "ok" if ok else f"exit code {done.returncode}", time.monotonic() - began)
        if not ok:
            self.report["steps"][name]["output"] = text[-20:]
        return done.stdout if ok else ""

    def _record(self, name: str, result: str, seconds: float) -> None:
        self.report["steps"][name] = {"result": result, "seconds": round(seconds, 1)}

    def tests(self) -> None:
        """Run the CUDA tests; on the CPU there are none."""
        if not self.on_gpu:
            self._record("tests", "not run: no GPU was asked for", 0.0)
            return
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test/inference/test_cuda.py"]
        output = self.run("tests", command, share=0.3)
        self.report["tests"] = output.strip().splitlines()[-1:]

    def bench(self) -> None:
        """Time every mode of b0 and of the shipped networks, with and without CUDA graphs."""
        rows: list[dict[str, Any]] = []
        runs = [("b0", [], size) for size in (GPU_SIZES if self.on_gpu else (CPU_SIZE,))]
        if self.on_gpu:
            for name in shipped():
                runs.append((name, ["--checkpoint", name], load_checkpoint(name).input_size))
        variants = (True, False) if self.on_gpu else (False,)
        left = len(runs) * len(variants)
        for name, weights, size in runs:
            for graphs in variants:
                file = self.out / "bench.json"
                command = ["-m", "vtseg_ros.cli", "bench", *weights, "--size", size_text(size)]
                command += ["--window", str(WINDOW), "--device", self.device, "--backends", "torch"]
                command += ["--seconds", "8" if self.on_gpu else "0", "--json", str(file)]
                command += [] if graphs else ["--no-cuda-graphs"]
                title = f"bench {name} {size_text(size)}" + (" graphs" if graphs else "")
                self.run(title, command, share=0.7 / left)
                left -= 1
                if file.is_file():
                    found = json.loads(file.read_text())["modes"]
                    rows += [{"network": name, "cuda_graphs": graphs, **row} for row in found]
                    file.unlink()
        self.report["bench"] = rows

    def measure(self, name: str, share: float) -> None:
        """Run a step of this file in a process of its own and keep the JSON that it prints."""
        command = [str(Path(__file__)), "--device", self.device, "--step", name]
        output = self.run(name, command, share)
        self.report[name] = json.loads(output.splitlines()[-1]) if output else None

    def passed(self) -> bool:
        """Return whether no step failed."""
        return all(
            step["result"].startswith(("ok", "not run: no GPU")) for step in self.report["steps"].values()
        )


def shipped() -> list[str]:
    """Return the names of the shipped weights."""
    return sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))


def machine(device: str, on_gpu: bool) -> dict[str, Any]:
    """Return what the numbers belong to."""
    about: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "vtseg_ros": __version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "device": device,
        "gpu": None,
    }
    if on_gpu:
        properties = torch.cuda.get_device_properties(torch.device(device))
        about |= {
            "gpu": properties.name,
            "gpu_memory_mb": round(properties.total_memory / 1e6),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def compare_masks(device: str, on_gpu: bool) -> list[dict[str, Any]]:
    """Compare the masks of the shipped networks with those in fp32 on the CPU, over one moving image."""
    rows = []
    for name in shipped() if on_gpu else shipped()[-1:]:
        checkpoint = load_checkpoint(name)
        size = checkpoint.input_size if on_gpu else CPU_SIZE
        options = {"window": WINDOW, "input_size": size, "output_size": "network", "backend": "torch"}
        expected = VideoPredictor(checkpoint, device="cpu", precision="fp32", **options)
        found = {
            precision: VideoPredictor(checkpoint, device=device, precision=precision, **options)
            for precision in (("fp32", "bf16", "fp16") if on_gpu else ("fp32",))
        }
        shares: dict[str, list[float]] = {precision: [] for precision in found}
        for image in moving_picture(size, MASK_FRAMES):
            mask = expected.step(image).mask
            for precision, predictor in found.items():
                shares[precision].append(float((predictor.step(image).mask == mask).mean()))
        rows += [
            {"network": name, "precision": precision, "size": list(size), "agreement": float(np.mean(values))}
            for precision, values in shares.items()
        ]
    return rows


def watch_memory(device: str, on_gpu: bool) -> dict[str, Any]:
    """Run one network over many frames and sample the memory."""
    frames = GPU_FRAMES if on_gpu else CPU_FRAMES
    predictor = VideoPredictor(shipped()[-1], device=device, window=WINDOW, backend="torch")
    images = moving_picture(predictor.input_size if on_gpu else CPU_SIZE, 16)
    samples: list[dict[str, float]] = []
    for number in range(frames):
        predictor.step(images[number % len(images)])
        if number % (frames // MEMORY_SAMPLES) == frames // MEMORY_SAMPLES - 1:
            samples.append({"frame": number + 1, **memory(on_gpu)})
    first, last = samples[1], samples[-1]
    grown = {name: last[name] - first[name] for name in last if name != "frame"}
    return {"frames": frames, "samples": samples, "growth_mb": grown}


def memory(on_gpu: bool) -> dict[str, float]:
    """Return MB in use: of the GPU, or of the process."""
    if on_gpu:
        return {
            "allocated_mb": torch.cuda.memory_allocated() / 1e6,
            "reserved_mb": torch.cuda.memory_reserved() / 1e6,
        }
    # Not psutil: a machine rented for its GPU need not have it.
    status = Path("/proc/self/status").read_text()
    return {"resident_mb": int(status.split("VmRSS:")[1].split()[0]) / 1e3}


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    console = Console(markup=False, width=120)
    about = report["machine"]
    console.print(f"{about['gpu'] or about['processor']}; torch {about['torch']}; {about['date']}")
    steps = Table("step", "result", "s")
    for name, step in report["steps"].items():
        steps.add_row(name, step["result"], f"{step['seconds']:.0f}")
    console.print(steps)
    bench = Table("network", "size", "mode", "run", "precision", "p50 ms", "p95 ms", "/plain", "MB")
    for row in report["bench"]:
        ratio = row["ratio_to_plain"]
        bench.add_row(
            row["network"],
            size_text(row["size"]),
            row["mode"],
            row["run"],
            row["precision"],
            f"{row['p50_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            "" if ratio is None else f"{ratio:.3f}",
            f"{row['peak_memory_mb']:.0f}",
        )
    console.print(bench)
    for row in report["masks"] or ():
        console.print(
            f"{row['network']} {row['precision']}: {100 * row['agreement']:.3f} % of pixels as in fp32 on the CPU"
        )
    if report["memory"]:
        grown = ", ".join(f"{name} {value:+.1f}" for name, value in report["memory"]["growth_mb"].items())
        console.print(f"memory over {report['memory']['frames']} frames: {grown}")


def main() -> int:
    """Run all steps; 0 = all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default cuda)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="of gpu_report.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit of all steps (default 10)")
    parser.add_argument("--step", choices=("masks", "memory"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        on_gpu = resolve_device(args.device).type == "cuda"
        step = compare_masks if args.step == "masks" else watch_memory
        print(json.dumps(step(args.device, on_gpu)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    check = Check(args.device, args.out.resolve(), args.minutes)
    check.tests()
    check.bench()
    check.measure("masks", share=0.6)
    check.measure("memory", share=1.0)
    (args.out / "gpu_report.json").write_text(json.dumps(check.report, indent=2) + "\n")
    show(check.report)
    return 0 if check.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
