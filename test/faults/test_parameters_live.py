# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Wrong parameters at the start, in files, and by service: rejected by name, and the node continues."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

from faults.ended import run_programs
from nodes.camera import Camera
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from vtseg_ros.msg import SegmentationStatus

NAN = float("nan")
VALUES = [
    ParameterValue(),
    *(ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value) for value in (True, False)),
    *(
        ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=v)
        for v in (0, -1, 33, 2**63 - 1, -(2**63))
    ),
    *(
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=v)
        for v in (-1.0, NAN, float("inf"), 1e308)
    ),
    *(
        ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=v)
        for v in (
            "",
            "0x0",
            "x",
            "99999x99999",
            "~nobody_of_this_name/x",
            "a" * 5000,
            "/dev/zero",
            "/",
            "../../x",
            "b\xe9",
            "cuda:99999999999",
        )
    ),
    ParameterValue(
        type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=["", "a//b", "b\xe9", "../x"]
    ),
    ParameterValue(type=ParameterType.PARAMETER_BYTE_ARRAY, byte_array_value=[b"\x00"] * 3),
]


@pytest.fixture(scope="module")
def camera(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/set", tiny_checkpoint)
    return Camera(harness, node, "/set")


def test_any_value_for_any_parameter(camera):
    from vtseg_ros.nodes.segmenter_parameters import PARAMETERS

    refused = 0
    for name in [*(param.name for param in PARAMETERS), "use_sim_time", "no_such_parameter", ""]:
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value) for value in VALUES])
        results = camera.harness.call(SetParameters, "/set/segmenter/set_parameters", request).results
        assert len(results) == len(VALUES), name
        refused += sum(not result.successful for result in results)
        assert all(result.reason for result in results if not result.successful), name
    assert refused > 15 * len(VALUES) // 2
    assert camera.node.running(), camera.node.output()
    assert camera.good().event == SegmentationStatus.PROCESSED


def test_a_parameter_of_no_type(camera):
    """rclpy raises on it in its own service, which ended the node; the caller gets no answer, all others do."""
    names = ["window"]
    client = camera.harness.node.create_client(SetParameters, "/set/segmenter/set_parameters")
    assert client.wait_for_service(20)
    value = ParameterValue(type=250)
    client.call_async(SetParameters.Request(parameters=[Parameter(name=n, value=value) for n in names]))
    camera.node.wait_for("a callback failed")
    assert camera.good().event == SegmentationStatus.PROCESSED
    assert camera.node.stop() == 0


FILES = [
    ("segmenter", "segmenter: {ros__parameters: {overlay_alfa: 0.3}}", "did you mean overlay_alpha"),
    ("segmenter", "segmenter: {ros__parameters: {window: four}}", "window"),
    ("segmenter", "segmenter: {ros__parameters: {max_gap: 0.0}}", "max_gap"),
    (
        "segmenter",
        "segmenter: {ros__parameters: {cameras: [front, front], autostart: true}}",
        "cameras: a name is repeated",
    ),
    (
        "segmenter",
        "segmenter: {ros__parameters: {cameras: [fr\xf6nt], autostart: true}}",
        "expected letters",
    ),
    ("segmenter", "segmenter: [not a mapping", "parameter"),
    ("segmenter", "segmenter: {ros__parameters: {ego_mask: /dev/null, autostart: true}}", "no such file"),
    ("evaluator", "evaluator: {ros__parameters: {outputdir: x}}", "did you mean output_dir"),
    ("evaluator", "evaluator: {ros__parameters: {output_dir: [a, b]}}", "output_dir"),
    ("trainer", "trainer: {ros__parameters: {confog: x}}", "did you mean config"),
]


@pytest.fixture(scope="module")
def ended(ros_environment, tiny_checkpoint, tmp_path_factory) -> list[tuple[int, str]]:
    """Exit code and log of a node for each of the parameter files."""
    folder, commands = tmp_path_factory.mktemp("parameters"), []
    for number, (node, content, _) in enumerate(FILES):
        file = folder / f"{number}.yaml"
        file.write_text(content)
        given = ["-p", f"checkpoint:={tiny_checkpoint}"] if node == "segmenter" else []
        commands.append((f"nodes.{node}", ["--ros-args", "--params-file", str(file), *given]))
    return run_programs(commands, ros_environment)


@pytest.mark.parametrize("number", range(len(FILES)), ids=lambda number: FILES[number][2])
def test_parameter_files(ended, number):
    """Exit code 2 and the reason; a misspelt name is not ignored."""
    code, said = ended[number]
    assert code == 2, said
    assert FILES[number][2] in said and "Traceback" not in said, said


def test_a_section_for_several_nodes_may_hold_another_nodes_parameters(start_node, tiny_checkpoint, tmp_path):
    """A name that may be a typing error is logged, and the node runs."""
    text = "'/**': {ros__parameters: {camera_name: front, camera: rear, input_sise: 64x32, frame_rate: 10.0}}"
    (tmp_path / "all.yaml").write_text(text)
    node = start_node(
        "segmenter",
        "--params-file",
        str(tmp_path / "all.yaml"),
        "-p",
        f"checkpoint:={tiny_checkpoint}",
        "-p",
        "autostart:=true",
    )
    node.wait_for("window 4")
    assert (
        "no parameter input_sise; did you mean input_size? (in a section for several nodes" in node.output()
    )
    assert node.stop() == 0
