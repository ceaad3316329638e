"""Images as they are."""

from bench.interfaces import Augmentation


class NoAugmentation(Augmentation):
    """Nothing: the protocol has no crops and no flips then."""
