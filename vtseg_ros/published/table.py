# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of published weights: source, licence, classes, input and score of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import CITYSCAPES, LabelSet
from vtseg_ros.labelling.palette import parse_palette
from vtseg_ros.model.efficientvit import EfficientViTB0, EfficientViTB1
from vtseg_ros.model.erfnet import ERFNet
from vtseg_ros.model.licence import RESEARCH, Licence
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.model.registry import UNIT_RANGE
from vtseg_ros.model.segformer import VARIANTS, name_of

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
ADE20K_FILE = Path(__file__).with_name("ade20k.txt")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights.

    Args:
        name: as in `vtseg weights get NAME`.
        architecture: name of the network in this package.
        data: name of the class list: `cityscapes` or `ade20k`.
        licence: of the weights.
        input_size: (width, height) in px, the default input size of the checkpoint.
        normalization: mean and standard deviation of RGB in [0, 1].
        score: published mIoU in percent.
        score_source: source of the score, and how it was measured.
        repository: on the Hugging Face Hub, or
        url: of the file (one of the two).
        files: names to look for in the repository, in this order.
        revision: of the repository; empty = its newest.
        sha256: SHA-256 of the file; empty = unknown.
        extra_classes: number of outputs after the class list that are not classes, such as one for unlabelled pixels.
    """

    name: str
    architecture: str
    data: str
    licence: Licence
    input_size: tuple[int, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    score: float
    score_source: str
    repository: str = ""
    url: str = ""
    files: tuple[str, ...] = ()
    revision: str = ""
    sha256: str = ""
    extra_classes: int = 0

    @property
    def labels(self) -> LabelSet:
        """The class list with its colours."""
        return ade20k() if self.data == "ade20k" else CITYSCAPES

    @property
    def source(self) -> str:
        """URL of the source of the weights."""
        return self.url or f"https://huggingface.co/{self.repository}"

    @property
    def file_url(self) -> str:
        """URL of the file itself, to download it by hand."""
        return self.url or f"{self.source}/resolve/{self.revision or 'main'}/{self.files[0]}"


def ade20k() -> LabelSet:
    """Return ADE20K's 150 classes and colours."""
    return parse_palette(ADE20K_FILE.read_text(encoding="utf-8"), str(ADE20K_FILE)).labels


_SEGFORMER_LICENCE = Licence(
    RESEARCH,
    "NVIDIA Source Code License for SegFormer: research or evaluation only; github.com/NVlabs/SegFormer",
)
# Xie et al. 2021, Table 1, one scale: (Cityscapes validation, ADE20K validation).
_SEGFORMER_SCORES = {
    "b0": (76.2, 37.4),
    "b1": (78.5, 42.2),
    "b2": (81.0, 46.5),
    "b3": (81.7, 49.4),
    "b4": (82.3, 50.3),
    "b5": (82.4, 51.0),
}
_SEGFORMER_FILES = ("model.safetensors", "pytorch_model.bin")


def _segformers() -> list[Published]:
    found = []
    for variant in VARIANTS:
        side = 640 if variant == "b5" else 512
        for data, part, size, score, how in (
            ("cityscapes", "cityscapes-1024-1024", (1024, 512), 0, "windows of 1024x1024 over 2048x1024"),
            ("ade20k", f"ade-{side}-{side}", (side, side), 1, f"{side} px"),
        ):
            found.append(
                Published(
                    name=f"segformer_{variant}_{data}",
                    architecture=name_of(variant),
                    data=data,
                    licence=_SEGFORMER_LICENCE,
                    input_size=size,
                    score=_SEGFORMER_SCORES[variant][score],
                    score_source=f"Xie et al. 2021, Table 1, validation set, {how}",
                    repository=f"nvidia/segformer-{variant}-finetuned-{part}",
                    files=_SEGFORMER_FILES,
                )
            )
    return found


_EFFICIENTVIT_LICENCE = Licence(
    RESEARCH,
    "weights published under Apache-2.0 by mit-han-lab/efficientvit; trained on Cityscapes, whose data is for "
    "non-commercial use",
)
_EFFICIENTVIT_SCORE = "github.com/mit-han-lab/efficientvit, applications/seg.md, validation set at 2048x1024"

PUBLISHED = {
    entry.name: entry
    for entry in (
        *_segformers(),
        Published(
            name="efficientvit_b0_cityscapes",
            architecture=EfficientViTB0.registered_as,
            data="cityscapes",
            licence=_EFFICIENTVIT_LICENCE,
            input_size=(1024, 512),
            score=75.7,
            score_source=_EFFICIENTVIT_SCORE,
            repository="han-cai/efficientvit-seg",
            files=("efficientvit_seg_b0_cityscapes.pt",),
            sha256="923d6fdd5e93640cc0c2f3f213764f34e80b477cd98a6b294d870ea6df5acc50",
        ),
        Published(
            name="efficientvit_b1_cityscapes",
            architecture=EfficientViTB1.registered_as,
            data="cityscapes",
            licence=_EFFICIENTVIT_LICENCE,
            input_size=(1024, 512),
            score=80.5,
            score_source=_EFFICIENTVIT_SCORE,
            repository="han-cai/efficientvit-seg",
            files=("efficientvit_seg_b1_cityscapes.pt",),
        ),
        Published(
            name="erfnet_cityscapes",
            architecture=ERFNet.registered_as,
            data="cityscapes",
            licence=Licence("CC-BY-NC-4.0", "github.com/Eromera/erfnet_pytorch; trained on Cityscapes"),
            input_size=(1024, 512),
            normalization=UNIT_RANGE,
            score=72.1,
            score_source="github.com/Eromera/erfnet_pytorch, validation set at 1024x512",
            url="https://github.com/Eromera/erfnet_pytorch/raw/master/trained_models/erfnet_pretrained.pth",
            extra_classes=1,
        ),
    )
}


def published(name: str) -> Published:
    """Return the entry of a name.

    Raises:
        ConfigError: if the name is unknown; lists the names.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"NAME: expected one of {', '.join(PUBLISHED)}, got {name!r}")
    return PUBLISHED[name]
