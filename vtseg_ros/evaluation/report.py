# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Write report.json and a self-contained report.html."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from vtseg_ros.evaluation.score import Scores, error_picture, or_none
from vtseg_ros.files import write_atomically
from vtseg_ros.image_ops import colorize
from vtseg_ros.label_set import LabelSet

HISTOGRAM_BINS = 24


@dataclass(frozen=True)
class ReportData:
    """Content of a report.

    Args:
        title: heading.
        scores: of the (main) system.
        systems: JSON entries, one per system (see `Scores.as_system`).
        counts: number of processed, dropped, rejected and lost frames.
        latencies_s: total latency of each processed frame, s.
        facts: properties of the evaluation by name, shown below the heading.
    """

    title: str
    scores: Scores
    systems: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def latency_percentiles(latencies_s: list[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99 in s; None without latencies."""
    if not latencies_s:
        return {"latency_p50_s": None, "latency_p95_s": None, "latency_p99_s": None}
    values = np.percentile(latencies_s, (50, 95, 99))
    return {f"latency_p{p}_s": round(float(v), 6) for p, v in zip((50, 95, 99), values)}


def as_json(data: ReportData) -> dict[str, Any]:
    """Return the content of report.json."""
    baseline = data.scores.baseline
    return {
        "systems": data.systems,
        "baseline_miou": or_none(baseline.miou()) if baseline else None,
        **data.counts,
        **latency_percentiles(data.latencies_s),
        "facts": data.facts,
    }


def picture_source(rgb: np.ndarray, kind: str = ".png") -> str:
    """Return an image (H, W, 3) uint8 RGB as a data URI; kind is `.png` or `.jpg`."""
    payload = cv2.imencode(kind, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    return f"data:image/{'jpeg' if kind == '.jpg' else 'png'};base64,{base64.b64encode(payload.tobytes()).decode()}"


def _histogram(latencies_s: list[float]) -> dict[str, Any]:
    values = np.asarray(latencies_s) * 1e3
    high = float(np.percentile(values, 99.5)) * 1.1
    counts, edges = np.histogram(np.minimum(values, high), bins=HISTOGRAM_BINS, range=(0, high))
    return {
        "bars": [round(100 * c / max(counts.max(), 1), 1) for c in counts],
        "high_ms": round(float(edges[-1])),
    }


def confusion_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return per true class its name, the shares of the predicted classes (last: no class) in %, and its pixels."""
    matrix = scores.confusion.matrix.astype(np.float64)
    rows = []
    for index, name in enumerate(scores.labels.names):
        total = matrix[index].sum()
        shares = [100 * count / total if total else None for count in matrix[index]]
        rows.append({"name": name, "shares": shares, "total": int(total)})
    return rows


def render(template: str, **values: Any) -> str:
    """Render a template from the folder of this module."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def class_items(labels: LabelSet) -> list[dict[str, str]]:
    """Name and CSS colour of each class."""
    return [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
        for name, color in zip(labels.names, labels.colors)
    ]


def render_html(data: ReportData) -> str:
    """Return the report as one HTML page without external references."""
    labels = data.scores.labels
    samples = [
        {
            "time_s": f"{sample.stamp_ns / 1e9:.2f}",
            "accuracy": sample.accuracy,
            "pictures": [
                ("image", picture_source(sample.image, ".jpg")),
                ("label", picture_source(colorize(sample.label, labels))),
                ("mask", picture_source(colorize(sample.mask, labels))),
                ("wrong pixels", picture_source(error_picture(sample), ".jpg")),
            ],
        }
        for sample in data.scores.worst
    ]
    return render(
        "report.html.j2",
        title=data.title,
        facts=data.facts,
        systems=data.systems,
        main=data.systems[0],
        baseline=or_none(data.scores.baseline.miou()) if data.scores.baseline else None,
        baseline_iou=[or_none(v) for v in data.scores.baseline.iou()] if data.scores.baseline else None,
        classes=class_items(labels),
        counts=data.counts,
        latency=latency_percentiles(data.latencies_s),
        histogram=_histogram(data.latencies_s) if data.latencies_s else None,
        confusion=confusion_rows(data.scores),
        samples=samples,
    )


def write_report(output_dir: Path, data: ReportData) -> tuple[Path, Path]:
    """Write report.json and report.html; each file is replaced atomically.

    Returns:
        their paths.

    Raises:
        OSError: if the folder cannot be written; earlier reports stay unchanged.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    as_file = output_dir / "report.json"
    page = output_dir / "report.html"
    write_atomically(as_file, (json.dumps(as_json(data), indent=2) + "\n").encode())
    write_atomically(page, render_html(data).encode())
    return as_file, page
