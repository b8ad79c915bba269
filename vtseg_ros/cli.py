# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The `vtseg` command: one subcommand per module of `vtseg_ros.commands`, imported only if it is called.

A command module has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int | None`. Both are called
only for the command that was named, so a module may import what it needs at its top.
"""

from __future__ import annotations

import argparse
import importlib
import io
import keyword
import math
import os
import sys
from pathlib import Path

from vtseg_ros import __version__
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.report_files import STARTS, check_report_file
from vtseg_ros.errors import ConfigError, VTSegError, first_line, is_out_of_memory
from vtseg_ros.files import with_home

COMMANDS = {
    "synth": "render synthetic street video with labels, depth and optical flow into a bag",
    "train": "train a network from bags",
    "preview-augmentation": "draw the windows that a training run would use",
    "evaluate": "score one or several checkpoints on labelled bags",
    "segment": "segment the frames of a bag, video, images, stream or camera",
    "import": "convert data sets (Cityscapes, Virtual KITTI 2, CamVid), images and videos to bags",
    "pseudolabel": "label a bag or a video with a teacher network",
    "ego-mask": "propose the mask of the robot's own body from many frames",
    "view": "show images, masks, confidence and latency in the Rerun viewer",
    "labels": "extract frames of a bag for labelling, merge label images into a bag",
    "select": "choose the frames of unlabelled bags to label next",
    "bench": "measure the time per frame of all modes and backends",
    "export": "export a checkpoint to ONNX or torch.export",
    "flops": "count parameters and multiply-adds of the networks",
    "weights": "list, download and convert published weights",
    "info": "show the content of a bag or a checkpoint",
    "doctor": "print versions, devices, speed and known problems for bug reports",
    "play": "publish a bag on ROS topics (needs ROS 2)",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the top-level parser; `main` adds the arguments of the command that is called."""
    parser = argparse.ArgumentParser(prog="vtseg", description="Video semantic segmentation with VTSeg.")
    parser.add_argument("--version", action="version", version=f"vtseg {__version__}")
    lines = "\n".join(f"  {name:<20} {text}" for name, text in COMMANDS.items())
    parser.epilog = f"commands:\n{lines}\n\nOptions of a command: vtseg COMMAND --help"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `vtseg` and return the exit code: 0 = success, 2 = invalid arguments or input, 1 = any other failure."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have bytes that no encoding can print
        sys.stdout.reconfigure(errors="backslashreplace")
    chosen = build_parser().parse_args(argv)
    # Not `chosen.arguments`: argparse removes the `--` before names that begin with a dash.
    arguments = argv[argv.index(chosen.command) + 1 :]
    new: list[Path] = []
    try:
        name = chosen.command.replace("-", "_")
        name = f"{name}_" if keyword.iskeyword(name) else name
        module = importlib.import_module(f"vtseg_ros.commands.{name}")
        parser = argparse.ArgumentParser(prog=f"vtseg {chosen.command}", description=module.HELP)
        module.add_arguments(parser)
        args = parser.parse_args(arguments)
        _check_values(args)
        new = [path for path in _outputs(args) if not os.path.lexists(path)]
        with interrupts.raised():
            return module.run(args) or 0
    except VTSegError as err:
        # One line, even if a file name has several.
        print(f"vtseg {chosen.command}: {err}".replace("\n", "\\n"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        left = str(stop) or "; ".join(f"{path} was not written" for path in new if not os.path.lexists(path))
        print(f"vtseg {chosen.command}: stopped" + (f": {left}" if left else ""), file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except ModuleNotFoundError as err:
        advice = _advice(err)
        if not advice:
            raise
        print(f"vtseg {chosen.command}: {advice}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as err:  # of torch, the latter
        if not is_out_of_memory(err):
            raise
        print(
            f"vtseg {chosen.command}: out of memory; expected enough for the images and the network, got: "
            f"{first_line(err)}. Use a smaller size, or a machine with more memory",
            file=sys.stderr,
        )
        return 1
    except OSError as err:  # such as a full or read-only disk: a traceback would not help
        print(f"vtseg {chosen.command}: {err}", file=sys.stderr)
        return 1


def _outputs(args: argparse.Namespace) -> list[Path]:
    found = [getattr(args, name, None) for name in ("out", "overlay")]
    return [path for path in found if isinstance(path, Path)]


def _check_values(args: argparse.Namespace) -> None:
    """Check and convert what is common to the arguments of all commands.

    `~` becomes the home folder: shells leave it as it is in `--out=~/masks`.

    Raises:
        ConfigError: for a number that is NaN or that no counter can hold, and for a report that cannot be written.
    """
    for name, value in vars(args).items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            option = f"--{name.replace('_', '-')}"
            if isinstance(number, float) and math.isnan(number):
                raise ConfigError(f"{option}: not a number; expected a number, got nan")
            if isinstance(number, int) and abs(number) > sys.maxsize:
                raise ConfigError(f"{option}: out of range; expected at most {sys.maxsize}, got {number}")
        if isinstance(value, Path):
            setattr(args, name, with_home(value))
        elif isinstance(value, list):
            setattr(args, name, [with_home(one) if isinstance(one, Path) else one for one in value])
    for option in STARTS:
        path = getattr(args, option, None)
        if isinstance(path, Path):
            check_report_file(option, path)


def _advice(err: ModuleNotFoundError) -> str:
    """Return which extra contains a missing module; empty if none does."""
    from vtseg_ros.diagnosis import EXTRAS

    missing = (err.name or "").partition(".")[0]
    extra = next((extra for extra, (module, _) in EXTRAS.items() if module == missing), "")
    if not extra:
        return ""
    return f"the package {missing} is missing; expected it to be installed. Run: pip install 'vtseg_ros[{extra}]'"


if __name__ == "__main__":
    sys.exit(main())
