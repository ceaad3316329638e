"""WideResNet-34-10 with Swish."""

from torch import nn

from bench.models.backbones.wrn_34_10 import WideResNet34x10


class SwishWideResNet34x10(WideResNet34x10):
    """WideResNet-34-10 with Swish, x * sigmoid(x), for ReLU (Gowal et al. 2020, https://arxiv.org/abs/2010.03593).

    Deviations: the authors normalise pixels, pad strided convolutions at the right and bottom alone, and let BN's
    statistics move by 0.01 a step, not by 0.1.
    """

    own_activation = nn.SiLU
