"""Writes torchattacks.npz: a small network, images, and which of them survive some of torchattacks' attacks.

Run it in an environment of its own, with torch, numpy and torchattacks 3.5.1: that package installs files over
robustbench's, so it cannot stand beside this project's dependencies.

    python tests/goldens/make_torchattacks.py
"""

from pathlib import Path

import numpy as np
import torch
import torchattacks
from torch import nn
from torch.nn import functional

ATTACKS = {
    "FGSM": dict(eps=10 / 255),
    "PGD": dict(eps=10 / 255, alpha=3 / 255, steps=10, random_start=False),
    "PGDL2": dict(eps=0.35, alpha=0.0875, steps=10, random_start=False),
    "MIFGSM": dict(eps=10 / 255, alpha=1 / 255, steps=10, decay=1.0),
}

torch.set_num_threads(1)
torch.manual_seed(0)
images = torch.rand(64, 3, 8, 8)
features = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
model = nn.Sequential(*features, nn.Flatten(), nn.Linear(144, 10))
targets = torch.randint(0, 10, (64,))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(40):
    optimizer.zero_grad()
    functional.cross_entropy(model(images), targets).backward()
    optimizer.step()
model.eval()
labels = model(images).argmax(1)
survivors = {}
for name, options in ATTACKS.items():
    perturbed = getattr(torchattacks, name)(model, **options)(images, labels)
    survivors[f"survives_{name}"] = (model(perturbed).argmax(1) == labels).numpy()
    assert 5 < survivors[f"survives_{name}"].sum() < 59
weights = {f"weight_{name}": value.detach().numpy() for name, value in model.state_dict().items()}
path = Path(__file__).with_name("torchattacks.npz")
np.savez_compressed(path, images=images.numpy(), labels=labels.numpy(), **weights, **survivors)
