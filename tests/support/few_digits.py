"""The digits, cut short."""

import numpy as np

from bench.data import datasets


def few_digits(patch, folder, train, test=500):
    """Train on the first `train` digits and evaluate the first `test` ones, read from a file in the folder."""
    with np.load(datasets.DIGITS, allow_pickle=False) as whole:
        few = {name: values[: train if name.endswith("train") else test] for name, values in whole.items()}
    np.savez(folder / "digits.npz", **few)
    patch.setattr(datasets, "DIGITS", folder / "digits.npz")
