# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The plot of `vtseg bench`: time per frame over k and over the image size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtseg_ros.errors import ConfigError
from vtseg_ros.profiling.benchmark import SEGFORMER

COLORS = {
    "plain": "#7f7f7f",
    "plain_optimised": "#1f77b4",
    "exact": "#2ca02c",
    "causal": "#d62728",
    SEGFORMER: "#8c564b",
}
LINES = {"torch": "-", "openvino": "--", "onnx": ":"}
MARKERS = {"fp32": "o"}


def plot(results: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    """Write a PNG: median ms per frame over k (at the first size measured) and over size (at the middle k).

    Args:
        results: entries of the JSON's `modes`.
        machine: description of the machine, from the same JSON.
        path: the PNG file.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot, ticker
    except ImportError as err:
        raise ConfigError(
            "--plot: the package matplotlib is missing. Run: pip install 'vtseg_ros[plot]'"
        ) from err
    sizes = sorted({tuple(row["size"]) for row in results}, key=lambda size: size[0] * size[1])
    windows = sorted({row["window"] for row in results})
    window = windows[len(windows) // 2]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for mode, backend, precision in dict.fromkeys(
        (row["mode"], row["backend"], row["precision"]) for row in results
    ):
        rows = [row for row in results if (row["mode"], row["precision"]) == (mode, precision)]
        style = {
            "color": COLORS.get(mode.partition("/")[0]),
            "linestyle": LINES[backend],
            "marker": MARKERS.get(precision, "^"),
            "label": f"{mode.replace('_', ' ')} {precision}",
        }
        by_window = {row["window"]: row["p50_ms"] for row in rows if tuple(row["size"]) == sizes[0]}
        left.plot(list(by_window), list(by_window.values()), **style)
        by_size = {row["size"][0] * row["size"][1]: row["p50_ms"] for row in rows if row["window"] == window}
        right.plot(list(by_size), list(by_size.values()), **style)
    left.set(
        title=f"{sizes[0][0]}x{sizes[0][1]} px",
        xlabel="frames k of the window",
        ylabel="ms per frame (median)",
    )
    left.set_xticks(windows)
    left.set_ylim(bottom=0)
    right.set(
        title=f"k = {window}",
        xlabel="image size, px",
        ylabel="ms per frame (median)",
        xscale="log",
        yscale="log",
    )
    right.set_xticks([w * h for w, h in sizes], [f"{w}x{h}" for w, h in sizes], rotation=20)
    right.minorticks_off()
    right.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in (left, right):
        axes.grid(True, color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    gpu = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    figure.suptitle(f"{gpu}, {machine['date'][:10]}", fontsize=9, color="#555555")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
