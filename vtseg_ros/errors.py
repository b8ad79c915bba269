# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Exceptions that input can cause. Each message contains the problem, the expected value and the remedy."""


class VTSegError(Exception):
    """Base class of all errors caused by input, arguments or files; the command line exits with 2."""


class CheckpointError(VTSegError):
    """A checkpoint that cannot be used: truncated, of another model, or with other keys or shapes."""


class ConfigError(VTSegError):
    """A value in a parameter, a configuration file or an argument that is not allowed."""


class BagError(VTSegError):
    """A bag that cannot be read or written, or lacks a topic."""


class ImageError(VTSegError):
    """An image message or file that cannot be decoded; the message contains the reason."""


class DeviceError(VTSegError):
    """A device or precision that this machine does not have."""


class DownloadError(VTSegError):
    """Weights that cannot be downloaded: missing, not reachable, or truncated."""


def is_out_of_memory(err: BaseException) -> bool:
    """Return whether an exception says that memory is missing: Python's, or that of torch for processors or GPUs."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(err, MemoryError) or any(word in str(err) for word in words)


def first_line(err: BaseException) -> str:
    """Return the first line of an exception's text, or the name of its class if it has none."""
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
