"""Check that the installed packages fit together, and say what a training would be here."""

import importlib
import sys

import click

from bench.cli import echo
from bench.errors import BenchError

NEEDED = ("torch", "torchvision", "numpy", "h5py", "safetensors", "scipy", "jaxtyping", "tqdm")
FOR_SOME = {
    **dict.fromkeys(("pandas", "tabulate"), "leaderboards need it"),
    "autoattack": "AutoAttack needs pyautoattack",
}


@click.command()
def command() -> None:
    """Import what matters and name the mend when something does not fit; then what a training would be here.

    Shown are the device and its precisions, how steps are run, and about how long the default training takes.
    """
    for package in NEEDED:
        problem = _problem(package)
        if problem:
            raise BenchError(f"{package} cannot be used: {problem}. {_mend(package)}")
    notes = [f"{package} is missing ({why})" for package, why in FOR_SOME.items() if _problem(package)]
    torch, torchvision = (importlib.import_module(name) for name in ("torch", "torchvision"))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    echo(
        f"ok: python {sys.version.split()[0]}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"CUDA device: {cuda}{''.join('; ' + note for note in notes)}"
    )
    from bench.system.devices import choose_device
    from bench.training.forecast import forecast

    for line in forecast(choose_device("auto")):
        echo(line)


def _problem(package: str) -> str | None:
    """Why a package cannot be imported. A torchvision built for another torch raises RuntimeError, not ImportError."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _mend(package: str) -> str:
    if package in ("torch", "torchvision"):
        return (
            "torch and torchvision must be built for one another: "
            "python -m pip install torch==2.11.0 torchvision==0.26.0"
        )
    return "Install it with: python -m pip install -c constraints.txt -e ."
