"""Backbones: from images to features. One per file, found by file name; `timm:NAME` is one of timm's networks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from bench.catalogue.names import TIMM, built_in
from bench.catalogue.plugins import find, names
from bench.errors import BenchError, cause, unknown_name
from bench.interfaces import Backbone, MakeActivation, evaluation_mode
from bench.models.backbones._timm import TimmBackbone
from bench.system.randomness import untouched_randomness

Make: TypeAlias = Callable[[int, tuple[int, int]], Backbone]
"""From channels and (height, width) of images to a backbone for them."""

_ACTIVATIONS: dict[str, MakeActivation] = {"relu": nn.ReLU, "prelu": nn.PReLU}


def make_backbone(
    name: str,
    in_channels: int,
    image_size: tuple[int, int],
    activation: Literal["relu", "prelu"] = "relu",
    final_activation: bool = True,
) -> Backbone:
    """A freshly initialised backbone for images of `in_channels` channels and (height, width) `image_size`.

    `prelu` replaces every ReLU by a PReLU with one learnable slope (initially 0.25), shared by the two activations of
    a residual block, as in the Orthogonal Classifier's networks (Xu et al. 2022, https://arxiv.org/abs/2105.09109).
    Without `final_activation` the last activation before the feature vector is dropped, and only that one.

    Raises:
        BenchError: there is no backbone of this name, the images are too small for it, it has no such activations, or
            a plug-in's features are not what it says.
    """
    require_backbone(name)
    if name.startswith(TIMM):
        if (activation, final_activation) != ("relu", True):
            raise BenchError(
                f"backbone {name!r} keeps timm's activations, and the defense asks for others. Choose from: "
                f"{', '.join(names('backbone'))}."
            )
        return _foreign(name, partial(TimmBackbone, name.removeprefix(TIMM)), in_channels, image_size)
    owner: Any = find("backbone", name)
    if min(image_size) < owner.smallest:
        fitting = [other for other in names("backbone") if find("backbone", other).smallest <= min(image_size)]
        raise BenchError(
            f"backbone {name!r} needs images of at least {owner.smallest}x{owner.smallest}, these are "
            f"{image_size[0]}x{image_size[1]}. Choose from: {', '.join(fitting)}."
        )
    make: Make = partial(owner, make_activation=_ACTIVATIONS[activation], final_activation=final_activation)
    return (
        make(in_channels, image_size) if name in built_in("backbone") else _foreign(name, make, in_channels, image_size)
    )


def require_backbone(name: str) -> None:
    """Refuse a name that is neither a backbone's nor `timm:NAME`."""
    if not name.startswith(TIMM) and name not in names("backbone"):
        raise unknown_name("backbone", name, [*names("backbone"), f"{TIMM}NAME"])


def _foreign(name: str, make: Make, in_channels: int, image_size: tuple[int, int]) -> Backbone:
    """A backbone of others' code, refused in one line where it fails or its features are not what it says."""
    size = f"{in_channels}x{image_size[0]}x{image_size[1]}"
    try:
        backbone = make(in_channels, image_size)
        with torch.no_grad(), untouched_randomness(), evaluation_mode(backbone):
            maps = backbone.feature_map(torch.zeros(2, in_channels, *image_size))
            found = (*maps.shape[:2], *backbone.embed(maps).shape)
        said = (2, backbone.map_channels, 2, backbone.feature_dim)
    except BenchError:
        raise
    except Exception as error:
        raise BenchError(f"backbone {name!r} cannot be made for images of {size}: {cause(error)}.") from error
    if maps.ndim != 4 or found != said:
        raise BenchError(
            f"backbone {name!r} maps two images of {size} to {tuple(maps.shape)} and then {found[2:]}, and says "
            f"map_channels={said[1]} and feature_dim={said[3]}: make them agree."
        )
    return backbone
