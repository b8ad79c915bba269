# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Show images, masks, confidence and latency in the Rerun viewer, on a timeline of frame stamps."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.label_set import IGNORE, LabelSet

if TYPE_CHECKING:
    from rerun import AsComponents

APPLICATION = "vtseg"
TIMELINE = "stamp"
JPEG_QUALITY = 85
MASK_OPACITY = 0.5
WEB_PORT = 9090
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
FLUSH_S = 20.0
"""Longest time to write or send the remaining data, s."""


class Recording:
    """A recording for the viewer, which is written to a file or sent to a viewer.

    Entities, below the name of the camera: `image`, `mask` (with the class list), `confidence`; below
    `latency/CAMERA`: one scalar in ms per part of the latency. Each value is logged at its stamp, in any order.

    Args:
        save: file to write (.rrd); None = start a viewer.
        web: serve the viewer for a browser on this machine instead of opening a window.
        port: port of the web viewer; the next port serves the data.

    Raises:
        ConfigError: if rerun-sdk is missing, the file exists, or no viewer can be started.
    """

    def __init__(self, *, save: Path | None = None, web: bool = False, port: int = WEB_PORT) -> None:
        try:
            import rerun
        except ImportError as err:
            raise ConfigError(
                f"viewer: rerun-sdk is missing; expected it installed, got: {err}. pip install 'vtseg_ros[view]'"
            ) from err
        self._rerun, self._save, self._part = rerun, save, None
        self._stream = rerun.RecordingStream(APPLICATION)
        self.counts: dict[str, int] = {}
        """Number of values that were logged, by entity."""
        self.url = ""
        """Address of the web viewer with this recording; empty without one."""
        self._cameras: set[str] = set()
        if save is not None:
            if save.exists():
                raise ConfigError(
                    f"--save {save}: the file exists; expected a new file, got one. Remove it or choose another name"
                )
            if not save.parent.is_dir():
                raise ConfigError(f"--save {save}: no such folder; expected {save.parent} to exist. Make it")
            self._part = save.with_name(f".{save.name}.part")
            self._stream.save(self._part)
            return
        if not web and sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS):
            raise ConfigError(
                f"viewer: no display; expected {' or '.join(DISPLAYS)} to be set, got neither. Use --web or --save FILE.rrd"
            )
        turn_analytics_off()
        try:
            if web:
                data = self._stream.serve_grpc(grpc_port=port + 1)
                rerun.serve_web_viewer(web_port=port, open_browser=False)
                self.url = f"http://localhost:{port}/?url={quote(data, safe='')}"
            else:
                self._stream.spawn()
        except (OSError, RuntimeError) as err:
            raise ConfigError(
                f"viewer: the viewer does not start: {err}. Use --web or --save FILE.rrd"
            ) from err

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=kind is None or issubclass(kind, KeyboardInterrupt))

    def close(self, *, keep: bool = True) -> None:
        """Send the remaining data and finish the file.

        Args:
            keep: False removes the unfinished file.

        Raises:
            ConfigError: if the data could not be written or sent completely; the file is removed.
        """
        part, self._part = self._part, None
        problem = ""
        try:
            self._stream.flush(timeout_sec=FLUSH_S)
        except RuntimeError as err:
            problem = str(err)
        # Waits for a writer thread; if a full disk ended the thread, this may never return.
        ending = threading.Thread(target=self._stream.disconnect, daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        if ending.is_alive():
            problem = problem or "its writer does not finish"
            atexit.unregister(self._rerun.rerun_shutdown)  # which would also wait for it
        if part is not None:
            if keep and self.counts and not problem:
                problem = _unreadable(part)
            if keep and self.counts and not problem and self._save is not None:
                os.replace(part, self._save)
            else:
                part.unlink(missing_ok=True)
        if problem and keep:
            remedy = "Is the disk full?" if self._save else "If no viewer runs here: --web or --save FILE.rrd"
            raise ConfigError(f"viewer: the recording is not complete: {problem}. {remedy}")

    def log_labels(self, labels: LabelSet, camera: str = "camera") -> None:
        """Set the class list of a camera's masks."""
        classes = [(index, name, labels.colors[index]) for index, name in enumerate(labels.names)]
        classes.append((IGNORE, "unlabelled", (0, 0, 0)))
        self._add_camera(camera)
        self._stream.log(camera, self._rerun.AnnotationContext(classes), static=True)
        self._count(camera)

    def log_image(self, image: np.ndarray, stamp_ns: int, camera: str = "camera") -> None:
        """Add an image (H, W, 3) uint8 RGB."""
        pixels = self._rerun.Image(np.ascontiguousarray(image)).compress(jpeg_quality=JPEG_QUALITY)
        self._log(f"{camera}/image", pixels, stamp_ns, camera)

    def log_mask(self, mask: np.ndarray, stamp_ns: int, camera: str = "camera") -> None:
        """Add a mask (h, w) uint8."""
        shown = self._rerun.SegmentationImage(np.ascontiguousarray(mask), opacity=MASK_OPACITY)
        self._log(f"{camera}/mask", shown, stamp_ns, camera)

    def log_confidence(self, confidence: np.ndarray, stamp_ns: int, camera: str = "camera") -> None:
        """Add a confidence (h, w) uint8, 255 = certain."""
        self._log(
            f"{camera}/confidence",
            self._rerun.Image(np.ascontiguousarray(confidence), "L"),
            stamp_ns,
            camera,
        )

    def log_latency(self, parts_s: Mapping[str, float], stamp_ns: int, camera: str = "camera") -> None:
        """Add the parts of a frame's latency, in s by name; shown in ms."""
        for name, seconds in parts_s.items():
            self._log(f"latency/{camera}/{name}_ms", self._rerun.Scalars(1e3 * seconds), stamp_ns, camera)

    def _log(self, entity: str, value: AsComponents, stamp_ns: int, camera: str) -> None:
        self._add_camera(camera)
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))
        self._stream.log(entity, value)
        self._count(entity)

    def _count(self, entity: str) -> None:
        self.counts[entity] = self.counts.get(entity, 0) + 1

    def _add_camera(self, camera: str) -> None:
        """Update the layout for a new camera: mask over image, confidence, latency."""
        if camera in self._cameras:
            return
        self._cameras.add(camera)
        from rerun import blueprint

        rows = [
            blueprint.Horizontal(
                blueprint.Spatial2DView(name=name, origin=name, contents=[f"{name}/image", f"{name}/mask"]),
                blueprint.Spatial2DView(name=f"{name} confidence", origin=f"{name}/confidence"),
            )
            for name in sorted(self._cameras)
        ]
        latency = blueprint.TimeSeriesView(name="latency (ms)", origin="latency")
        self._stream.send_blueprint(blueprint.Blueprint(blueprint.Vertical(*rows, latency)))


def turn_analytics_off() -> None:
    """Turn off the usage data of the Rerun viewer for this user; there is no other switch."""
    subprocess.run([sys.executable, "-m", "rerun", "analytics", "disable"], capture_output=True, timeout=60)


def _unreadable(path: Path) -> str:
    """Return why a recording is not complete; empty if it is. Rerun only logs that a disk is full."""
    from rerun.chunk import RrdReader

    try:
        RrdReader(path).store()  # reads the index at the end
    except Exception as err:  # of several kinds, by where the file ends
        return first_line(err)
    return ""
