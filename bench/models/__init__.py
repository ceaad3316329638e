"""Models: backbones, checkpoints, weights, and faster forms of the same function."""
