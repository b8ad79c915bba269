# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compare frames chosen by `vtseg select` with evenly spaced and random ones: python benchmarks/select_against_random.py FOLDER.

A small VTSeg is trained on a few random labelled frames of the synthetic street (scenes 1 to 3) and scores all frames for
`vtseg select`. Then `efficientvit_b0` is trained from random weights on each set of frames, with the same iterations. The
score is the mIoU on scene 5. Finished parts are kept in FOLDER, and the same command resumes after an interruption. Several
processes may share the work by --sets.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import NS, stamp_of
from vtseg_ros.commands import select
from vtseg_ros.label_set import STREET
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.record import Progress
from vtseg_ros.training.run import train

IMAGE, LABEL = "/camera/image", "/camera/label"
VARIATIONS = ("clone", "overcast", "fog", "sunset", "15-deg-left", "15-deg-right")
SCORER_SEED = 1000
SETS = ("selected", "even", "random")
Key = tuple[int, int]
"""Number of a bag and header stamp in ns of a frame in it."""


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of bags and runs")
    parser.add_argument("--bags", type=int, default=4, help="bags of scenes 1 to 3 with two variations each")
    parser.add_argument("--frames", type=int, default=40, help="frames per sequence of these bags")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 96), help="input of the network, px")
    parser.add_argument("--scorer-size", type=int, nargs=2, default=(320, 96), help="input of the scorer, px")
    parser.add_argument("--count", type=int, default=54, help="frames per set")
    parser.add_argument("--spacing", type=float, default=0.5, help="--spacing of select, s")
    parser.add_argument("--score", default="combined", help="--score of select")
    parser.add_argument("--scorer-labels", type=int, default=24, help="random labelled frames of the scorer")
    parser.add_argument("--scorer-steps", type=int, default=300, help="iterations of the scorer")
    parser.add_argument("--steps", type=int, default=600, help="iterations on each set")
    parser.add_argument("--draws", type=int, default=5, help="random sets, one training run each")
    parser.add_argument("--seeds", type=int, default=5, help="training runs of the selected and the even set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="kinds of sets to run")
    return parser.parse_args()


def render(path: Path, *options: object) -> Path:
    """Render a bag of the synthetic street unless it exists."""
    if not path.exists():
        command = [sys.executable, "-m", "vtseg_ros.cli", "synth", "--out", path, "--size", "320x96"]
        subprocess.run([str(one) for one in (*command, *options, "--no-depth", "--no-flow")], check=True)
    return path


def frames_of(bags: Sequence[Path]) -> list[Key]:
    """Return all frames of the bags, in order."""
    found: list[Key] = []
    for number, path in enumerate(bags):
        with BagReader(path) as bag:
            found += [(number, stamp_of(message)) for _, _, message in bag.messages([IMAGE])]
    return found


def write_set(path: Path, bags: Sequence[Path], chosen: Sequence[Key]) -> np.ndarray:
    """Write a bag of the chosen frames with labels, 2 s apart so that each is a sequence of its own.

    Returns:
        (C,) int64 labelled pixels of each class.
    """
    counts, wanted = np.zeros(len(STREET), np.int64), set(chosen)
    image, label = ImageDecoder(IMAGE), ImageDecoder(LABEL)
    images: dict[Key, np.ndarray] = {}
    ids: dict[Key, np.ndarray] = {}
    for number, source in enumerate(bags):
        with BagReader(source) as bag:
            for topic, _, message in bag.messages([IMAGE, LABEL]):
                key = number, stamp_of(message)
                if key in wanted and topic == IMAGE:
                    images[key] = image(message)
                elif key in wanted:
                    ids[key] = label.label(message)
    if not path.exists():
        with BagWriter(path) as made:
            made.write_label_map("/camera/label_map", STREET, NS)
            for place, key in enumerate(sorted(wanted)):
                where = NS + 2 * place * NS, "camera"
                made.write_image(IMAGE, images[key], *where)
                made.write_label(LABEL, ids[key], *where)
    for mask in ids.values():
        counts += np.bincount(mask[mask < len(STREET)], minlength=len(STREET))
    return counts


def trained(
    args: argparse.Namespace,
    run: Path,
    data: Path,
    test: Path,
    *,
    steps: int,
    seed: int,
    scorer: bool = False,
) -> float:
    """Return the mIoU (0 to 100) on the test bag after a training run, which continues where it was stopped.

    Args:
        args: command line.
        run: folder of the run.
        data: bag of labelled frames.
        test: bag to score on.
        steps: iterations.
        seed: of the initial weights, the order and the augmentation.
        scorer: train a small VTSeg, with which `vtseg select` scores frames, in place of `efficientvit_b0`.
    """
    if not (run / "done").exists():
        if scorer:
            overrides = {"window": 2, "static_prior": "efficientvit_b0"}
            model = ModelConfig(
                preset="tiny", overrides=overrides, init="xavier", normalize_encoder=True, init_decoder=True
            )
            stage = StageConfig("end_to_end", steps=steps, batch=8, window=1, max_lr=2e-3, static_loss=1.0)
        else:
            model = ModelConfig(architecture="efficientvit_b0")
            stage = StageConfig("static", steps=steps, batch=8, max_lr=2e-3)
        config = TrainConfig(
            data=DataConfig(
                train=(SourceConfig(str(data)),),
                validation=(SourceConfig(str(test)),),
                size=tuple(args.scorer_size if scorer else args.size),
                labels="street",
                validation_every=12 if scorer else 3,
                workers=0,
            ),
            model=model,
            stages=(stage,),
            seed=seed,
            save_every=20,
            window_sweep_frames=0,
            preview_frames=0,
        )

        def on_progress(progress: Progress) -> None:
            if progress.step % 10 == 0:
                print(f"{run.name}: {progress.step} of {steps}, loss {progress.loss:.3f}", flush=True)

        train(config, run, resume=(run / "state.pt").exists(), on_progress=on_progress)
        (run / "done").touch()
    return float(json.loads((run / "validation.jsonl").read_text().splitlines()[-1])["miou"])


def selected(args: argparse.Namespace, bags: Sequence[Path], start: Path) -> list[Key]:
    """Return the frames that `vtseg select` chooses with the start network."""
    out = args.folder / "selected"
    if not out.exists():
        parser = argparse.ArgumentParser()
        select.add_arguments(parser)
        options = [
            "--count",
            args.count,
            "--spacing",
            args.spacing,
            "--score",
            args.score,
            "--image-topic",
            IMAGE,
        ]
        command = [*bags, "--checkpoint", start, "--out", out, "--device", "cpu", *options]
        select.run(parser.parse_args([str(one) for one in command]))
    frames = json.loads((out / select.SCORES_FILE).read_text())["frames"]
    return [(frame["bag"], frame["stamp_ns"]) for frame in frames if "chosen" in frame]


def main() -> None:
    """Run all parts that are not finished."""
    args = parse_arguments()
    torch.set_num_threads(1)
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    bags = []
    for seed in range(1, args.bags + 1):
        pair = VARIATIONS[seed % 6], VARIATIONS[(seed + 3) % 6]
        scenes = ("--scene", 1, 2, 3, "--variation", *pair)
        bags.append(render(folder / f"train_{seed}", *scenes, "--frames", args.frames, "--seed", seed))
    scenes = ("--scene", 5, "--variation", "clone", "fog")
    test = render(folder / "test", *scenes, "--frames", 60, "--seed", 200)

    pool = frames_of(bags)
    print(f"{len(pool)} frames in {len(bags)} bags", flush=True)

    def draw(count: int, seed: int) -> list[Key]:
        chosen = np.random.default_rng(seed).choice(len(pool), count, replace=False)
        return [pool[index] for index in sorted(chosen)]

    even = [pool[round((place + 0.5) * len(pool) / args.count - 0.5)] for place in range(args.count)]
    sets: dict[str, list[Key]] = {}
    if "random" in args.sets:
        sets = {f"random_{number}": draw(args.count, number) for number in range(args.draws)}
    if "even" in args.sets:
        sets["even"] = even
    if "selected" in args.sets:
        first = folder / "scorer_set"
        write_set(first, bags, draw(args.scorer_labels, SCORER_SEED))
        run = folder / "scorer"
        score = trained(args, run, first, test, steps=args.scorer_steps, seed=0, scorer=True)
        print(f"network that scores the frames: {score:.2f}", flush=True)
        sets["selected"] = selected(args, bags, run / "last.safetensors")
    assert all(len(set(keys)) == args.count for keys in sets.values()), "a set has too few frames"
    pixels = {name: write_set(folder / f"set_{name}", bags, keys) for name, keys in sets.items()}
    for name, keys in sets.items():
        per_bag = np.bincount([number for number, _ in keys], minlength=len(bags))
        percent = (100 * pixels[name] / pixels[name].sum()).round(2)
        found = {
            "per_bag": per_bag.tolist(),
            "class_percent": dict(zip(STREET.names, percent.tolist(), strict=True)),
        }
        (folder / f"set_{name}.json").write_text(json.dumps(found) + "\n")

    scores: dict[str, list[float]] = {}
    # One seed of each kind at a time: an interrupted comparison has about as many runs of each kind.
    for seed in range(max(args.seeds, args.draws)):
        for name in sets:
            kind, _, number = name.partition("_")
            if seed >= args.seeds if not number else seed != int(number):
                continue
            run = folder / f"run_{kind}_{seed}"
            found = trained(args, run, folder / f"set_{name}", test, steps=args.steps, seed=seed)
            scores.setdefault(kind, []).append(found)
            print(f"{kind}, seed {seed}: {found:.2f} mIoU", flush=True)
    for kind, values in scores.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(f"{kind:<9} {np.mean(values):.2f} mIoU, standard error {error:.2f}, {len(values)} runs")


if __name__ == "__main__":
    main()
