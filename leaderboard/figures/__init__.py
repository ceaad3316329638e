"""One figure a file, after those of the Adv-DPNP paper (https://arxiv.org/abs/2504.03782). `canvas` writes them."""
