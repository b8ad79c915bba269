# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg play`: messages sent, messages logged, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bags import storagetools as tools

from vtseg_ros.cli import main

pytest.importorskip("rclpy")

START, STEP = tools.START, tools.STEP


def play(environment, bag, *options):
    command = [
        sys.executable,
        "-m",
        "vtseg_ros.cli",
        "play",
        str(bag),
        "--json",
        str(bag.parent / "sent.json"),
    ]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=600)
    sent = json.loads((bag.parent / "sent.json").read_text()) if (bag.parent / "sent.json").exists() else None
    return done.returncode, sent, done.stdout + done.stderr


def images(times):
    return [("/camera/image_raw", time, tools.image(number, time)) for number, time in enumerate(times)]


def test_bag_times_that_lie_years_apart(tmp_path, ros_environment):
    """A latched text at time zero, images, and one text of a clock that ran ahead."""
    content = [("/chatter", 0, tools.text("a")), *images(range(START, START + 5 * STEP, STEP))]
    content.append(("/chatter", START + 10**18, tools.text("b")))
    tools.write_mcap(tmp_path / "bag" / "a.mcap", content)
    code, told, output = play(ros_environment, tmp_path / "bag")
    assert code == 0 and told["sent"] == {"/chatter": 2, "/camera/image_raw": 5}, output
    assert told["messages_missing"] == 0 and "11574 days later in the bag; this pause is skipped" in output


def test_an_empty_topic_that_should_have_messages(tmp_path, ros_environment):
    content = images(range(START, START + 3 * STEP, STEP))
    file = tools.write_mcap(tmp_path / "bag" / "a.mcap", content)
    tools.write_metadata(file.parent, [file.name], [*content, ("/chatter", START, b"")], "mcap")
    code, told, output = play(ros_environment, file.parent)
    assert code == 2 and told == {
        "bag": str(file.parent),
        "sent": {"/camera/image_raw": 3},
        "messages_missing": 1,
    }
    assert "no message was sent on /chatter, although the bag lists messages there" in output
    code, _, output = play(ros_environment, file.parent, "--topics", "/chatter")
    assert code == 2 and "no message on /chatter" in output


def test_a_topic_that_ros_does_not_have(tmp_path, ros_environment):
    """Other recorders and converters write any names: the other topics are played."""
    content = images(range(START, START + 3 * STEP, STEP))
    content += [("/camera/image raw!", START, tools.image(0, START)), ("chatter", START, tools.text("a"))]
    tools.write_mcap(tmp_path / "bag" / "a.mcap", content)
    code, told, output = play(ros_environment, tmp_path / "bag")
    assert code == 0 and told["sent"] == {"/camera/image_raw": 3, "chatter": 1}, output
    assert "/camera/image raw! is not played" in output
    code, told, output = play(ros_environment, tmp_path / "bag", "--remap", "/camera/image raw!:=/second")
    assert code == 0 and told["sent"]["/second"] == 1, output


@pytest.mark.parametrize("option", ["--clock", "--wait-timeout"])
def test_negative_values(street_bag, capsys, option):
    assert main(["play", str(street_bag), f"{option}=-1"]) == 2
    assert f"{option}: out of range; expected at least 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "1e-300"])
def test_a_rate_that_never_ends(street_bag, capsys, rate):
    assert main(["play", str(street_bag), f"--rate={rate}"]) == 2
    assert "--rate: out of range; expected at least 0.001, got" in capsys.readouterr().err
