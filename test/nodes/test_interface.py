# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/guide/ros_interface.md and config/segmenter.yaml against running nodes and messages: nothing more, nothing less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy")

import vtseg_ros.msg as messages
import vtseg_ros.srv as services
from conftest import wait_until
from nodes.harness import Harness
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters

from vtseg_ros.nodes import evaluator, segmenter_parameters, trainer
from vtseg_ros.nodes.segmenter_parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
# What every node of rclpy has.
COMMON_TOPICS = {"/rosout", "/parameter_events", "/clock"}
COMMON_PARAMETERS = {"use_sim_time", "start_type_description_service"}
COMMON_SERVICES = re.compile(r"/(describe|get|list|set)_parameter|/get_type_description$")
LIFECYCLE = re.compile(r"/(change_state|get_state|get_available_\w+|get_transition_graph|transition_event)$")


def tables(section: str) -> dict[str, list[list[str]]]:
    """First header cell -> rows of the page's tables below a heading."""
    text = (ROOT / "docs" / "guide" / "ros_interface.md").read_text()
    body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", body, re.M):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found[rows[0][0]] = rows[2:]
    return found


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def nodes(start_node, tiny_checkpoint, tmp_path_factory):
    """VideoPredictor and evaluator with every default except what is given here."""
    folder = tmp_path_factory.mktemp("report")
    started = {
        "segmenter": start_node("segmenter", "-p", "autostart:=true", "-p", f"checkpoint:={tiny_checkpoint}"),
        "evaluator": start_node("evaluator", "-p", f"output_dir:={folder}"),
    }
    started["segmenter"].wait_for("window 4")
    return started


GIVEN = {"segmenter": {"autostart", "checkpoint"}, "evaluator": {"output_dir"}}
DECLARED = {"segmenter": segmenter_parameters.PARAMETERS, "evaluator": evaluator.PARAMETERS}


def graph(harness: Harness, node: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """topic -> types and service -> types of a node."""
    talk = harness.node
    wait_until(lambda: (node, "/") in talk.get_node_names_and_namespaces())
    wait_until(
        lambda: any(
            n.startswith(f"/{node}/") for n, _ in talk.get_service_names_and_types_by_node(node, "/")
        ),
    )
    found = [
        *talk.get_publisher_names_and_types_by_node(node, "/"),
        *talk.get_subscriber_names_and_types_by_node(node, "/"),
    ]
    topics: dict[str, set[str]] = {}
    for name, types in found:
        topics.setdefault(name, set()).update(types)
    return topics, {name: set(types) for name, types in talk.get_service_names_and_types_by_node(node, "/")}


@pytest.mark.parametrize("node", ["segmenter", "evaluator"])
def test_topics_and_services(harness, nodes, node):
    told = tables(node.capitalize())
    documented: dict[str, set[str]] = {}
    for cell, types, _ in told["topic"]:
        topics, kinds = names_in(cell), [kind.split()[0] for kind in types.split(",")]
        package = kinds[0].split("/")[0]
        kinds = [kind if "/" in kind else f"{package}/{kind}" for kind in kinds]
        for index, topic in enumerate(topics):
            kind = kinds[min(index, len(kinds) - 1)]
            documented[topic if topic.startswith("/") else f"/{topic}"] = {kind.replace("/", "/msg/")}
    # By default one transport is subscribed to, by the evaluator two; label_info needs vision_msgs.
    others = {
        "segmenter": ("compressed", "zstd", "ffmpeg", "foxglove"),
        "evaluator": ("zstd", "ffmpeg", "foxglove"),
    }
    optional = {f"/{what}/{transport}" for transport in others[node] for what in ("image", "label")}
    try:
        import vision_msgs.msg  # noqa: F401
    except ImportError:
        optional.add("/segmentation/label_info")
    expected = {topic: kinds for topic, kinds in documented.items() if topic not in optional}
    wait_until(
        lambda: expected.keys() <= graph(harness, node)[0].keys(), lambda: str(graph(harness, node)[0])
    )
    topics, services = graph(harness, node)
    own = {t: k for t, k in topics.items() if t not in COMMON_TOPICS and not LIFECYCLE.search(t)}
    assert own == expected
    documented_services = {
        name.replace("~", f"/{node}"): {kind.replace("/", "/srv/")}
        for cell, kind, _ in told["service"]
        for name in names_in(cell)
        if not LIFECYCLE.search(name)
    }
    own = {s: k for s, k in services.items() if not COMMON_SERVICES.search(s) and not LIFECYCLE.search(s)}
    assert own == documented_services


def values(harness: Harness, node: str) -> dict[str, tuple[object, object]]:
    """name -> (value, descriptor) of a node's own parameters."""
    listed = harness.call(
        ListParameters, f"/{node}/list_parameters", ListParameters.Request(depth=10)
    ).result.names
    own = [name for name in listed if name not in COMMON_PARAMETERS and not name.startswith("qos_overrides")]
    got = harness.call(GetParameters, f"/{node}/get_parameters", GetParameters.Request(names=own)).values
    told = harness.call(
        DescribeParameters, f"/{node}/describe_parameters", DescribeParameters.Request(names=own)
    )
    fields = {
        ParameterType.PARAMETER_BOOL: "bool_value",
        ParameterType.PARAMETER_INTEGER: "integer_value",
        ParameterType.PARAMETER_DOUBLE: "double_value",
        ParameterType.PARAMETER_STRING: "string_value",
        ParameterType.PARAMETER_STRING_ARRAY: "string_array_value",
    }
    return {
        name: (getattr(value, fields[value.type]) if value.type in fields else None, descriptor)
        for name, value, descriptor in zip(own, got, told.descriptors)
    }


def shown(value: object) -> str:
    """A default as the page writes it."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@pytest.mark.parametrize("node", ["segmenter", "evaluator"])
def test_parameters(harness, nodes, node):
    rows = {
        names_in(cell)[0]: (default, "*" in cell, text)
        for cell, default, text in tables(node.capitalize())["parameter"]
    }
    running = values(harness, node)
    defaults = {param.name: param.default for param in DECLARED[node]}
    assert running.keys() == rows.keys() == defaults.keys()
    for name, (value, descriptor) in running.items():
        default, live, text = rows[name]
        assert shown(defaults[name]) == default, name
        if name not in GIVEN[node]:
            assert shown(value) == default, name
        assert descriptor.description and text, name
        assert ("while the node runs" in descriptor.additional_constraints) == live, name
        if descriptor.type in (ParameterType.PARAMETER_INTEGER, ParameterType.PARAMETER_DOUBLE):
            assert descriptor.integer_range or descriptor.floating_point_range, name


def test_the_shipped_parameter_file_is_the_declaration():
    text = (ROOT / "config" / "segmenter.yaml").read_text()
    written = yaml.safe_load(text)["/**/segmenter"]["ros__parameters"]
    declared = {param.name: param.default for param in PARAMETERS}
    # YAML for ROS has no empty list of strings: such parameters are shown as comments.
    for name in ("cameras", "classes"):
        assert declared.pop(name) == [] and f"    # {name}: [" in text
    assert written == declared
    assert {name: type(value) for name, value in written.items()} == {n: type(v) for n, v in declared.items()}
    lines = text.splitlines()
    for param in PARAMETERS:
        where = next(i for i, line in enumerate(lines) if re.match(rf" +(# )?{param.name}: ", line))
        comment = lines[where - 1].strip()
        assert comment.startswith("# " + param.text), param.name
        for allowed in param.allowed:
            assert allowed in comment, param.name
        if param.low is not None:
            assert f"Range {param.low:g}..{param.high:g}." in comment, param.name


def test_messages():
    rows = {names_in(name)[0]: names_in(fields) for name, fields in tables("Messages")["message"]}
    kinds = {name for name in dir(messages) if hasattr(getattr(messages, name), "get_fields_and_field_types")}
    assert rows.keys() == kinds == {path.stem for path in (ROOT / "msg").glob("*.msg")}
    for name, fields in rows.items():
        assert fields == list(getattr(messages, name).get_fields_and_field_types()), name
    rows = {names_in(name)[0]: cells for name, *cells in tables("Messages")["service"]}
    assert rows.keys() == {path.stem for path in (ROOT / "srv").glob("*.srv")}
    for name, cells in rows.items():
        for part, cell in zip(("Request", "Response"), cells):
            kind = getattr(getattr(services, name), part)
            assert names_in(cell) == list(kind.get_fields_and_field_types()), name


def test_the_trainers_table():
    """The trainer cannot start without bags: its table is compared with its declarations."""
    rows = {names_in(cell)[0]: default for cell, default, _ in tables("Trainer")["parameter"]}
    assert rows == {param.name: shown(param.default) for param in trainer.PARAMETERS}
    assert names_in(tables("Trainer")["topic"][0][0]) == ["training/progress"]
