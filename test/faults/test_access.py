# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the nodes may and do reach: the security policy, the network, code in data, files outside the given folder."""

from __future__ import annotations

import ast
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT, wait_until, write_endless_training

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import stamp_of

POLICY = ROOT / "config" / "security" / "policy.xml"
# Only of some installations, settings or ROS releases.
OPTIONAL = {
    "/segmentation/label_info",
    "/clock",
    "/parameter_events",
    "/image",
    "/image/compressed",
    "/points",
    "/tf",
    "/tf_static",
    *(f"/{node}/get_type_description" for node in ("segmenter", "evaluator", "trainer", "cloud")),
}


def allowed(node: str) -> dict[str, set[str]]:
    """publish, subscribe and reply of a node in the policy, as absolute names."""
    profile = ET.parse(POLICY).find(f".//enclave[@path='/vtseg/{node}']/profiles/profile[@node='{node}']")
    found: dict[str, set[str]] = {"publish": set(), "subscribe": set(), "reply": set()}
    for group in profile:
        for kind in found:
            if group.get(kind) == "ALLOW":
                for item in group:
                    name = item.text.strip().replace("~", f"/{node}")
                    found[kind].add(name if name.startswith("/") else f"/{name}")
    return found


def test_the_policy_is_what_running_nodes_use(
    start_node, ros_environment, tiny_checkpoint, street_bag, tmp_path
):
    pytest.importorskip("rclpy")
    from nodes.harness import Harness
    from sensor_msgs.msg import PointCloud2

    write_endless_training(tmp_path / "train.yaml", street_bag)
    arguments = {
        "segmenter": ["-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"],
        "evaluator": ["-p", f"output_dir:={tmp_path}"],
        "trainer": ["-p", f"config:={tmp_path / 'train.yaml'}", "-p", f"output_dir:={tmp_path / 'run'}"],
        "cloud": [],
    }
    running = {
        name: start_node(name, *given, "-p", "use_sim_time:=true") for name, given in arguments.items()
    }
    running["segmenter"].wait_for("window 4")
    harness = Harness(ros_environment)
    try:
        harness.collect(PointCloud2, "/segmentation/cloud")  # or the node has no inputs
        for name, node in running.items():
            may = allowed(name)

            def used(name=name) -> dict[str, set[str]]:
                graph = harness.node
                if name not in graph.get_node_names():
                    return {}
                publishers = graph.get_publisher_names_and_types_by_node(name, "/")
                subscribers = graph.get_subscriber_names_and_types_by_node(name, "/")
                services = graph.get_service_names_and_types_by_node(name, "/")
                found = {"publish": publishers, "subscribe": subscribers, "reply": services}
                return {kind: {topic for topic, _ in pairs} for kind, pairs in found.items()}

            def complete(used=used, may=may) -> bool:
                return bool(used()) and all(may[kind] - OPTIONAL <= used()[kind] for kind in may)

            wait_until(complete, lambda used=used, may=may, node=node: f"{used()} {may} {node.output()}")
            for kind, names in used().items():
                assert names <= may[kind], f"{name}: the policy forbids to {kind} {sorted(names - may[kind])}"
    finally:
        harness.close()


AUDITED = """
import os, sys

def audit(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not str(arguments[1][0]).startswith(("127.", "::1")):
        print("FORBIDDEN connect", arguments[1], file=sys.stderr); os._exit(9)
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1", ""):
        print("FORBIDDEN lookup", arguments[0], file=sys.stderr); os._exit(9)
    if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.path.abspath(arguments[0])
        if not path.startswith((os.environ["ALLOWED"], "/dev/", "/proc/")) and "__pycache__" not in path:
            print("FORBIDDEN write", path, file=sys.stderr); os._exit(9)

sys.addaudithook(audit)
from vtseg_ros.cli import main
sys.exit(main(sys.argv[1:]))
"""


def audited(allowed_dir: Path, *arguments: str) -> subprocess.CompletedProcess:
    import os

    environment = {
        **os.environ,
        "ALLOWED": str(allowed_dir),
        "TMPDIR": str(allowed_dir),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", AUDITED, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("what", ["segment", "train"])
def test_commands_reach_no_network_and_write_only_where_told(street_bag, tiny_checkpoint, tmp_path, what):
    """Every connection, name look-up and file opened for writing is seen by an audit hook, which ends the process."""
    out = tmp_path / "out"
    out.mkdir()
    values = {
        "data": {
            "train": [str(street_bag)],
            "validation": [str(street_bag)],
            "size": [64, 32],
            "workers": 0,
            "validation_every": 10,
        },
        "model": {"architecture": "erfnet"},
        "device": "cpu",
        "stages": [{"name": "static", "steps": 1, "batch": 1}],
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))

    command = {
        "segment": [
            "segment",
            str(street_bag),
            "--checkpoint",
            str(tiny_checkpoint),
            "--out",
            str(out / "x"),
        ],
        "train": ["train", str(tmp_path / "train.yaml"), "--out", str(out / "x")],
    }
    done = audited(out, *command[what])
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_audit_hook_sees_what_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    cv2.imwrite(str(tmp_path / "folder" / "1.png"), np.zeros((32, 64, 3), np.uint8))
    command = ["import", "images", str(tmp_path / "folder"), "--out", str(tmp_path / "bag")]
    refused = audited(tmp_path / "elsewhere", *command)
    assert refused.returncode == 9 and "FORBIDDEN write" in refused.stderr, (
        "the hook must see what it is to see"
    )


CODE = {"eval", "exec", "compile", "__import__"}


def test_nothing_in_the_package_runs_code_from_data():
    """No eval, exec, pickle, yaml.load, shell; torch.load only with weights_only; imports by name where a user names them."""
    # Commands, the user's own static network and flow, message packages, the package's own networks and installed ones.
    may_import = {"cli.py", "external_prior.py", "flow.py", "inputs.py", "player.py", "registry.py"}
    for path in sorted((ROOT / "vtseg_ros").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cPickle", "dill", "shelve", "marshal"} & set(names), path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in CODE and called not in ("os.system", "yaml.load", "yaml.unsafe_load"), (
                f"{path}: {called}"
            )
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("shell") != "True" and keywords.get("allow_pickle") != "True", path
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path
            if called.endswith("import_module"):
                of_its_own = path.parts[-2:] == ("bags", "__init__.py")
                assert path.name in may_import or of_its_own, path


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode, reason="no network namespaces"
)
def test_a_command_runs_without_any_network(street_bag, tiny_checkpoint, tmp_path):
    """In a network namespace with no interface at all, not even loopback."""
    command = [
        "unshare",
        "-rn",
        sys.executable,
        "-m",
        "vtseg_ros.cli",
        "segment",
        str(street_bag),
        "--checkpoint",
        str(tiny_checkpoint),
        "--out",
        str(tmp_path / "masks"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_bag_cannot_name_a_module_to_import(tmp_path, monkeypatch):
    """The player needs the classes of a bag's types; importing any name in a bag would execute files next to it."""
    pytest.importorskip("rclpy")
    from vtseg_ros.nodes.player import _message_class

    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "msg.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Payload: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in (
        "evil/msg/Payload",
        "evil.msg/msg/Payload",
        "os/msg/system",
        "../evil/msg/Payload",
        "std_msgs/msg/Nothing",
        "",
    ):
        assert _message_class(name) is None, name
    assert not (tmp_path / "executed").exists()
    assert _message_class("std_msgs/msg/Header").__name__ == "Header"
    assert _message_class("vtseg_ros/msg/LabelMap").__name__ == "LabelMap"


def test_label_files_named_outside_stay_inside(street_bag, tmp_path):
    """An archive whose files are called ../../x: read, never unpacked; nothing is written but the bag that was named."""
    from vtseg_ros.cli import main

    with BagReader(street_bag) as bag:
        stamp = next(stamp_of(message) for _, _, message in bag.messages(["/camera/image"]))
    payload = cv2.imencode(".png", np.full((64, 128), 5, np.uint8))[1].tobytes()
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    with zipfile.ZipFile(inner / "labels.zip", "w") as archive:
        archive.writestr(f"../../../escaped_{stamp:019d}.png", payload)
    out = inner / "merged"
    code = main(
        [
            "labels",
            "merge",
            str(street_bag),
            str(inner / "labels.zip"),
            "--out",
            str(out),
            "--labels",
            "street",
        ]
    )
    assert code == 0
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name == "a/b/c/labels.zip" or name.startswith("a/b/c/merged/") for name in files), files
    with BagReader(out) as bag:
        assert bag.topics["/camera/label/compressed"].count == 1
