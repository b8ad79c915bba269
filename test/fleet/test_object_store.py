# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags and results in an object store: moto's S3 server on 127.0.0.1."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")
import fsspec
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from fleet.conftest import FRAMES, masks_of, patiently, write_images
from vtseg_ros.cli import main
from vtseg_ros.commands.segment import SegmentJob, add_arguments
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.fleet import (
    BagCache,
    RayOptions,
    Url,
    Watch,
    expand_inputs,
    object_store,
    plan_tasks,
    run_on_ray,
)
from vtseg_ros.fleet.bag_cache import GB
from vtseg_ros.fleet.object_store import UPLOADING, digest_of_listing, list_files
from vtseg_ros.fleet.urls import parse_place, result_name

NS = 1_000_000_000
ABSENT = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE")


def set_store(patch: pytest.MonkeyPatch, endpoint: str, folder: Path) -> None:
    """Point every S3 client of this process and its children to an endpoint on 127.0.0.1."""
    for name in ABSENT:
        patch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_MAX_ATTEMPTS": "1",
        "VTSEG_CACHE": str(folder / "cache"),
    }.items():
        patch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()  # clients keep the endpoint that they were made with


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a running store."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An s3fs file system with an empty bucket `fleet`."""
    set_store(monkeypatch, server, tmp_path)
    system = fsspec.filesystem("s3", use_listings_cache=False)
    if system.exists("fleet"):
        system.rm("fleet", recursive=True)
    system.mkdir("fleet")
    yield system
    system.clear_instance_cache()


def put(store, folder: Path, target: str) -> None:
    """Upload the files of a bag."""
    for file in folder.iterdir():
        store.put_file(str(file), f"{target}/{file.name}")


@pytest.fixture
def in_store(store, bags: Path) -> Path:
    """The local originals of three bags in s3://fleet/in; one of them is a single file."""
    for number in (1, 10):
        put(store, bags / f"drive_{number}", f"fleet/in/drive_{number}")
    store.put_file(str(next((bags / "drive_2").glob("*.mcap"))), "fleet/in/drive_2.mcap")
    return bags


def errors_of(capsys: pytest.CaptureFixture) -> list[str]:
    text = capsys.readouterr().err
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith(("failed:", "vtseg"))]


def test_places():
    assert parse_place("file:///data/a%20b") == Path("/data/a b")
    assert parse_place("drives/a") == Path("drives/a")
    url = parse_place("s3://bucket/in/drive.mcap/")
    assert isinstance(url, Url) and (url.name, url.stem, str(url)) == (
        "drive.mcap",
        "drive",
        "s3://bucket/in/drive.mcap",
    )
    assert str(Url("s3://bucket") / "a") == "s3://bucket/a" and result_name(url) == "drive"


def test_a_job_from_store_to_store(in_store, store, segment, tmp_path):
    arguments = ["s3://fleet/in/drive_*", "--out", "s3://fleet/out"]
    assert segment(*arguments, "--json", tmp_path / "first.json") == 0
    first = json.loads((tmp_path / "first.json").read_text())
    assert [(one["input"], one["state"], one["result"]["frames"]) for one in first] == [
        (f"s3://fleet/in/{name}", "done", FRAMES) for name in ("drive_1", "drive_10", "drive_2.mcap")
    ]
    for name, stem in (("drive_1", "drive_1"), ("drive_10", "drive_10"), ("drive_2.mcap", "drive_2")):
        store.get(f"fleet/out/{stem}/", str(tmp_path / "got" / stem), recursive=True)
        record = json.loads((tmp_path / "got" / stem / "result.json").read_text())
        assert record["input"] == f"s3://fleet/in/{name}"
        assert not (tmp_path / "got" / stem / UPLOADING).exists()
        assert segment(in_store / stem, "--out", tmp_path / "single" / stem / "masks") == 0
        assert masks_of(tmp_path / "got" / stem) == masks_of(tmp_path / "single" / stem)
    written = {path: info["LastModified"] for path, info in store.find("fleet/out", detail=True).items()}
    shutil.rmtree(tmp_path / "cache")
    assert segment(*arguments, "--json", tmp_path / "second.json") == 0
    assert {one["state"] for one in json.loads((tmp_path / "second.json").read_text())} == {"skipped"}
    assert written == {
        path: info["LastModified"] for path, info in store.find("fleet/out", detail=True).items()
    }
    assert not (tmp_path / "cache").exists()  # nothing was fetched again
    assert segment(*arguments, "--min-confidence", "0.5") == 1  # other settings


def test_an_interrupted_upload_is_repeated(in_store, store, segment, monkeypatch, capsys):
    arguments = ["s3://fleet/in/drive_1", "--out", "s3://fleet/out"]
    put_file, sent = type(store)._put_file, []

    async def broken(self, local, remote, **options):
        if sent:
            raise ConnectionResetError("connection reset by peer")
        sent.append(remote)
        return await put_file(self, local, remote, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "_put_file", broken)
        patch.setattr("vtseg_ros.fleet.driver.ATTEMPTS", 1)
        store.clear_instance_cache()  # new clients have the patched method
        assert segment(*arguments) == 1
    store.clear_instance_cache()
    (line,) = errors_of(capsys)
    assert "s3://fleet/out/drive_1" in line and "connection reset" in line
    left = {path.rpartition("/")[2] for path in store.find("fleet/out")}
    assert UPLOADING in left and "result.json" not in left
    store.pipe_file("fleet/out/drive_1/masks/stale", b"of the interrupted upload")
    assert segment(*arguments) == 0
    left = {path.rpartition("/")[2] for path in store.find("fleet/out")}
    assert "result.json" in left and not left & {UPLOADING, "stale"}


def test_foreign_files_are_not_overwritten(in_store, store, segment, capsys):
    store.pipe_file("fleet/out/drive_1/notes.txt", b"mine")
    assert segment("s3://fleet/in/drive_1", "--out", "s3://fleet/out") == 1
    assert "no readable result.json" in errors_of(capsys)[0]
    assert store.cat_file("fleet/out/drive_1/notes.txt") == b"mine"
    assert len(store.find("fleet/out")) == 1


def test_absent_bags_and_buckets_among_others(in_store, segment, tmp_path, capsys):
    bad = [
        "s3://fleet/in/absent",
        "s3://no-such-bucket/drive",
        "s3://no-such-bucket/drives_*",
        "nostore://a/b",
    ]
    found = tmp_path / "out.json"
    assert segment(*bad, in_store / "drive_0", "--out", tmp_path / "out", "--json", found) == 1
    states = {one["input"]: one["state"] for one in json.loads(found.read_text())}
    assert states == {**dict.fromkeys(bad, "failed"), str(in_store / "drive_0"): "done"}
    lines = errors_of(capsys)
    assert len(lines) == len(bad), lines
    for url, line in zip(bad, lines, strict=True):
        assert line.startswith(f"failed: {url}: "), line
    assert segment(in_store / "drive_0", "--out", "s3://no-such-bucket/out") == 2
    (line,) = errors_of(capsys)
    assert line.startswith("vtseg segment: s3://no-such-bucket/out")
    with pytest.raises(ConfigError, match="no path matches"):
        expand_inputs(["s3://fleet/in/nothing_*"])


def test_without_credentials_and_without_a_server(bags, monkeypatch, segment, tmp_path, capsys):
    with socket.socket() as free:  # bound and not listening
        free.bind(("127.0.0.1", 0))
        set_store(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)
        assert segment("s3://fleet/a", bags / "drive_0", "--out", tmp_path / "one") == 1
        (line,) = errors_of(capsys)
        assert "AWS_ENDPOINT_URL" in line, line
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        fsspec.filesystem("s3").clear_instance_cache()
        assert segment("s3://fleet/a", bags / "drive_0", "--out", tmp_path / "two") == 1
        (line,) = errors_of(capsys)
        assert "Set AWS_ACCESS_KEY_ID" in line, line
    for folder in ("one", "two"):
        assert len(masks_of(tmp_path / folder / "drive_0")) == FRAMES


def test_a_bag_larger_than_the_cache(in_store, segment, tmp_path, capsys):
    arguments = ["s3://fleet/in/drive_1", in_store / "drive_0", "--out", tmp_path / "out"]
    assert segment(*arguments, "--cache-size", "0.000001") == 1
    (line,) = errors_of(capsys)
    assert "larger than the cache" in line and "Raise --cache-size" in line
    assert segment(*arguments, "--cache-size", "0") == 2


@pytest.fixture
def sized(store) -> Callable[[str, int], tuple[Url, list]]:
    """sized("a", 100): a stored bag of 100 bytes, and its listing."""

    def make(name: str, size: int):
        store.pipe_file(f"fleet/sized/{name}/content", name.encode() * size)
        url = Url(f"s3://fleet/sized/{name}")
        return url, list_files(url)

    return make


def kept(folder: Path) -> list[str]:
    """Names of the bags in a cache."""
    return sorted(path.parent.name for path in folder.glob("*/*/content"))


def test_the_least_recently_used_copy_goes_first(sized, tmp_path):
    cache = BagCache(folder=tmp_path / "copies", limit_gb=300 / GB)
    times = iter(range(1, 100))

    def use(name: str, size: int = 100) -> None:
        with cache.local(*sized(name, size)) as path:
            assert (path / "content").read_bytes() == name.encode() * size
        os.utime(path.parent / "complete", (0, next(times)))  # file systems have coarse clocks

    for name in "abc":
        use(name)
    use("a")
    use("d")
    assert kept(tmp_path / "copies") == ["a", "c", "d"]
    use("e", 200)
    assert kept(tmp_path / "copies") == ["d", "e"]
    use("e", 201)  # changed in the store: another copy
    assert kept(tmp_path / "copies") == ["e"]
    with pytest.raises(BagError, match="larger than the cache"):
        use("f", 301)
    locks = {path.name for path in (tmp_path / "copies").glob("*.lock")}
    assert len(locks) <= 3  # of the copy, of the folder, of the last change


def test_a_copy_in_use_stays_and_others_wait(sized, tmp_path):
    cache = BagCache(folder=tmp_path / "copies", limit_gb=150 / GB)
    other, began = sized("b", 100), threading.Event()
    done: list[bytes] = []

    def use_other() -> None:
        began.set()
        with cache.local(*other) as path:
            done.append((path / "content").read_bytes())

    thread = threading.Thread(target=use_other)
    with cache.local(*sized("a", 100)) as path:
        thread.start()
        began.wait()
        thread.join(1.0)
        assert thread.is_alive() and (path / "content").exists() and not done
    thread.join(30)
    assert done == [b"b" * 100] and kept(tmp_path / "copies") == ["b"]


def read_many(folder: Path, bags: list, seed: int) -> None:
    cache = BagCache(folder=folder, limit_gb=250 / GB)
    for number in np.random.default_rng(seed).integers(0, len(bags), 25):
        url, files = bags[number]
        with cache.local(url, files) as path:
            assert (path / "content").read_bytes() == url.name.encode() * 100
            total = sum(int(size.read_text()) for size in folder.glob("*/bytes"))
            assert total <= 250, total


def test_processes_share_a_cache(sized, tmp_path):
    bags = [sized(name, 100) for name in "abcde"]
    context = multiprocessing.get_context("spawn")
    readers = [context.Process(target=read_many, args=(tmp_path / "copies", bags, seed)) for seed in range(2)]
    for reader in readers:
        reader.start()
    read_many(tmp_path / "copies", bags, 2)
    for reader in readers:
        reader.join(300)
    assert [reader.exitcode for reader in readers] == [0, 0]


def test_a_killed_workers_leftovers_are_removed(sized, tmp_path):
    cache = BagCache(folder=tmp_path / "copies", limit_gb=100 / GB)
    url, files = sized("a", 100)
    with cache.local(url, files) as path:
        entry = path.parent
    (entry / "complete").unlink()  # as if it had been killed while it copied
    (path / "content").write_bytes(b"half")
    with cache.local(*sized("b", 100)):
        assert kept(tmp_path / "copies") == ["b"]
    orphan = tmp_path / "copies" / ".result_killed"
    orphan.mkdir()
    with cache.scratch() as made:
        assert not orphan.exists()
        with cache.scratch() as another:
            assert made.exists() and another != made
    assert not list((tmp_path / "copies").glob(".result_*"))


def test_a_truncated_copy_is_an_error(sized, tmp_path, store):
    url, files = sized("a", 100)
    store.pipe_file("fleet/sized/a/content", b"a" * 99)
    with pytest.raises(BagError, match="expected 100 bytes, got 99"):
        with BagCache(folder=tmp_path / "copies").local(url, files):
            pass
    assert kept(tmp_path / "copies") == []
    assert digest_of_listing(files) != digest_of_listing(list_files(url))


def test_keys_cannot_leave_the_folder(monkeypatch, store):
    listed = {"fleet/x/../../up": {"size": 1}}
    monkeypatch.setattr(type(store), "find", lambda *_, **__: listed)
    with pytest.raises(BagError, match="leaves its folder"):
        object_store.list_files(Url("s3://fleet/x"))


@pytest.mark.parametrize("command", ["evaluate", "select"])
def test_urls_need_a_job(command, in_store, tmp_path, capsys):
    assert main([command, "s3://fleet/in/drive_1", "--out", str(tmp_path / "out")]) == 2
    (line,) = errors_of(capsys)
    assert "Add --ray none" in line


def test_selection_and_labels_from_the_store(in_store, store, tiny_checkpoint, tmp_path):
    options = ["--checkpoint", str(tiny_checkpoint), "--count", "2", "--spacing", "0", "--device", "cpu"]
    local = [str(in_store / name) for name in ("drive_1", "drive_10")]
    assert main(["select", *local, *options, "--out", str(tmp_path / "single")]) == 0
    remote = ["s3://fleet/in/drive_1", "s3://fleet/in/drive_10"]
    job = ["select", *remote, *options, "--out", "s3://fleet/chosen", "--ray", "none"]
    assert main(job) == 0
    assert main(job) == 2  # nothing is overwritten
    store.get("fleet/chosen/selection/", str(tmp_path / "got"), recursive=True)
    frames = sorted(path.relative_to(tmp_path / "single") for path in tmp_path.glob("single/drive*/*"))
    assert len(frames) > 2
    for name in frames:
        assert (tmp_path / "got" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()
    extract = ["labels", "extract", *remote, "--every", "1", "--out", "s3://fleet/frames"]
    assert main(extract) == 0
    assert len([path for path in store.find("fleet/frames") if path.endswith(".png")]) == 2 * FRAMES


def test_a_local_cluster_reads_from_the_store(store, tiny_checkpoint, tmp_path):
    pytest.importorskip("ray")
    rng = np.random.default_rng(5)
    for number in range(2):
        write_images(tmp_path / f"ray_{number}", rng, [NS, NS + NS // 10])
        put(store, tmp_path / f"ray_{number}", f"fleet/ray/ray_{number}")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    job = SegmentJob(parser.parse_args(["x", "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]))
    tasks = plan_tasks(expand_inputs(["s3://fleet/ray/ray_*"]), Url("s3://fleet/ray_out"))
    options, cache = RayOptions(address="local", workers=1), BagCache(folder=tmp_path / "copies")
    frames: list[int] = []
    watch = Watch(on_frames=frames.append)
    outcomes = patiently(lambda: run_on_ray(job, tasks, watch, options, cache))
    assert [outcome.state for outcome in outcomes] == ["done", "done"], outcomes
    assert frames[-1] == 2 * FRAMES  # known only when they are read
    records = [path for path in store.find("fleet/ray_out") if path.endswith("result.json")]
    assert len(records) == 2 and len(list((tmp_path / "copies").glob("*/complete"))) == 2
