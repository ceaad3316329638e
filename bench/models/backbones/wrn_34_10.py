"""WideResNet-34-10, as TRADES trains it."""

from bench.models.backbones._preactivation import WideResNet


class WideResNet34x10(WideResNet):
    """WideResNet-34-10: three stages of five blocks.

    Deviation: the adversarial training code that starts from TRADES' declares one more stage and never runs it; it
    is left out here.
    """

    blocks_per_stage = 5
