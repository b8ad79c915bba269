# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg weights`: published weights by name, networks of others as files, and the agreement of bf16 with fp32."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.devices import MIN_AGREEMENT
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.palette import open_palette
from vtseg_ros.model.checkpoint import load_checkpoint, resolve_checkpoint, store_agreement
from vtseg_ros.published.converting import Options, convert
from vtseg_ros.published.table import PUBLISHED, Published, ade20k, published
from vtseg_ros.sizes import parse_size

HELP = "List published weights, download them (the only command that connects to the Internet), or convert a file."
ONNX = "onnx"
TABLE_WIDTH = 100
AGREEMENT_FRAMES = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|get|convert|agreement")
    listing = actions.add_parser("list", help="list names, classes, licences and published scores")
    listing.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")
    getting = actions.add_parser("get", help="download weights and convert them")
    getting.add_argument("name", metavar="NAME", help="name from `vtseg weights list`")
    converting = actions.add_parser("convert", help="convert a downloaded file; needs no connection")
    converting.add_argument(
        "file", type=Path, metavar="FILE", help="file to convert: .safetensors, .bin, .pth, .pt or .onnx"
    )
    converting.add_argument(
        "--as",
        dest="name",
        required=True,
        metavar="NAME",
        help="name from `vtseg weights list`, architecture of your own weights, or onnx",
    )
    for action in (getting, converting):
        action.add_argument(
            "--out", type=Path, metavar="FILE", help="file to write (default: NAME.safetensors)"
        )
        action.add_argument(
            "--size",
            type=parse_size,
            metavar="WxH",
            help="size of the network input (default: from the table)",
        )
    converting.add_argument(
        "--labels",
        metavar="FILE_OR_NAME",
        help="class list of your own weights: a labelmap.txt, street, camvid, cityscapes or ade20k",
    )
    for name in ("mean", "std"):
        converting.add_argument(
            f"--{name}",
            nargs=3,
            type=float,
            metavar=("R", "G", "B"),
            help=f"{name} of RGB in [0, 1], for your own weights",
        )
    converting.add_argument("--licence", help="licence of your own weights, such as Apache-2.0")
    converting.add_argument("--output", default="", help="output of an ONNX network to use, if several fit")
    measuring = actions.add_parser(
        "agreement",
        help="measure how far bf16 agrees with fp32 on real frames, and store it in the checkpoint",
    )
    measuring.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint file to change, or name of shipped weights"
    )
    measuring.add_argument(
        "source", metavar="SOURCE", help="bag, video file or folder of images of the kind that it is used for"
    )
    measuring.add_argument(
        "--frames",
        type=int,
        default=AGREEMENT_FRAMES,
        metavar="N",
        help="number of frames (default %(default)s)",
    )
    measuring.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )
    measuring.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write: the result")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.action == "list":
        return _list(args.json)
    if args.action == "agreement":
        return _agreement(args)
    out = args.out or Path(f"{args.name}.{'onnx' if args.name == ONNX else 'safetensors'}")
    if out.exists():
        raise ConfigError(f"--out: {out} exists; expected a new file. Remove it or choose another --out")
    if args.action == "get":
        return _get(published(args.name), out, args.size)
    options = Options(
        labels=_labels(args.labels) if args.labels else None,
        input_size=args.size,
        mean=tuple(args.mean) if args.mean else None,
        std=tuple(args.std) if args.std else None,
        licence=args.licence,
    )
    if args.name == ONNX:
        from vtseg_ros.published.adopting import adopt

        if out.suffix != ".onnx":
            raise ConfigError(f"--out: expected a file that ends in .onnx, got {out}")
        adapter = adopt(args.file, out, options, output=args.output)
        print(f"{out}: {adapter.classes} classes, input {adapter.input}, output {adapter.output}")
        return 0
    if args.output:
        raise ConfigError("--output: only for --as onnx; expected none, got one. Leave --output out")
    _check_suffix(out)
    _report(out, convert(args.file, args.name, out, options))
    return 0


def _agreement(args: argparse.Namespace) -> int:
    from vtseg_ros.inference.precision import first_images, with_agreement

    if args.frames < 1:
        raise ConfigError(f"--frames: out of range; expected at least 1, got {args.frames}")
    if Path(args.checkpoint).suffix.lower() == ".onnx":
        raise ConfigError(
            f"{args.checkpoint}: an exported network; expected a checkpoint. "
            "Run vtseg export --bag, which stores the agreement in the file"
        )
    path = resolve_checkpoint(args.checkpoint)
    loaded = load_checkpoint(path, static_prior=args.static_prior)
    images = first_images(args.source, args.frames)
    agreement = with_agreement(loaded, images).agreement
    store_agreement(path, agreement)
    share, enough = agreement["bf16"], agreement["bf16"] >= MIN_AGREEMENT
    print(
        f"{path}: bf16 has the same class as fp32 on {100 * share:.2f} % of the pixels of {len(images)} frames; "
        f"precision auto {'uses' if enough else 'does not use'} bf16 on processors that have it"
    )
    if args.json:
        write_json(args.json, {"frames": len(images), "agreement": agreement})
    return 0


def _get(entry: Published, out: Path, size: tuple[int, int] | None) -> int:
    from vtseg_ros.published.download import download

    _check_suffix(out)
    print(f"downloading from {entry.source}", file=sys.stderr)  # attempts to connect may take half a minute
    with tempfile.TemporaryDirectory(prefix="vtseg_weights_") as folder:
        path = download(entry, Path(folder))
        _report(out, convert(path, entry.name, out, Options(input_size=size)))
    return 0


def _check_suffix(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out: expected a file that ends in .safetensors, got {out}")


def _labels(name: str) -> LabelSet:
    return ade20k() if name == "ade20k" else open_palette(name).labels


def _report(out: Path, entry: Published | None) -> None:
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB" + (f"; licence: {entry.licence}" if entry else ""))


def _list(file: Path | None) -> int:
    table = Table()
    for column in ("name", "classes", "input", "mIoU", "licence"):
        table.add_column(column, justify="right" if column == "mIoU" else "left", no_wrap=True)
    for entry in PUBLISHED.values():
        size = "x".join(map(str, entry.input_size))
        classes = f"{len(entry.labels)} ({entry.data})"
        table.add_row(entry.name, classes, size, f"{entry.score:.1f}", entry.licence.name)
    console = Console(markup=False, width=TABLE_WIDTH)
    console.print(table)
    print(
        "mIoU is the publisher's, not measured here. Licences apply to the weights and to what is trained from them."
    )
    print("Sources:")
    for source in dict.fromkeys(entry.source for entry in PUBLISHED.values()):
        print(f"  {source}")
    if file:
        write_json(file, [_plain(entry) for entry in PUBLISHED.values()])
    return 0


def _plain(entry: Published) -> dict[str, object]:
    return {
        **{key: value for key, value in vars(entry).items() if key not in ("licence", "normalization")},
        "licence": entry.licence.to_dict(),
        "mean": entry.normalization[0],
        "std": entry.normalization[1],
        "classes": list(entry.labels.names),
        "colors": list(entry.labels.colors),
        "source": entry.source,
    }
