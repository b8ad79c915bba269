"""A trained network's weights for another list of classes: what belongs to a class goes over by the class's name."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# Which dimensions of which tensors count classes, in every network here. The decoder's first convolution takes the
# classes' logits, then RGB.
CLASS_DIMENSIONS = {
    r"decoder\.output_conv\.weight": (1,),  # ERFNet, a transposed convolution
    r"decoder\.output_conv\.bias": (0,),
    r"classify\.(weight|bias)": (0,),  # VTSeg's head, SegFormer
    r"concat\.norm\.(weight|bias)": (0,),
    r"decoder\.enc_blocks\.0\.embed\.proj\.weight": (1,),
    r"(past|present)_to_update\.weight": (1,),  # STGRU
    r"(past|present)_to_candidate\.weight": (0, 1),
}


def class_dimensions(key: str) -> tuple[int, ...]:
    """The dimensions of the tensor `key` of a state dict that count classes; () for none."""
    return next((dims for end, dims in CLASS_DIMENSIONS.items() if re.search(rf"(^|\.){end}$", key)), ())


def translate_classes(
    state: dict[str, Tensor], own: dict[str, Tensor], *, old: tuple[str, ...], new: tuple[str, ...]
) -> dict[str, Tensor]:
    """The state of a network of the classes `old` for the same network with the classes `new`.

    Args:
        state: the trained network's.
        own: the new network's, freshly initialised: classes that `old` lacks keep their weights from it.
        old: class names of `state`, in the order of their ids.
        new: class names of `own`.

    Returns:
        `state`, with the tensors that count classes in the shapes of `own`. Tensors that differ in more than the
        classes are left as they are, for `load_exact` to refuse.
    """
    shared = [name for name in new if name in old]
    taken = [old.index(name) for name in shared], len(old)
    given = [new.index(name) for name in shared], len(new)
    result = dict(state)
    for key, value in state.items():
        dims = class_dimensions(key)
        if dims and key in own and _rest(value, dims, len(old)) == _rest(own[key], dims, len(new)):
            result[key] = own[key].clone()
            result[key][_grid(own[key], dims, *given)] = value[_grid(value, dims, *taken)]
    return result


def _rest(tensor: Tensor, dims: tuple[int, ...], classes: int) -> list[int]:
    """Its shape without the classes."""
    return [size - classes if dim in dims else size for dim, size in enumerate(tensor.shape)]


def _grid(tensor: Tensor, dims: tuple[int, ...], rows: list[int], classes: int) -> tuple[Tensor, ...]:
    """Indices of the rows of some classes, and of all that is no class's."""
    along = [
        rows + list(range(classes, size)) if dim in dims else list(range(size))
        for dim, size in enumerate(tensor.shape)
    ]
    return torch.meshgrid(*[torch.tensor(indices, dtype=torch.long) for indices in along], indexing="ij")
