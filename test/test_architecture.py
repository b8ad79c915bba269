"""Everything outside nodes/ works where ROS is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vtseg_ros"

# Stops at the first import of ROS, as a machine without it would, and names the module that asked.
BLOCKER = """
import importlib, sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ros = top.startswith(("rclpy", "rcl_", "rmw_", "rosidl", "ros2", "launch", "ament_", "builtin_interfaces",
                              "action_msgs", "cv_bridge"))
        if ros or top.endswith(("_msgs", "_srvs")) or name == "vtseg_ros.msg":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, NoRos())
"""
IMPORT_ALL = BLOCKER + "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"


def modules_without_ros() -> list[str]:
    """Dotted names of every module outside vtseg_ros/nodes."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] != ("vtseg_ros", "nodes"):
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["rclpy", "sensor_msgs.msg", "std_srvs.srv", "vtseg_ros.msg", "launch_ros"])
def test_the_blocker_blocks(name: str) -> None:
    done = run_python(IMPORT_ALL, name)
    assert done.returncode == 1
    assert f"{name.partition('.msg')[0].partition('.srv')[0]}" in done.stderr and "is blocked" in done.stderr


def test_modules_outside_nodes_import_without_ros() -> None:
    names = modules_without_ros()
    assert {"vtseg_ros.cli", "vtseg_ros.model", "vtseg_ros.engine.predictor"} <= set(names)
    done = run_python(IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr


def test_the_play_command_says_what_is_missing() -> None:
    code = BLOCKER + "from vtseg_ros.cli import main\nsys.exit(main(['play', sys.argv[1]]))"
    done = run_python(code, str(ROOT / "no_such_bag"))
    assert done.returncode == 2, done.stderr
    assert "needs ROS 2" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("folder", ["model", "engine", "data", "training", "evaluation"])
def test_libraries_do_not_reach_into_nodes_or_commands(folder: str) -> None:
    allowed_upwards = ("vtseg_ros.nodes", "vtseg_ros.commands", "vtseg_ros.cli")
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            bad = [name for name in names if name.startswith(allowed_upwards)]
            assert not bad, f"{path.relative_to(ROOT)}:{node.lineno} imports {bad}"


def test_networks_know_nothing_of_bags_or_windows() -> None:
    lower = ("vtseg_ros.data", "vtseg_ros.engine", "vtseg_ros.training", "vtseg_ros.evaluation")
    for path in sorted((PACKAGE / "model").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith(lower), (
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}"
                )
