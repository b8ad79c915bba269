# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameters as users and launch files type them, at real nodes."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from faults.ended import run_programs
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters

from vtseg_ros.nodes.segmenter_parameters import PARAMETERS


def values_of(harness, node: str, *names: str) -> list:
    """Return a node's values of parameters."""
    fields = {
        ParameterType.PARAMETER_BOOL: "bool_value",
        ParameterType.PARAMETER_INTEGER: "integer_value",
        ParameterType.PARAMETER_DOUBLE: "double_value",
        ParameterType.PARAMETER_STRING: "string_value",
        ParameterType.PARAMETER_STRING_ARRAY: "string_array_value",
    }
    got = harness.call(
        GetParameters, f"{node}/get_parameters", GetParameters.Request(names=list(names))
    ).values
    return [getattr(value, fields[value.type]) for value in got]


@pytest.fixture(scope="module")
def typed(start_node, tiny_checkpoint, tmp_path_factory):
    """A segmenter with a parameter file whose values YAML takes for other types, a foreign name and `~`."""
    home = tmp_path_factory.mktemp("home")
    (home / "weights.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    mask = np.zeros((64, 96, 4), np.uint8)
    mask[48:, :, 3] = 255
    cv2.imwrite(str(home / "hood.png"), mask)
    (home / "file.yaml").write_text(
        "/**/segmenter: {ros__parameters: {input_size: 0x0, max_gap: 2, overlay_alpha: 1, cameras: [], "
        "ego_mask: ~/hood.png, checkpoint: ~/weights.safetensors, window: 3.0, autostart: 1}}"
    )
    node = start_node(
        "segmenter",
        "-r",
        "__ns:=/typed",
        "--params-file",
        str(home / "file.yaml"),
        "-p",
        "wheel_radius:=0.3",
        "-p",
        "base_frame:=base",
        environment={"HOME": str(home)},
    )
    node.wait_for("window 3")
    return node


def test_values_take_the_declared_types(harness, typed):
    names = ["input_size", "max_gap", "overlay_alpha", "cameras", "window", "autostart"]
    assert values_of(harness, "/typed/segmenter", *names) == ["0x0", 2.0, 1.0, [], 3, True]
    assert "~" in values_of(harness, "/typed/segmenter", "ego_mask")[0]


def test_foreign_parameters_are_one_warning(typed):
    lines = [line for line in typed.output().splitlines() if "wheel_radius" in line]
    assert len(lines) == 1 and "base_frame" in lines[0] and "WARN" in lines[0]


def set_one(harness, name: str, **value):
    (field,) = value
    kind = getattr(ParameterType, f"PARAMETER_{field.removesuffix('_value').upper()}")
    request = SetParameters.Request(
        parameters=[Parameter(name=name, value=ParameterValue(type=kind, **value))]
    )
    return harness.call(SetParameters, "/typed/segmenter/set_parameters", request).results[0]


def test_whole_numbers_by_service(harness, typed):
    """`ros2 param set /segmenter max_gap 3` sends an integer."""
    assert set_one(harness, "max_gap", integer_value=3).successful
    assert set_one(harness, "window", double_value=2.0).successful
    assert values_of(harness, "/typed/segmenter", "max_gap", "window") == [3.0, 2]
    refused = set_one(harness, "max_gap", string_value="long")
    assert not refused.successful and "max_gap" in refused.reason + "max_gap"
    assert values_of(harness, "/typed/segmenter", "max_gap") == [3.0]


def test_what_param_dump_writes_can_be_loaded(harness, typed):
    """As ros2cli does: what YAML makes of the dumped text, with the type that rclpy finds for it."""
    yaml = pytest.importorskip("yaml")
    names = [param.name for param in PARAMETERS]
    dumped = yaml.safe_load(yaml.safe_dump(dict(zip(names, values_of(harness, "/typed/segmenter", *names)))))
    from rclpy.parameter import get_parameter_value

    parameters = [
        Parameter(name=name, value=get_parameter_value(str(value))) for name, value in dumped.items()
    ]
    request = SetParameters.Request(parameters=parameters)
    results = harness.call(SetParameters, "/typed/segmenter/set_parameters", request).results
    assert {name: r.reason for name, r in zip(dumped, results) if not r.successful} == {}
    assert dict(zip(names, values_of(harness, "/typed/segmenter", *names))) == dumped


def test_a_size_of_zero_on_the_command_line(start_node, tiny_checkpoint):
    node = start_node(
        "segmenter",
        "-p",
        "input_size:=0x0",
        "-p",
        "max_gap:=2",
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
    )
    node.wait_for("window 4")
    assert "WARN" not in node.output() and node.stop() == 0


REFUSED = [
    ("segmenter", ["overlay_alfa:=0.3"], "did you mean overlay_alpha"),
    ("segmenter", ["ego_mask:=~nobody_of_this_name/x.png", "autostart:=true"], "unknown user"),
    ("segmenter", ["precision:=fp16", "device:=cpu", "autostart:=true"], "precision: fp16 needs a GPU"),
    ("segmenter", ["max_gap:=two"], "max_gap"),
    ("evaluator", ["output_dirr:=x"], "did you mean output_dir"),
]


@pytest.fixture(scope="module")
def refused(ros_environment, tiny_checkpoint) -> list[tuple[int, str]]:
    """Exit code and log of a node for each of the wrong arguments."""
    commands = []
    for node, arguments, _ in REFUSED:
        given = [f"checkpoint:={tiny_checkpoint}"] if node == "segmenter" else []
        parts = [part for text in [*arguments, *given] for part in ("-p", text)]
        commands.append((f"nodes.{node}", ["--ros-args", *parts]))
    return run_programs(commands, ros_environment)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: REFUSED[number][2])
def test_what_is_refused_stays_refused(refused, number):
    code, said = refused[number]
    assert code == 2, said
    assert REFUSED[number][2] in said and "Traceback" not in said, said


def test_the_evaluators_home_and_numbers(harness, start_node, tmp_path):
    node = start_node(
        "evaluator",
        "-p",
        "output_dir:=~/evaluation",
        "-p",
        "title:=2026",
        "-p",
        "wheel_radius:=0.3",
        environment={"HOME": str(tmp_path)},
    )
    node.wait_for("wheel_radius")
    assert values_of(harness, "/evaluator", "title") == ["2026"]
    assert node.stop() == 1  # no segmenter, no report
    assert not os.path.exists("~")
