# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Lock files, what an atomic write replaces, and files without an end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE_S

from vtseg_ros import files
from vtseg_ros.files import locked, read_limited, write_atomically

pytest.importorskip("fcntl")


def test_shared_and_exclusive_holders(tmp_path):
    path = tmp_path / "folder" / "x.lock"
    with locked(path, exclusive=False) as first, locked(path, exclusive=False) as second:
        assert (first, second) == (False, False)
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
    with locked(path), pytest.raises(BlockingIOError), locked(path, exclusive=False, wait=False):
        pass
    with locked(path, wait=False) as waited:
        assert not waited


def test_who_waits_holds_the_file_that_is_there(tmp_path):
    """The holder removes the lock file: the lock of the removed file would lock nobody out."""
    path, waiting, seen = tmp_path / "x.lock", threading.Event(), []

    def other() -> None:
        with locked(path, on_wait=waiting.set) as waited:
            seen.append(waited)
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass

    with locked(path):
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(PATIENCE_S)
        path.unlink()
    thread.join()
    assert seen == [True]


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), locked(tmp_path / "file" / "x.lock"):
        pass
    with locked(tmp_path / "file" / "x.lock", required=False) as waited:
        assert not waited


def test_an_error_of_the_holder_releases_it(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "x.lock"):
        raise KeyError
    with locked(tmp_path / "x.lock", wait=False):
        pass


def test_a_pipe_is_written_to_not_replaced(tmp_path):
    """The same holds for devices, such as /dev/null and /dev/stdout."""
    path, read = tmp_path / "report.json", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    write_atomically(path, b"{}")
    reader.join(PATIENCE_S)
    assert path.is_fifo() and read == [b"{}"]


def test_the_target_of_a_link_is_replaced(tmp_path):
    link, target = tmp_path / "latest.json", tmp_path / "elsewhere" / "report.json"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in (b"first", b"second"):  # the target is missing at first
        write_atomically(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["report.json"]


def test_no_more_is_read_than_such_a_file_has(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="more than 1 MiB"):
        read_limited(Path("/dev/zero"), 1 << 20)
    (tmp_path / "list.txt").write_bytes(b"x" * 5)
    assert read_limited(tmp_path / "list.txt", 5) == b"x" * 5


def test_a_pipe_without_a_writer_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIPE_WAIT_S", 0.2)
    path = tmp_path / "list.txt"
    os.mkfifo(path)
    with pytest.raises(OSError, match="a pipe without data"):
        read_limited(path, 100)
    monkeypatch.setattr(files, "PIPE_WAIT_S", PATIENCE_S)
    writer = threading.Thread(target=path.write_bytes, args=(b"road\n" * 10,), daemon=True)
    writer.start()
    assert read_limited(path, 100) == b"road\n" * 10
    writer.join(PATIENCE_S)
