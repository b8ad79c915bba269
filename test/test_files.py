# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Lock files: who waits for whom, and what happens where there can be none."""

from __future__ import annotations

import threading

import pytest
from conftest import PATIENCE_S

from vtseg_ros.files import locked

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
