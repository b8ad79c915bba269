# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg weights get` against a server on this machine: what arrives, and what does not."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtseg_ros.cli import main
from vtseg_ros.model import ERFNet, load_checkpoint
from vtseg_ros.published import download, table

pytest.importorskip("huggingface_hub")
transformers = pytest.importorskip("transformers")

NAME = "segformer_b0_cityscapes"
REPOSITORY = f"/{table.PUBLISHED[NAME].repository}/resolve/main/"


class Server:
    """Serves files as the Hugging Face Hub does, and remembers what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self, body: bool) -> None:
                path = self.path.split("?")[0]
                outer.requests.append((self.command, self.path, dict(self.headers)))
                content = outer.files.get(path)
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if body:
                    self.wfile.write(content[: len(content) // 2] if path in outer.cut else content)

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    """model.safetensors of a random SegFormer-B0 for Cityscapes."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    config = transformers.SegformerConfig(num_labels=19)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def get(tmp_path, monkeypatch, capsys):
    """get(name) runs the command in an empty folder: exit code, the lines of its errors, the files it left."""
    home, folder = tmp_path / "home", tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = main(["weights", "get", *arguments])
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
        assert not home.exists() and not list((tmp_path / "temporary").iterdir())
        return code, err, sorted(path.name for path in folder.iterdir())

    return run


def test_the_newer_format_is_taken_first(server, weights, get):
    server.files[f"{REPOSITORY}model.safetensors"] = weights
    assert get(NAME) == (0, [], [f"{NAME}.safetensors"])
    loaded = load_checkpoint(f"{NAME}.safetensors")
    assert loaded.training["converted"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert loaded.licence.name == "non-commercial research"
    headers = [{key.lower(): value for key, value in sent.items()} for _, _, sent in server.requests]
    assert not any("authorization" in sent for sent in headers)


def test_the_older_format_when_there_is_no_other(server, get, tmp_path):
    torch.manual_seed(3)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=19))
    torch.save(model.state_dict(), tmp_path / "model.bin")
    server.files[f"{REPOSITORY}pytorch_model.bin"] = (tmp_path / "model.bin").read_bytes()
    assert get(NAME, "--size", "512x256", "--out", "b0.safetensors") == (0, [], ["b0.safetensors"])
    assert load_checkpoint("b0.safetensors").input_size == (512, 256)
    asked = [path for _, path, _ in server.requests]
    assert asked[0].startswith(f"{REPOSITORY}model.safetensors")


def test_a_file_by_url(server, get, monkeypatch, tmp_path):
    torch.manual_seed(3)
    torch.save(ERFNet(num_classes=20).state_dict(), tmp_path / "e.pth")
    entry = replace(table.PUBLISHED["erfnet_cityscapes"], url=f"{server.url}/models/erfnet_pretrained.pth")
    monkeypatch.setitem(table.PUBLISHED, entry.name, entry)
    code, err, _ = get(entry.name)
    assert code == 2 and len(err) == 1 and "404" in err[0]
    server.files["/models/erfnet_pretrained.pth"] = (tmp_path / "e.pth").read_bytes()
    server.cut.add("/models/erfnet_pretrained.pth")
    code, err, left = get(entry.name)
    assert (code, len(err), left) == (2, 1, []) and "erfnet_cityscapes: the download" in err[0], err
    server.cut.clear()
    assert get(entry.name) == (0, [], ["erfnet_cityscapes.safetensors"])


def test_what_goes_wrong_is_one_line_and_nothing_is_written(server, weights, get, monkeypatch):
    def refused(words: str) -> None:
        code, err, left = get(NAME)
        assert (code, len(err), left) == (2, 1, []) and words in err[0], err

    refused("has no file model.safetensors or pytorch_model.bin")
    path = f"{REPOSITORY}model.safetensors"
    server.files[path] = b"<html>a login page</html>"
    refused("cannot be read")
    server.files[path] = weights
    b1 = replace(
        table.PUBLISHED["segformer_b1_cityscapes"], name=NAME, repository=table.PUBLISHED[NAME].repository
    )
    with monkeypatch.context() as context:  # the repository holds another network than the table says
        context.setitem(table.PUBLISHED, NAME, b1)
        refused("does not hold the weights of")
    with monkeypatch.context() as context:
        context.setitem(table.PUBLISHED, NAME, replace(table.PUBLISHED[NAME], sha256="ab" * 32))
        refused(f"expected sha256 {'ab' * 32}")
    code, err, _ = get("segformer_b7_cityscapes")
    assert code == 2 and "NAME: expected one of segformer_b0_cityscapes" in err[0]
    assert get(NAME)[0] == 0


def test_a_truncated_download(server, weights, get):
    server.files[f"{REPOSITORY}model.safetensors"] = weights
    server.cut.add(f"{REPOSITORY}model.safetensors")
    code, err, left = get(NAME)
    assert (code, len(err), left) == (2, 1, []) and "the download from" in err[0], err


def test_no_server(get, monkeypatch, caplog):
    # Between its attempts it waits for 23 s in all.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, err, left = get(NAME)
    assert (code, len(err), left) == (2, 1, []) and "the download from" in err[0], err
    # It names the file and the command that converts it.
    assert f"download https://huggingface.co{REPOSITORY}model.safetensors" in err[0]
    assert err[0].endswith(f"vtseg weights convert model.safetensors --as {NAME}")
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_without_huggingface_hub(get, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, err, left = get(NAME)
    assert (code, len(err), left) == (2, 1, [])
    assert err[0].startswith(
        f"vtseg weights: {NAME}: huggingface_hub is missing. pip install 'vtseg_ros[hub]', or "
    )
    assert err[0].endswith(f"vtseg weights convert model.safetensors --as {NAME}")


def test_telemetry_is_off(server, weights, tmp_path):
    """In a separate process, because huggingface_hub reads its environment once."""
    server.files[f"{REPOSITORY}model.safetensors"] = weights
    code = (
        "import sys; from vtseg_ros.cli import main; code = main(sys.argv[1:]);"
        "from huggingface_hub import constants; assert constants.HF_HUB_DISABLE_TELEMETRY; sys.exit(code)"
    )
    clean = {key: value for key, value in os.environ.items() if key not in download.QUIET}
    done = subprocess.run(
        [sys.executable, "-c", code, "weights", "get", NAME],
        cwd=tmp_path,
        env={**clean, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.safetensors"]
    assert {path for _, path, _ in server.requests} == {f"{REPOSITORY}model.safetensors"}
