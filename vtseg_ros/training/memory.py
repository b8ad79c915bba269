# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Keep freed memory in the process: each update of a training frees and allocates the same large tensors."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next allocation instead of returning it to the system.

    Tensors above 32 MiB otherwise get new pages from the kernel each time, which takes about a quarter of an update on
    a CPU. The setting holds for the whole process, whose memory then stays at its peak.

    Returns:
        Whether the C library has this setting (glibc has).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
