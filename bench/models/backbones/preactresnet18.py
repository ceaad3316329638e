"""Pre-activation ResNet-18, the network of fast and of overfitted adversarial training."""

from bench.models.backbones._preactivation import PreActivationNet


class PreActResNet18(PreActivationNet):
    """Pre-activation ResNet-18 for 32x32 images (He et al. 2016, https://arxiv.org/abs/1603.05027).

    Four stages of two blocks, 64 to 512 channels. PyTorch's default initialisation. As Rice et al. train it
    (https://arxiv.org/abs/2002.11569); older code has no BN and activation before the mean.
    """

    stem = 64
    stages = ((64, 1), (128, 2), (256, 2), (512, 2))
    blocks_per_stage = 2
