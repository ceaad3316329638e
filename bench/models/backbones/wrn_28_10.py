"""WideResNet-28-10."""

from bench.models.backbones._preactivation import WideResNet


class WideResNet28x10(WideResNet):
    """WideResNet-28-10: three stages of four blocks."""

    blocks_per_stage = 4
