"""Files of the Hugging Face Hub: those in its cache on this machine; the network only where a person allows it."""

from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError, cause
from bench.system.environment import optional_package


def published(model: str, repository: str, files: Sequence[str], download: bool) -> Path:
    """The folder with a repository's newest snapshot here; with `download`, the newest there is.

    Args:
        model: as a person named it.
        repository: OWNER/NAME.
        files: patterns of the names of those that are needed; each must be of one file at least.
        download: what is missing may be downloaded.

    Raises:
        BenchError: it is not here and may not be downloaded, or cannot be.
    """
    hub = optional_package("huggingface_hub", "timm", f"model {model!r}")
    place = Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=list(files), local_files_only=not download))
    except ValueError as error:  # no name of a repository; what is not here is a FileNotFoundError
        raise BenchError(
            f"{model} is neither a folder here nor a name on the Hugging Face Hub: {cause(error)}"
        ) from error
    except Exception as error:  # of the network, the server, the disk
        if download:
            raise BenchError(f"{model} could not be downloaded: {cause(error)}.") from error
        folder = place
    missing = [name for name in files if not any(folder.glob(name))]
    if missing and download:
        raise BenchError(f"https://huggingface.co/{repository} has no {', '.join(missing)}: pickles are not read.")
    if missing:
        raise BenchError(
            f"{model} is not on this machine: {', '.join(missing)} of https://huggingface.co/{repository} would be "
            f"downloaded to {place}. Allow it with --download."
        )
    return folder
