# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg doctor` in set-ups that are really broken: each problem is named, and there is never a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vtseg_ros.cli import main
from vtseg_ros.diagnosis import EXTRAS, Diagnosis, _bad_weights, _environment

ROOT = Path(__file__).resolve().parents[1]
NUMPY_1_ERROR = """
A module that was compiled using NumPy 1.x cannot be run in
NumPy 2.4.6 as it may crash.
"""


def doctor(
    *arguments: str,
    first: Path | None = None,
    environment: dict[str, str] | None = None,
    code: int = 0,
    prefix: tuple[str, ...] = (),
) -> dict:
    """Run the command with a folder at the start of Python's path; returns its report."""
    env = {**os.environ, **(environment or {})}
    if first:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(first), str(ROOT), env.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "vtseg_ros.cli", "doctor", "--json", "-", *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def finding(report: dict, name: str) -> dict:
    found = [entry for entry in report["findings"] if entry["name"] == name]
    assert len(found) == 1, report["findings"]
    assert found[0]["remedy"]
    return found[0]


def stub(folder: Path, package: str, text: str) -> Path:
    path = folder / package / "__init__.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return folder


def test_an_installation_without_problems():
    report = doctor()
    assert not [entry for entry in report["findings"] if entry["problem"]]
    assert report["speed"]["median_ms"] > 0 and report["speed"]["size"] == "320x96"
    assert report["weights"]["street_tiny"] == "10.0 MB"
    assert re.match(r"\d+\.\d+", report["versions"]["numpy"])
    assert report["machine"]["cores"] >= 1 and report["machine"]["memory_free_mb"] > 0


def test_the_text_report():
    done = subprocess.run(
        [sys.executable, "-m", "vtseg_ros.cli", "doctor", "--no-speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^versions\n  vtseg_ros +\d", done.stdout, re.M) and "problems: none" in done.stdout


def test_the_report_makes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("vtseg_ros.commands.doctor.diagnose", lambda **_: Diagnosis())
    file = tmp_path / "new" / "report.json"
    assert main(["doctor", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == {"findings": []}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"import sys; print({NUMPY_1_ERROR!r}, file=sys.stderr)\n"
            "raise ImportError('numpy.core.multiarray failed to import')",
            "numpy.core.multiarray failed to import",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11"),
        (f"import sys; print({NUMPY_1_ERROR!r}, file=sys.stderr)", "it may crash"),
    ],
    ids=["raises", "crashes", "warns"],
)
def test_cv_bridge_for_numpy_1(tmp_path, text, reason):
    pytest.importorskip("rclpy")
    report = doctor("--no-speed", first=stub(tmp_path, "cv_bridge", text), code=1)
    found = finding(report, "numpy_1_module")
    assert found["text"].startswith("cv_bridge was built for NumPy 1") and reason in found["text"]
    assert "numpy<2" in found["remedy"]


def test_two_opencv_packages(tmp_path):
    (tmp_path / "opencv_python-4.10.0.84.dist-info").mkdir()
    (tmp_path / "opencv_python-4.10.0.84.dist-info" / "METADATA").write_text(
        "Name: opencv-python\nVersion: 4.10.0.84\n"
    )
    found = finding(doctor("--no-speed", first=tmp_path, code=1), "two_opencv")
    assert "opencv-python 4.10.0.84" in found["text"] and "opencv-python-headless" in found["text"]
    assert found["remedy"].startswith("pip uninstall -y opencv-python opencv-python-headless")


def test_a_second_opencv_on_the_path_that_is_broken(tmp_path):
    folder = stub(tmp_path, "cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    report = doctor("--no-speed", first=folder, code=1)
    assert str(folder) in finding(report, "two_opencv")["text"]
    assert "cv2 cannot be imported: ImportError: libGL.so.1" in finding(report, "broken_import")["text"]


def test_broken_numpy(tmp_path):
    report = doctor(first=stub(tmp_path, "numpy", "raise RuntimeError('half installed')"), code=1)
    texts = [entry["text"] for entry in report["findings"]]
    assert any("numpy cannot be imported: RuntimeError: half installed" in text for text in texts)
    assert "half installed" in finding(report, "no_segmentation")["text"]
    assert report["versions"]["torch"]


def test_missing_extras(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('panda3d', 'rclpy'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    report = doctor("--no-speed", first=tmp_path)
    assert report["extras"]["street"] == "missing"
    hints = {entry["text"]: entry["remedy"] for entry in report["findings"]}
    assert hints["vtseg synth: panda3d is missing"] == "pip install 'vtseg_ros[street]'"
    assert any(text.startswith("ROS 2 is not in this environment") for text in hints)


def test_every_extra_is_known():
    text = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", text, re.S)[1]
    assert set(EXTRAS) == set(re.findall(r"^(\w+) = ", section, re.M))


def test_64_mb_of_shared_memory():
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    prefix = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    found = finding(doctor("--no-speed", prefix=prefix, code=1), "small_shared_memory")
    assert "/dev/shm has 64 MB" in found["text"] and "--shm-size=1g" in found["remedy"]


def test_weights_that_are_not_whole(tmp_path):
    whole = (ROOT / "vtseg_ros" / "weights" / "street_tiny.safetensors").read_bytes()
    path = tmp_path / "w.safetensors"
    for payload, problem in (
        (whole, ""),
        (whole[:-1], f"expected {len(whole)} bytes, got {len(whole) - 1}"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 10\n", "not a safetensors file"),
        (b"", "not a safetensors file"),
        (b"\x02" + bytes(7) + b"[]", "its header cannot be read"),
    ):
        path.write_bytes(payload)
        assert problem in _bad_weights(path, len(payload)) and bool(problem) == bool(
            _bad_weights(path, len(payload))
        )


def test_a_missing_fast_dds_profile():
    findings: list = []
    facts = _environment(findings, {"FASTRTPS_DEFAULT_PROFILES_FILE": "/no/such.xml", "HOME": "/root"})
    assert facts == {"FASTRTPS_DEFAULT_PROFILES_FILE": "/no/such.xml"}
    assert "no such file: /no/such.xml" in findings[0].text


OTHER_TYPE = """
import rclpy, sensor_msgs.msg
rclpy.init()
node = rclpy.create_node("listener")
node.create_subscription(sensor_msgs.msg.Image, "/kind/image", print, 1)
print("ready")
rclpy.spin(node)
"""


@pytest.fixture
def listener(ros_environment, start_process):
    """A process that subscribes to images on /kind/image; one process cannot have two types of a topic."""
    process = start_process([sys.executable, "-c", OTHER_TYPE], ros_environment)
    process.wait_for("ready")
    yield
    process.kill()


@pytest.fixture
def ends(ros_environment):
    """Publishers and subscriptions of nodes of this process."""
    from nodes.harness import Harness

    made = Harness(ros_environment)
    yield made
    made.close()


def test_topics_whose_ends_do_not_match(ends, listener, ros_environment):
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    from vtseg_ros.nodes.topic_check import check_topic

    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    latched = QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )
    ends.publisher(Image, "/qos/image", best_effort)
    ends.collect(Image, "/qos/image", reliable)
    ends.publisher(Image, "/good/image", reliable)
    ends.collect(Image, "/good/image", best_effort)
    ends.publisher(Image, "/late/image", reliable)
    ends.collect(Image, "/late/image", latched)
    ends.publisher(CompressedImage, "/kind/image", reliable)
    ends.publisher(Image, "/alone/image", best_effort)

    def command(topic: str, code: int) -> dict:
        return doctor("--no-speed", "--topic", topic, environment=ros_environment, code=code)

    def ask(topic: str, code: int) -> dict:
        """As the command, without its other checks and the wait for a discovery that is complete here."""
        report = check_topic(ends.node, topic, discovery_s=0, late_s=0 if topic == "/godo/image" else 30)
        assert any(entry["problem"] for entry in report["findings"]) == bool(code), report
        return report

    report = command("/qos/image", 1)
    assert report["topic"]["publishers"] == ["/harness (sensor_msgs/msg/Image, best_effort, volatile)"]
    found = finding(report, "qos_mismatch")
    assert found["text"].startswith("/qos/image: /harness does not receive from /harness: QoS:")
    assert "input_qos: sensor_data" in found["remedy"]
    assert "transient local" in finding(ask("/late/image", 1), "qos_mismatch")["remedy"]
    assert "sensor_msgs/msg/CompressedImage" in finding(ask("/kind/image", 1), "type_mismatch")["text"]
    assert "/good/image" in finding(ask("/godo/image", 1), "no_publisher")["text"]
    assert not [entry for entry in command("/good/image", 0)["findings"] if entry["problem"]]
    choice = finding(ask("/alone/image", 0), "qos_choice")
    assert "input_qos reliable would not receive" in choice["text"] and not choice["problem"]
