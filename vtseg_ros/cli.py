# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The `vtseg` command: one subcommand per module of `vtseg_ros.commands`, imported only when asked for.

A command module has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int | None`. Both are called
only for the command that was named, so a module may import what it needs at its top.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import sys

from vtseg_ros import __version__
from vtseg_ros.commands import interrupts
from vtseg_ros.errors import VTSegError

COMMANDS = {
    "synth": "synthetic street video with labels, depth and flow into a bag",
    "train": "train from bags",
    "preview-augmentation": "an image of the windows that a training run would see",
    "evaluate": "score checkpoints on a labelled bag, side by side",
    "segment": "masks for the frames of a bag, video, images, stream or camera",
    "import": "data sets (Cityscapes, Virtual KITTI 2, CamVid, images, videos) into bags",
    "pseudolabel": "label a bag or a video with a teacher network",
    "ego-mask": "propose the mask of the robot's own body from many frames",
    "view": "images, masks, confidence and latency in the Rerun viewer",
    "labels": "frames of a bag out for labelling, label images back in",
    "select": "choose the frames of unlabelled bags to label next",
    "bench": "what a frame costs: full window, streaming, export",
    "export": "a checkpoint as ONNX or torch.export file",
    "flops": "parameters and multiply-adds of the networks",
    "weights": "published weights by name: list, get, convert",
    "info": "what a bag or a checkpoint holds",
    "doctor": "versions, devices, speed and known problems, for bug reports",
    "play": "publish a bag on ROS topics (needs ROS 2)",
}


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser; subcommand arguments are added by `main` for the one that is called."""
    parser = argparse.ArgumentParser(prog="vtseg", description="Video semantic segmentation with VTSeg.")
    parser.add_argument("--version", action="version", version=f"vtseg {__version__}")
    lines = "\n".join(f"  {name:<20} {text}" for name, text in COMMANDS.items())
    parser.epilog = f"commands:\n{lines}\n\n`vtseg COMMAND --help` explains each."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `vtseg`; returns the exit code: 0 done, 2 bad arguments or input, 1 anything else."""
    chosen = build_parser().parse_args(argv)
    try:
        name = chosen.command.replace("-", "_")
        name = f"{name}_" if keyword.iskeyword(name) else name
        module = importlib.import_module(f"vtseg_ros.commands.{name}")
        parser = argparse.ArgumentParser(prog=f"vtseg {chosen.command}", description=module.HELP)
        module.add_arguments(parser)
        args = parser.parse_args(chosen.arguments)
        with interrupts.raised():
            return module.run(args) or 0
    except VTSegError as err:
        print(f"vtseg {chosen.command}: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"vtseg {chosen.command}: stopped" + (f": {stop}" if str(stop) else ""), file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as err:  # a full or read-only disk: nothing that a traceback would explain
        print(f"vtseg {chosen.command}: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
