"""WideResNet-28-10 with Swish, the network of training with generated images."""

from torch import nn

from bench.models.backbones.wrn_28_10 import WideResNet28x10


class SwishWideResNet28x10(WideResNet28x10):
    """WideResNet-28-10 with Swish, x * sigmoid(x), for ReLU (Gowal et al. 2020, https://arxiv.org/abs/2010.03593).

    Deviations: the authors normalise pixels, pad strided convolutions at the right and bottom alone, and let BN's
    statistics move by 0.01 a step, not by 0.1.
    """

    own_activation = nn.SiLU
