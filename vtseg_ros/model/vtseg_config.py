# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of VTSeg: one frozen dataclass, stored in every checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.registry import DEFAULT_STATIC_PRIOR

STAGES = 4
MAX_WINDOW = 64
ATTENTION_KINDS = ("full", "causal")
MIX_FFN_KINDS = ("spatial", "spatiotemporal")


def check_num_classes(number: int) -> None:
    """Raise ConfigError if a mask, which is uint8, cannot contain so many classes."""
    if not 1 <= number <= 255:
        raise ConfigError(f"num_classes: out of range; expected 1 to 255, got {number}")


def check_window(
    frames: int, *, option: str = "window", as_in_checkpoint: bool = False, longest: int | None = None
) -> None:
    """Check the length of a window.

    Args:
        frames: the number of frames.
        option: what is set, as the error names it.
        as_in_checkpoint: whether 0 is allowed, for the length in the checkpoint.
        longest: frames of the longest window of a certain network; None = any.

    Raises:
        ConfigError: if no network, or not this one, can have such a window.
    """
    if not (0 if as_in_checkpoint else 1) <= frames <= MAX_WINDOW:
        expected = f"1 to {MAX_WINDOW} frames" + (", or 0 (as in the checkpoint)" if as_in_checkpoint else "")
        raise ConfigError(f"{option}: out of range; expected {expected}, got {frames}")
    if longest is not None and frames > longest:
        raise ConfigError(
            f"{option}: longer than the network supports; expected at most {longest} frames, got {frames}"
        )


@dataclass(frozen=True)
class VTSegConfig:
    """Hyperparameters of VTSeg; the defaults are the paper's (preset `b0`).

    Args:
        num_classes: classes C of the logits, 1..255.
        window: window length k; can be changed at run time for `full` attention, width of the band for `causal`.
        embed_dims: widths C_1..C_4 of the stages (paper, Section III-C).
        num_heads: attention heads per stage (SegFormer-B0; the paper does not list them).
        depths: layers N per block and stage (paper: 2).
        sr_ratios: spatial reduction R of keys and values per stage (paper: 8, 4, 2, 1).
        mlp_ratio: hidden width of the Mix-FFN over the stage's width.
        head_channels: C_head (paper: 256), a multiple of 8.
        pixel_channels: channels of the head's last map, at H x W; 0 = C_head / 8. With fewer channels than classes, rare
            classes are learned late. The map before it, at H/2, has C_head / 4 or this number, whichever is larger.
        attention: `full` (every frame sees all frames of the window, the paper) or `causal` (a frame sees
            itself and at most `window - 1` older ones).
        mix_ffn: `spatial` (3x3 depthwise per frame) or `spatiotemporal` (3x3x3, zero-padded in time).
        static_prior: name of the static network: a registered one, or `external` for a network that
            the user names when the checkpoint is loaded.
        prior_classes: number of classes of the static network if it differs from `num_classes`; 0 = equal.
        class_mapping: for each class of the static network its class in VTSeg, or -1 for none; empty = identity.
        static_residual: add the static logits to those of the head, whose classifier starts at zero: VTSeg starts with
            the masks of its static network and learns the difference (paper: off).
    """

    num_classes: int
    window: int = 4
    embed_dims: tuple[int, ...] = (32, 64, 160, 256)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    head_channels: int = 256
    pixel_channels: int = 0
    attention: str = "full"
    mix_ffn: str = "spatial"
    static_prior: str = DEFAULT_STATIC_PRIOR
    prior_classes: int = 0
    class_mapping: tuple[int, ...] = ()
    static_residual: bool = False

    def __post_init__(self) -> None:
        for field in ("embed_dims", "num_heads", "depths", "sr_ratios", "class_mapping"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_num_classes(self.num_classes)
        check_window(self.window)
        for field in ("embed_dims", "num_heads", "depths", "sr_ratios"):
            values = getattr(self, field)
            if len(values) != STAGES or min(values) < 1:
                raise ConfigError(f"{field}: wrong values; expected {STAGES} positive integers, got {values}")
        for stage, (dim, heads) in enumerate(zip(self.embed_dims, self.num_heads), start=1):
            if dim % heads:
                raise ConfigError(
                    f"embed_dims: wrong width in stage {stage}; expected a multiple of its {heads} heads, got {dim}"
                )
        if self.head_channels < 8 or self.head_channels % 8:
            raise ConfigError(
                f"head_channels: wrong number; expected a multiple of 8, got {self.head_channels}"
            )
        if self.pixel_channels < 0:
            raise ConfigError(f"pixel_channels: out of range; expected at least 0, got {self.pixel_channels}")
        if self.mlp_ratio < 1:
            raise ConfigError(f"mlp_ratio: out of range; expected at least 1, got {self.mlp_ratio}")
        if self.attention not in ATTENTION_KINDS:
            raise ConfigError(
                f"attention: unknown; expected one of {', '.join(ATTENTION_KINDS)}, got {self.attention!r}"
            )
        if self.mix_ffn not in MIX_FFN_KINDS:
            raise ConfigError(
                f"mix_ffn: unknown; expected one of {', '.join(MIX_FFN_KINDS)}, got {self.mix_ffn!r}"
            )
        self._check_mapping()

    def _check_mapping(self) -> None:
        prior_classes = self.prior_classes or self.num_classes
        if not self.class_mapping:
            if prior_classes != self.num_classes:
                raise ConfigError(
                    f"class_mapping: missing; expected the class id, or -1 for none, of each of the "
                    f"{prior_classes} classes of the static network, since VTSeg has {self.num_classes}, got none"
                )
            return
        if len(self.class_mapping) != prior_classes:
            raise ConfigError(
                f"class_mapping: wrong length; expected one entry per class of the static network "
                f"({prior_classes}), got {len(self.class_mapping)}"
            )
        wrong = [target for target in self.class_mapping if not -1 <= target < self.num_classes]
        if wrong:
            raise ConfigError(
                f"class_mapping: entries out of range; expected -1 to {self.num_classes - 1}, got {wrong}"
            )

    @property
    def band(self) -> int:
        """Frames that a frame sees in a clip of any length: itself and older ones; 0 = all (full attention)."""
        return self.window if self.attention == "causal" else 0

    @classmethod
    def preset(cls, name: str, *, num_classes: int, **overrides: Any) -> VTSegConfig:
        """Return the configuration of a preset, with changes.

        `b0` is the paper's, `small` is `b0` with a narrower head, `tiny` is for CPUs and tests.

        Raises:
            ConfigError: if there is no such preset or field.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset: unknown; expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls.from_dict({"num_classes": num_classes, **PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VTSegConfig:
        """Return the configuration that `to_dict` wrote.

        Raises:
            ConfigError: for an unknown key, by name, with the nearest known one.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f". Known: {', '.join(known)}"
                raise ConfigError(f"VTSegConfig: unknown field {key!r}{hint}")
        for field in dataclasses.fields(cls):
            value = values.get(field.name, field.default)
            kind = {"int": int, "str": str, "bool": bool}.get(str(field.type), (list, tuple))
            items = value if kind == (list, tuple) and isinstance(value, kind) else ()
            if (
                not isinstance(value, kind)
                or any(type(item) is not int for item in items)
                or (type(value) is bool and kind is not bool)
            ):
                if field.name in values:
                    raise ConfigError(f"{field.name}: wrong type; expected {field.type}, got {value!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}


PRESETS: dict[str, dict[str, Any]] = {
    "b0": {},
    "small": {"head_channels": 64, "pixel_channels": 32},
    "tiny": {
        "embed_dims": (16, 32, 64, 128),
        "num_heads": (1, 2, 4, 8),
        "head_channels": 64,
        "pixel_channels": 32,
    },
}
