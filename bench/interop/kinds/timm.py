"""timm:NAME: a network of timm, such as resnet18.a1_in1k, with its published weights or --weights.

mean, std and the size of images are those of timm's `pretrained_cfg`.
"""

from functools import partial
from typing import Any

from torch import nn

from bench.errors import BenchError, cause
from bench.interop.hub import published
from bench.interop.kinds import Brought, Order
from bench.interop.state_dicts import read_state
from bench.models.backbones._timm import timm_with
from bench.system.environment import version_of

TAKES = frozenset({"weights", "download"})
WEIGHTS = "model.safetensors"


def bring(order: Order) -> Brought:
    """The network with all its classes.

    Raises:
        BenchError: timm is not installed or has no such network, or its weights are not here or do not fit.
    """
    timm, asked = timm_with(order.name, f"model 'timm:{order.name}'"), f"timm:{order.name}"
    told: tuple[str, ...] = ()
    try:
        make = partial(timm.create_model, order.name, pretrained=False)
        module: nn.Module = make()
    except Exception as error:  # a tag that the network does not have is a RuntimeError
        raise BenchError(f"timm cannot make {order.name!r}: {cause(error)}") from error
    facts: dict[str, Any] = {"library": version_of("timm")}
    if order.weights is not None:
        state = read_state(order.weights)
        classes, usual = state.outputs_of(module)
        module = module if classes == usual else make(num_classes=classes)
        told = state.load_into(module)
    else:
        repository = module.pretrained_cfg.get("hf_hub_id")  # type: ignore[union-attr, operator]
        if not repository or module.pretrained_cfg.get("hf_hub_filename"):  # type: ignore[union-attr, operator]
            raise BenchError(f"timm publishes no {WEIGHTS} of {order.name!r}: give --weights FILE, or another tag.")
        folder = published(asked, repository, [WEIGHTS], order.download)
        source = {"file": str(folder / WEIGHTS), "custom_load": False}
        try:
            module = timm.create_model(order.name, pretrained=True, pretrained_cfg_overlay=source)
        except Exception as error:
            raise BenchError(f"{folder / WEIGHTS} cannot be loaded as {asked}: {cause(error)}") from error
        facts["revision"] = folder.name
    return Brought(
        module=module,
        name=order.weights.stem if order.weights else order.name,
        source=asked,
        file=order.weights.name if order.weights else WEIGHTS,
        facts=facts,
        adapters=_declared(timm.data.resolve_model_data_config(module)),
        told=told,
    )


def _declared(configuration: Any) -> tuple[str, ...]:
    _, height, width = configuration["input_size"]
    mean, deviation = (",".join(map(repr, configuration[name])) for name in ("mean", "std"))
    mode = configuration["interpolation"]
    size = str(height) if height == width else f"{height}x{width}"
    return f"resize={size},{mode if mode in ('bilinear', 'nearest') else 'bicubic'}", f"normalize={mean}:{deviation}"
