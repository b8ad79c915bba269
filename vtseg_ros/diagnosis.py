# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Collect facts about an installation and its known problems, for bug reports.

This module imports only the standard library. It imports every other package in a child process, because a broken package
may end the process that imports it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import vtseg_ros

PACKAGES = (
    "torch",
    "numpy",
    "opencv",
    "rosbags",
    "mcap",
    "safetensors",
    "pillow",
    "onnxruntime",
    "openvino",
    "lightning-fabric",
)
"""Distributions whose versions are reported, in addition to OpenCV's and ROS's."""
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
IMPORTS = {
    "numpy": "import numpy; print(numpy.__version__)",
    "cv2": "import cv2; print(cv2.__version__)",
    "rosbags": "import rosbags.rosbag2",
    # The part that is compiled against NumPy is imported only when an image is converted.
    "cv_bridge": "import cv_bridge, importlib.util as u\nif u.find_spec('cv_bridge.boost'): import cv_bridge.boost.cv_bridge_boost",
    "rclpy": "import rclpy; print(rclpy.get_rmw_implementation_identifier())",
    "vtseg_ros.msg": "import vtseg_ros.msg",
}
"""Code that is executed in a child process."""
NEEDS_ROS = ("cv_bridge", "rclpy", "vtseg_ros.msg")
OPTIONAL = ("cv_bridge",)
EXTRAS = {
    "street": ("panda3d", "vtseg synth"),
    "video": ("imageio_ffmpeg", "overlay videos"),
    "train": ("lightning_fabric", "vtseg train"),
    "plot": ("matplotlib", "plots of vtseg bench"),
    "hub": ("huggingface_hub", "vtseg weights get"),
    "onnx": ("onnxruntime", "vtseg export, .onnx networks"),
    "openvino": ("openvino", "backend openvino"),
    "docs": ("sphinx", "scripts/build_docs.sh"),
    "view": ("rerun", "vtseg view"),
    "fleet": ("ray", "jobs on a Ray cluster (--ray)"),
    "remote": ("s3fs", "bags and results in object stores (s3://)"),
    "notebook": ("nbclient", "examples/bag_to_masks.ipynb"),
    "test": ("pytest", "the tests"),
}
"""Optional features: a module of each extra in pyproject.toml, and the feature that needs it."""
SHM_LEAST_MB = 128
"""Space for two processes with the package's Fast DDS profiles (34 MB each), and for other content."""
MEMORY_LEAST_MB = 1024
NUMPY_1 = re.compile(
    r"compiled using NumPy 1\.x|_ARRAY_API not found|numpy\.core\.multiarray failed to import"
)
CHILD_TIMEOUT_S = 120.0
SPEED_S = 2.0


@dataclass(frozen=True)
class Finding:
    """A problem or a hint.

    Attributes:
        name: short identifier, such as `numpy_1_module`.
        text: what is wrong.
        remedy: what to do.
        problem: False for a hint: a missing feature.
    """

    name: str
    text: str
    remedy: str
    problem: bool = True


@dataclass
class Diagnosis:
    """Facts by section and findings."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**self.facts, "findings": [asdict(finding) for finding in self.findings]}


@dataclass(frozen=True)
class _Child:
    """Result of a child process."""

    code: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Reason of the failure, in one line; empty if there is none."""
        if self.code == 0:
            return ""
        if self.code < 0:
            return f"the process ended with signal {-self.code}"
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def diagnose(*, topic: str = "", speed: bool = True) -> Diagnosis:
    """Collect facts and detect known problems; never raises an exception for a broken package.

    Args:
        topic: also report publishers, subscribers and mismatched QoS of this topic; needs ROS 2.
        speed: segment blank images for 2 s with `street_tiny`.
    """
    diagnosis = Diagnosis()
    sections: dict[str, Callable[[list[Finding]], dict[str, Any]]] = {
        "versions": _versions,
        "imports": _imports,
        "machine": _machine,
        "shared_memory": _shared_memory,
        "weights": _weights,
        "extras": _extras,
        "environment": _environment,
    }
    if topic:
        sections["topic"] = lambda findings: _topic(topic, findings)
    if speed:
        sections["speed"] = _speed
    for name, collect in sections.items():
        try:
            diagnosis.facts[name] = collect(diagnosis.findings)
        except Exception as err:  # the other sections are reported even if one fails
            diagnosis.facts[name] = {"error": f"{type(err).__name__}: {err}"}
            diagnosis.findings.append(
                Finding(
                    "section",
                    f"{name}: cannot be examined: {type(err).__name__}: {err}",
                    "Report this as a bug.",
                )
            )
    return diagnosis


def _run(arguments: list[str], timeout_s: float = CHILD_TIMEOUT_S) -> _Child:
    """Run Python in a child process, with the thread settings of the package's executables."""
    environment = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000", **os.environ}
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return _Child(1, "", f"no end within {timeout_s:.0f} s")
    return _Child(done.returncode, done.stdout.strip(), done.stderr)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _exists(module: str) -> bool:
    """Return whether a module is on the path, without importing its package."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _versions(findings: list[Finding]) -> dict[str, Any]:
    opencv = {name: version for name in OPENCV if (version := _version(name))}
    folders = [
        entry
        for entry in sys.path
        if entry and ((Path(entry) / "cv2").is_dir() or list(Path(entry).glob("cv2*.so")))
    ]
    folders = list(dict.fromkeys(str(Path(entry).resolve()) for entry in folders))
    if len(opencv) > 1:
        names = ", ".join(f"{name} {version}" for name, version in opencv.items())
        findings.append(
            Finding(
                "two_opencv",
                f"several OpenCV packages overwrite each other: {names}",
                f"pip uninstall -y {' '.join(opencv)}; pip install opencv-python-headless",
            )
        )
    elif len(folders) > 1:
        findings.append(
            Finding(
                "two_opencv",
                f"OpenCV is in several folders of the path: {', '.join(folders)}; the first is used",
                "None needed if the first one works, as in a virtual environment on top of ROS 2. Otherwise remove one.",
                problem=False,
            )
        )
    found: dict[str, Any] = {
        "vtseg_ros": vtseg_ros.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
    }
    for name in PACKAGES:
        found[name] = _version(name)
    found["opencv"] = ", ".join(f"{name} {version}" for name, version in opencv.items()) or None
    for name in ("rclpy", "cv_bridge"):
        found[name] = _version(name) or _version(f"ros-{name.replace('_', '-')}")
    return found


def _imports(findings: list[Finding]) -> dict[str, Any]:
    wanted = {name: code for name, code in IMPORTS.items() if _exists(name) or name not in OPTIONAL}
    ros = _exists("rclpy")
    if not ros:
        wanted = {name: code for name, code in wanted.items() if name not in NEEDS_ROS}
        findings.append(
            Finding(
                "no_ros",
                "ROS 2 is not in this environment: only the library and the other commands work, not the nodes and vtseg play",
                "source /opt/ros/$ROS_DISTRO/setup.bash, or use scripts/setup.sh and . scripts/env.sh",
                problem=False,
            )
        )
    with ThreadPoolExecutor(2) as pool:
        children = dict(zip(wanted, pool.map(lambda code: _run(["-c", code]), wanted.values())))
    found: dict[str, Any] = {}
    for name, child in children.items():
        found[name] = child.reason or child.output or "ok"
        if NUMPY_1.search(child.errors) or (name == "cv_bridge" and child.code < 0):
            findings.append(
                Finding(
                    "numpy_1_module",
                    f"{name} was built for NumPy 1 and NumPy {_version('numpy')} is installed: {child.reason or 'it may crash'}",
                    "vtseg_ros does not use cv_bridge. For nodes that do: pip install 'numpy<2' in their environment, or "
                    "build vision_opencv from source against NumPy 2."
                    if name == "cv_bridge"
                    else f"pip install --upgrade {name}, or pip install 'numpy<2'",
                )
            )
        elif child.reason:
            remedy = {
                "vtseg_ros.msg": "colcon build and . install/setup.bash, or scripts/setup.sh and . scripts/env.sh",
                "rclpy": "Source the ROS 2 that this Python belongs to: . /opt/ros/$ROS_DISTRO/setup.bash",
                "cv_bridge": "vtseg_ros does not use it; other nodes may.",
                "cv2": "pip install --force-reinstall opencv-python-headless",
            }.get(name, f"pip install --force-reinstall {name}")
            findings.append(
                Finding(
                    "broken_import",
                    f"{name} cannot be imported: {child.reason}",
                    remedy,
                    problem=name not in OPTIONAL,
                )
            )
    return found


def _meminfo() -> dict[str, int]:
    """Return the sizes of /proc/meminfo in kB by name; empty if the file does not exist."""
    # Not psutil, nor below: this module runs on installations whose packages are missing or broken.
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    return {name: int(kb) for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def _machine(findings: list[Finding]) -> dict[str, Any]:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        model = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores,
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    memory = _meminfo()
    if "MemAvailable" in memory:
        found["memory_mb"] = memory["MemTotal"] // 1024
        found["memory_free_mb"] = free = memory["MemAvailable"] // 1024
        if free < MEMORY_LEAST_MB:
            findings.append(
                Finding(
                    "little_memory",
                    f"free memory: {free} MB; expected at least {MEMORY_LEAST_MB} MB",
                    "Stop other processes, or use a smaller checkpoint and input size.",
                )
            )
    found["nvidia_driver"] = _nvidia_driver()
    return found


def _nvidia_driver() -> str | None:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    version = re.search(r"\s(\d+\.[\d.]+)\s", first)
    return version[1] if version else first


def _shared_memory(findings: list[Finding], folder: Path = Path("/dev/shm")) -> dict[str, Any]:
    if not folder.is_dir():
        return {"size_mb": None}
    usage = shutil.disk_usage(folder)
    size, free = usage.total // 2**20, usage.free // 2**20
    if size < SHM_LEAST_MB:
        findings.append(
            Finding(
                "small_shared_memory",
                f"{folder} has {size} MB; expected at least {SHM_LEAST_MB} MB, 34 MB per ROS process for images",
                "docker run --shm-size=1g, or shm_size: 1gb in a compose file",
            )
        )
    elif free < SHM_LEAST_MB // 2:
        findings.append(
            Finding(
                "full_shared_memory",
                f"{folder} has {free} of {size} MB free",
                "Stop the ROS processes that use it; remove files that killed processes left with `fastdds shm clean`.",
            )
        )
    return {"size_mb": size, "free_mb": free}


def _weights(findings: list[Finding]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((Path(vtseg_ros.__file__).parent / "weights").glob("*.safetensors")):
        size = path.stat().st_size
        found[path.stem] = f"{size / 1e6:.1f} MB"
        reason = _bad_weights(path, size)
        if reason:
            found[path.stem] += f", {reason}"
            findings.append(
                Finding(
                    "broken_weights",
                    f"{path}: {reason}",
                    "Install the package again; with git: git lfs pull.",
                )
            )
    if not found:
        findings.append(
            Finding(
                "no_weights",
                "no shipped weights; expected street_tiny in the package",
                "Install the package again.",
            )
        )
    return found


def _bad_weights(path: Path, size: int) -> str:
    """Return why a safetensors file is not complete; empty if it is."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            return "not a safetensors file, or truncated"
        try:
            header = json.loads(file.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "its header cannot be read"
    return "" if end + 8 + length == size else f"expected {end + 8 + length} bytes, got {size}"


def _extras(findings: list[Finding]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for extra, (module, use) in EXTRAS.items():
        found[extra] = "installed" if _exists(module) else "missing"
        if found[extra] == "missing":
            findings.append(
                Finding(
                    "missing_extra",
                    f"{use}: {module} is missing",
                    f"pip install 'vtseg_ros[{extra}]'",
                    problem=False,
                )
            )
    return found


VARIABLES = (
    "ROS_DISTRO",
    "RMW_IMPLEMENTATION",
    "ROS_DOMAIN_ID",
    "ROS_LOCALHOST_ONLY",
    "ROS_AUTOMATIC_DISCOVERY_RANGE",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "CYCLONEDDS_URI",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def _environment(findings: list[Finding], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    found = {name: environment[name] for name in VARIABLES if name in environment}
    for name in VARIABLES[5:7]:
        if name in found and not Path(found[name]).is_file():
            findings.append(
                Finding("no_profile", f"{name}: no such file: {found[name]}", f"Correct {name}, or unset it.")
            )
    return found


def _topic(topic: str, findings: list[Finding]) -> dict[str, Any]:
    child = _run(["-m", "vtseg_ros.nodes.topic_check", topic])
    if child.reason:
        findings.append(
            Finding(
                "topic",
                f"{topic}: cannot be examined: {child.reason}",
                "Source ROS 2 and this package first.",
            )
        )
        return {"name": topic, "error": child.reason}
    report = json.loads(child.output.splitlines()[-1])
    findings += [Finding(**finding) for finding in report.pop("findings")]
    result: dict[str, Any] = report
    return result


def _speed(findings: list[Finding]) -> dict[str, Any]:
    child = _run(["-c", "from vtseg_ros.diagnosis import measure_speed; measure_speed()"])
    if child.reason:
        findings.append(
            Finding(
                "no_segmentation", f"street_tiny does not run: {child.reason}", "Install the missing package."
            )
        )
        return {"error": child.reason}
    report = json.loads(child.output.splitlines()[-1])
    if not report["cuda"] and _nvidia_driver():
        findings.append(
            Finding(
                "torch_without_cuda",
                f"there is an NVIDIA driver, but torch {_version('torch')} does not find a GPU",
                "pip install torch --index-url https://download.pytorch.org/whl/cu126 (a build for your driver)",
            )
        )
    result: dict[str, Any] = report
    return result


def measure_speed() -> None:
    """Segment blank images for 2 s with `street_tiny` and print the result as JSON."""
    import statistics
    import time

    import numpy as np
    import torch

    from vtseg_ros.inference import VideoPredictor

    segmenter = VideoPredictor("street_tiny")
    width, height = segmenter.input_size
    image = np.zeros((height, width, 3), np.uint8)
    times: list[float] = []
    for number in range(segmenter.window):  # allocate memory and choose kernels
        segmenter.step(image, (number + 1) * 10**8)
    number, end = segmenter.window, time.perf_counter() + SPEED_S
    while time.perf_counter() < end:
        number += 1
        start = time.perf_counter()
        segmenter.step(image, number * 10**8)
        times.append(time.perf_counter() - start)
    report = {
        "checkpoint": "street_tiny",
        "size": f"{width}x{height}",
        "window": segmenter.window,
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "threads": torch.get_num_threads(),
        "median_ms": round(1e3 * statistics.median(times), 1),
        "frames_per_s": round(len(times) / sum(times), 1),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    print(json.dumps(report))
