# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything outside nodes/ works where ROS is not installed."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
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
    assert {"vtseg_ros.cli", "vtseg_ros.model", "vtseg_ros.inference.predictor"} <= set(names)
    done = run_python(IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr


def test_the_play_command_says_what_is_missing() -> None:
    code = BLOCKER + "from vtseg_ros.cli import main\nsys.exit(main(['play', sys.argv[1]]))"
    done = run_python(code, str(ROOT / "no_such_bag"))
    assert done.returncode == 2, done.stderr
    assert "ROS 2: not found" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    "folder",
    [
        "bags",
        "dataset",
        "evaluation",
        "fleet",
        "importers",
        "inference",
        "labelling",
        "model",
        "profiling",
        "published",
        "street",
        "training",
        "video",
    ],
)
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
    lower = (
        "vtseg_ros.bags",
        "vtseg_ros.dataset",
        "vtseg_ros.inference",
        "vtseg_ros.training",
        "vtseg_ros.evaluation",
    )
    for path in sorted((PACKAGE / "model").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith(lower), (
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}"
                )


@functools.cache
def trees(*folders: str) -> dict[Path, ast.Module]:
    """The syntax trees of the package's modules, or of those in some of its folders."""
    roots = [PACKAGE / folder for folder in folders] or [PACKAGE]
    return {path: ast.parse(path.read_text()) for root in roots for path in sorted(root.rglob("*.py"))}


def imported(tree: ast.Module) -> set[str]:
    """Names of modules that a module imports, at its top or within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def network_classes() -> set[str]:
    from vtseg_ros.model.registry import architectures

    return {one.kind.__name__ for one in architectures().values()} | {"EfficientViTSeg", "StaticBranch"}


def test_vtseg_has_one_forward_pass():
    """Nobody but `VTSeg.forward` leads a window through the encoder and the decoder."""
    callers = []
    for path, tree in trees().items():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            called = {
                node.func.attr
                for node in ast.walk(function)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            }
            if {"encoder", "decoder"} <= called:
                callers.append(f"{path.relative_to(PACKAGE)}:{function.name}")
    # ERFNet has an encoder and a decoder of its own.
    assert callers == ["model/erfnet.py:forward", "model/vtseg.py:forward"]


def test_attention_layers_are_run_in_one_place():
    """Whoever projects queries or keys and values by itself writes a part of the forward pass again."""
    users = [
        str(path.relative_to(PACKAGE))
        for path, tree in trees().items()
        if any(isinstance(node, ast.Attribute) and node.attr == "project_memory" for node in ast.walk(tree))
    ]
    assert users == ["model/blocks.py"]


def test_networks_are_told_apart_by_the_registry():
    """No `isinstance` on a network class outside model/."""
    classes, bad = network_classes(), []
    for path, tree in trees().items():
        if path.is_relative_to(PACKAGE / "model"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                if named & classes:
                    bad.append(f"{path.relative_to(ROOT)}:{node.lineno}: {sorted(named & classes)}")
    assert not bad


def test_architecture_names_are_written_in_the_registry_only():
    from vtseg_ros.model.registry import architectures

    names, bad = set(architectures()), []
    for path, tree in trees().items():
        if path.is_relative_to(PACKAGE / "model"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in names:
                # The command and the application have the name of the network.
                keyword = path.name in ("cli.py", "launching.py", "viewing.py") and node.value == "vtseg"
                bad += [] if keyword else [f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"]
    assert not bad


def test_backends_are_used_through_their_protocol():
    bad = []
    for path, tree in trees().items():
        if path.is_relative_to(PACKAGE / "inference" / "backends"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                bad += [
                    f"{path.relative_to(ROOT)}:{node.lineno}" for name in named if name.endswith("Backend")
                ]
    assert not bad


def test_nodes_do_not_import_commands():
    """Only the node that trains, evaluates or plays for a command may be started by one, not the other way round."""
    bad = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees("nodes").items()
        for name in imported(tree)
        if name.startswith(("vtseg_ros.commands", "vtseg_ros.cli"))
    ]
    assert not bad


def test_module_names_are_unique():
    """A command may share the name of what it runs."""
    names = [path.stem for path in trees() if path.stem != "__init__" and path.parent.name != "commands"]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice


def run_time_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module, at its top or within functions, but not those that only type checkers read.

    The `__getattr__` of a package is left out: it only makes public names available to users.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.FunctionDef) and child.name == "__getattr__":
            continue
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from run_time_imports(ast.Module([other], []))
        else:
            yield from run_time_imports(child)


def import_graph(sources: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Modules that each module imports, by their dotted names."""
    graph: dict[str, list[str]] = {}
    for name, tree in sources.items():
        used: set[str] = set()
        for node in run_time_imports(tree):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            else:
                # A name that is no module comes from the module itself.
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                used |= {name if name in sources else str(node.module) for name in names}
        graph[name] = sorted(used & set(sources) - {name})
    return graph


def circle(graph: dict[str, list[str]]) -> list[str]:
    """Modules of which each imports the next and the last one the first; empty if there is no such circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as err:
        return list(err.args[1])
    return []


def test_circles_of_imports_are_found() -> None:
    sources = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c import d",
        "b": "import a",
        "c": "def f():\n    from b import g",
    }
    assert not circle(import_graph({name: ast.parse(text) for name, text in sources.items()}))
    sources["a"] += "\nelse:\n    import c"
    assert set(circle(import_graph({name: ast.parse(text) for name, text in sources.items()}))) == {
        "a",
        "b",
        "c",
    }


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Imports within functions count: they hide a circle but do not remove it."""
    sources = {}
    for path, tree in trees().items():
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    assert not circle(import_graph(sources))


@pytest.mark.parametrize("folder", ["bags", "importers", "labelling"])
def test_only_the_street_needs_panda3d(folder: str) -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in trees(folder)
        if path.stem != "__init__"
    ]
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "print('panda3d' in sys.modules)"
    )
    done = run_python(code, *names)
    assert done.stdout.strip() == "False", done.stderr


LIGHT = [
    "vtseg_ros",
    "vtseg_ros.bags.bag_reader",
    "vtseg_ros.image_ops",
    "vtseg_ros.sizes",
    "vtseg_ros.inference",
    "vtseg_ros.commands.info",
    "vtseg_ros.commands.labels",
    "vtseg_ros.commands.view",
]
LIGHT_NODES = [f"vtseg_ros.nodes.{name}" for name in ("evaluator", "player", "recorder", "cloud", "viewer")]
IMPORT_LIGHT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "panda3d"} & set(sys.modules)
    if heavy:
        sys.exit(f"{name} imports {heavy}")
"""


def test_light_imports_need_no_torch() -> None:
    done = run_python(IMPORT_LIGHT, *LIGHT)
    assert done.returncode == 0, done.stderr


def test_only_nodes_that_run_or_train_networks_need_torch() -> None:
    pytest.importorskip("rclpy")
    done = run_python(IMPORT_LIGHT, *LIGHT_NODES)
    assert done.returncode == 0, done.stderr


def test_reading_a_bag_needs_no_torch(street_bag: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom vtseg_ros.bags.bag_reader import BagReader\n"
        "from vtseg_ros.bags.image_messages import decode_any\nfrom vtseg_ros.bags.topics import find_image_topic\n"
        "with BagReader(Path(sys.argv[1])) as bag:\n"
        "    for _, _, message in bag.messages([find_image_topic(bag)]):\n"
        "        image = decode_any(message)\n"
        "print(image.shape, 'torch' in sys.modules)"
    )
    done = run_python(code, str(street_bag))
    assert done.stdout.strip() == "(64, 128, 3) False", done.stderr


def test_the_public_class_is_found_where_it_is_documented() -> None:
    done = run_python(
        "import vtseg_ros\nfrom vtseg_ros.inference import VideoPredictor\n"
        "print(vtseg_ros.VideoPredictor is VideoPredictor)"
    )
    assert done.stdout.strip() == "True", done.stderr


def test_every_public_name_of_bags_is_found() -> None:
    from vtseg_ros import bags

    assert sorted(bags.__all__) == sorted(name for names in bags.PLACES.values() for name in names)
    for name in bags.__all__:
        assert getattr(bags, name).__module__.startswith("vtseg_ros.bags."), name
