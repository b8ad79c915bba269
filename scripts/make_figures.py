# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw the documentation's diagrams as SVG files in docs/images.

`python scripts/make_figures.py` writes them; `--check` compares them with the files in the tree. The output depends on
this file and on the network's presets only. Colours follow the reader's light or dark colour scheme, on an opaque
background, so that a page with the other theme stays readable.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtseg_ros.model import VTSegConfig  # noqa: E402

IMAGES = ROOT / "docs" / "images"

# Class -> (fill, stroke) in the light and in the dark scheme.
BOXES = {
    "plain": (("#f1f5f9", "#64748b"), ("#1e293b", "#94a3b8")),
    "blue": (("#dbeafe", "#2563eb"), ("#1e3a5f", "#60a5fa")),
    "green": (("#dcfce7", "#16a34a"), ("#14432a", "#4ade80")),
    "amber": (("#fef3c7", "#d97706"), ("#4a3412", "#fbbf24")),
    "red": (("#ffe4e6", "#be123c"), ("#4c1420", "#fb7185")),
    "panel": (("#ffffff", "#cbd5e1"), ("#0f172a", "#334155")),
}
TEXTS = {
    "ink": ("#1c2733", "#e2e8f0"),
    "soft": ("#475569", "#94a3b8"),
    "bluetext": ("#1d4ed8", "#93c5fd"),
    "greentext": ("#15803d", "#86efac"),
}
BACKGROUND = ("#f8fafc", "#0b1220")
INK = TEXTS["ink"]


def _style() -> str:
    def rules(scheme: int) -> str:
        lines = [f".bg{{fill:{BACKGROUND[scheme]}}}"]
        for name, colours in BOXES.items():
            fill, stroke = colours[scheme]
            lines.append(f".{name}{{fill:{fill};stroke:{stroke}}}")
        for name, shades in TEXTS.items():
            lines.append(f".{name}{{fill:{shades[scheme]}}}")
        lines.append(f".line{{stroke:{INK[scheme]};fill:none}}")
        lines.append(f".blueline{{stroke:{TEXTS['bluetext'][scheme]};fill:none}}")
        return "\n".join(lines)

    return f"{rules(0)}\n@media (prefers-color-scheme: dark) {{\n{rules(1)}\n}}"


class Figure:
    """An SVG drawing; all lengths in px, the origin is the upper left corner.

    Args:
        width: of the drawing.
        height: of the drawing.
        title: read by screen readers.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        marker = (
            '<marker id="{id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" class="{kind}"/></marker>'
        )
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="system-ui, \'Segoe UI\', Roboto, sans-serif" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_style()}\n</style>",
            "<defs>",
            marker.format(id="ink", kind="ink"),
            marker.format(id="blue", kind="bluetext"),
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="10" class="bg"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        kind: str = "ink",
        bold: bool = False,
        anchor: str = "middle",
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}"{weight} class="{kind}">'
            f"{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, title: str = "", *lines: str
    ) -> None:
        """Draw a rounded box with a bold title and smaller lines below it, centred."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" stroke-width="1.5" class="{kind}"/>'
        )
        top = y + height / 2 - 9 * len(lines) + 5
        if title:
            self.text(x + width / 2, top, title, size=14, bold=True)
        for index, line in enumerate(lines, start=1):
            self.text(x + width / 2, top + 18 * index, line, size=12, kind="soft")

    def arrow(
        self, *points: tuple[float, float], blue: bool = False, dashed: bool = False, head: bool = True
    ) -> None:
        """Draw a polyline through `points` with an arrow head at its end."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        end = f' marker-end="url(#{"blue" if blue else "ink"})"' if head else ""
        self._parts.append(
            f'<path d="M{path}" stroke-width="1.6" class="{"blueline" if blue else "line"}"{dash}{end}/>'
        )

    def dot(self, x: float, y: float) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.5" class="ink"/>')

    def render(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def network() -> Figure:
    """Draw encoder, static network, decoder and head, and one attention layer below."""
    config = VTSegConfig.preset("b0", num_classes=19)
    figure = Figure(1240, 700, "VTSeg: encoder, static network, decoder and head")
    for index in range(4):
        x, y = 24 + 12 * index, 196 + 14 * index
        figure.box(x, y, 96, 54, "panel" if index == 3 else "plain")
    figure.text(108, 270, "newest", size=12)
    figure.text(88, 322, "window of k frames", bold=True)
    figure.text(88, 340, "RGB in [0, 1], 3 x H x W", size=12, kind="soft")

    figure.text(
        250,
        40,
        "Encoder: equals SegFormer's MiT-B0 for k = 1",
        size=14,
        kind="bluetext",
        bold=True,
        anchor="start",
    )
    figure.text(420, 402, "Decoder", size=14, kind="greentext", bold=True, anchor="start")
    for stage in range(4):
        size = f"{config.embed_dims[stage]} channels, H/{4 * 2**stage}"
        x = 250 + 170 * stage
        figure.box(
            x,
            54,
            134,
            66,
            "blue",
            f"VTEncBlock {stage + 1}",
            size,
            f"key reduction R = {config.sr_ratios[stage]}",
        )
        if stage < 3:
            figure.arrow((x + 134, 87), (x + 168, 87))
        d = 368 + 172 * stage
        figure.box(d, 420, 134, 66, "green", f"VTEncBlock {stage + 1}", size, "separate weights")
        figure.box(d, 228, 134, 66, "green", f"VTDecBlock {stage + 1}", "cross-attention", "queries: decoder")
        figure.arrow((d + 44, 420), (d + 44, 296))
        figure.arrow((x + 65, 120), (x + 65, 170), (d + 66, 170), (d + 66, 226), blue=True)
        figure.dot(d + 100, 342)
        if stage < 3:
            figure.arrow((d + 100, 294), (d + 100, 366), (d + 152, 366), (d + 152, 453), (d + 170, 453))
        else:
            figure.arrow((d + 100, 294), (d + 100, 342), head=False)
    figure.arrow((156, 230), (196, 230), (196, 87), (248, 87))
    figure.text(962, 205, "keys, values of", size=12, kind="bluetext", anchor="start")
    figure.text(962, 220, "all k frames", size=12, kind="bluetext", anchor="start")

    figure.box(196, 306, 134, 60, "amber", "static network", "ERFNet, per frame")
    figure.arrow((156, 252), (176, 252), (176, 336), (194, 336))
    figure.box(196, 420, 134, 66, "plain", "VTDecConcat", "GELU(LN(logits))", "and RGB: C + 3")
    figure.arrow((263, 366), (263, 418))
    figure.arrow((84, 348), (84, 453), (194, 453))
    figure.text(138, 446, "RGB", size=12, kind="soft")
    figure.arrow((330, 453), (366, 453))

    figure.arrow((468, 342), (1139, 342), (1139, 328))
    figure.text(1060, 362, "D1, D2, D3, D4", size=12, kind="soft")
    figure.box(
        1062,
        196,
        160,
        130,
        "red",
        "Head, per frame",
        "D1 to D4 to H/4 by",
        "1x1 conv, PixelShuffle;",
        "concat, 1x1 conv;",
        "two 3x3 convs with",
        "PixelShuffle(2)",
    )
    figure.arrow((1139, 196), (1139, 150))
    figure.box(1062, 92, 160, 56, "plain", "logits C x H x W", "mask: newest frame")

    figure.box(24, 520, 1192, 160, "panel")
    figure.text(
        44,
        546,
        "One layer (two in each block): queries from x, keys and values from m. VTEncBlock: m = x. "
        "VTDecBlock: m = the encoder's map.",
        bold=True,
        anchor="start",
    )
    row = (
        (44, 112, "plain", "m, per frame", "LayerNorm"),
        (186, 176, "blue", "reduce R x R", "conv, LayerNorm, per frame"),
        (392, 190, "blue", "serialize", "tokens of k frames in a row"),
        (612, 164, "blue", "attention", "softmax over all frames"),
        (806, 112, "blue", "deserialize", "project, + x"),
        (948, 216, "green", "LayerNorm, Mix-FFN", "3x3 depthwise per frame, + x"),
    )
    for (x, width, *_), (after, *_rest) in zip(row, row[1:]):
        figure.arrow((x + width, 595), (after - 2, 595))
    for x, width, kind, title, line in row:
        figure.box(x, 570, width, 50, kind, title, line)
    figure.box(392, 632, 190, 34, "plain", "x: LayerNorm, queries")
    figure.arrow((582, 649), (672, 649), (672, 622))
    return figure


def data_flow() -> Figure:
    """Draw one frame's way from the image topic to the mask topic."""
    figure = Figure(1240, 430, "Data flow of the segmenter node, from the image topic to the mask topic")
    figure.box(20, 92, 140, 74, "plain", "camera or bag", "image, or", "image/compressed")
    figure.box(196, 30, 796, 232, "panel")
    figure.text(210, 52, "segmenter node", bold=True, anchor="start")
    figure.box(212, 92, 136, 74, "amber", "slot", "newest image", "of each camera")
    figure.box(384, 92, 126, 74, "blue", "decode", "encoding to", "RGB uint8")
    figure.box(546, 92, 126, 74, "blue", "window", "last k frames", "by header stamp")
    figure.box(708, 92, 126, 74, "green", "network", "cached features,", "new frame")
    figure.box(866, 92, 112, 74, "blue", "mask", "argmax, resize,", "ego mask")
    for x, end in ((160, 210), (348, 382), (510, 544), (672, 706), (834, 864)):
        figure.arrow((x, 129), (end, 129))
    figure.text(280, 186, "callback", size=12, kind="soft")
    figure.text(681, 186, "worker thread", size=12, kind="soft")
    figure.arrow((366, 70), (366, 254), dashed=True, head=False)
    figure.arrow((280, 194), (280, 222), dashed=True)
    figure.text(280, 240, "older images: dropped", size=12, kind="soft")
    figure.text(
        680,
        230,
        "Every received image is counted as processed, dropped or rejected (segmentation/status).",
        size=12,
        kind="soft",
    )

    figure.box(1040, 92, 180, 74, "plain", "segmentation/mask", "stamp and frame_id", "of the image")
    figure.arrow((978, 129), (1038, 129))
    figure.box(1040, 190, 180, 56, "plain", "color, overlay,", "confidence: on demand")
    figure.arrow((1008, 129), (1008, 218), (1038, 218))

    figure.box(212, 310, 180, 74, "red", "evaluator node", "matches masks and", "labels by stamp")
    figure.box(20, 316, 140, 62, "plain", "labels", "from the bag")
    figure.arrow((160, 347), (210, 347))
    figure.arrow((1008, 218), (1008, 284), (302, 284), (302, 308), dashed=True)
    figure.box(446, 316, 180, 62, "plain", "report.html", "IoU, latency, counts")
    figure.arrow((392, 347), (444, 347))
    figure.box(1040, 316, 180, 62, "plain", "RViz, nav2, rosbag2", "subscribers")
    figure.arrow((1130, 246), (1130, 314))
    return figure


def streaming_timeline() -> Figure:
    """Draw which frames the network computes when a window of four slides by one frame."""
    figure = Figure(1240, 470, "Streaming: what is computed for each new frame with a window of four frames")
    left, step, width = 250, 116, 100
    frames = 8
    figure.text(40, 46, "images, by stamp", bold=True, anchor="start")
    for index in range(frames):
        x = left + step * index
        dropped = index == 4
        figure.box(x, 24, width, 36, "plain" if dropped else "blue", f"t{index}")
        if dropped:
            figure.text(x + width / 2, 76, "dropped", size=12, kind="soft")
    used = [index for index in range(frames) if index != 4]
    rows = (
        (110, "full window", "recomputes all frames", "all"),
        (214, "exact streaming", "reuses per-frame features", "exact"),
        (318, "causal streaming", "reuses keys and values", "causal"),
    )
    # The last two windows of the row: the newest frames are t6 and t7.
    for top, title, text, mode in rows:
        figure.text(40, top + 26, title, bold=True, anchor="start")
        figure.text(40, top + 45, text, size=12, kind="soft", anchor="start")
        for line, newest in enumerate((6, 7)):
            y = top + 44 * line
            window = [index for index in used if index <= newest][-4:]
            for index in window:
                x = left + step * index
                new = index == newest
                kind = "green" if new or mode == "all" else "amber"
                label = "computed" if kind == "green" else "partly cached" if mode == "exact" else "cached"
                figure.box(x, y, width, 34, kind)
                figure.text(x + width / 2, y + 21, label, size=12)
            figure.text(left - 8, y + 21, f"mask of t{newest}", size=12, kind="soft", anchor="end")
    figure.box(250, 428, 22, 22, "green")
    figure.text(280, 444, "computed for this mask", size=12, kind="soft", anchor="start")
    figure.box(450, 428, 22, 22, "amber")
    figure.text(480, 444, "result of an earlier step is reused", size=12, kind="soft", anchor="start")
    figure.text(
        1210,
        444,
        "A dropped image never enters a window: the window of t6 holds t2, t3, t5, t6.",
        size=12,
        kind="soft",
        anchor="end",
    )
    return figure


FIGURES = {"network.svg": network, "data_flow.svg": data_flow, "streaming_timeline.svg": streaming_timeline}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    check = parser.parse_args().check
    differing = []
    for name, draw in FIGURES.items():
        path, text = IMAGES / name, draw().render()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            differing.append(name)
    if differing:
        print(
            f"make_figures: {', '.join(differing)}: differs from the generator; run scripts/make_figures.py",
            file=sys.stderr,
        )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
