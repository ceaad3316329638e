"""A check that no test image is among the extra images that a model was trained on."""

from collections.abc import Mapping
from typing import Any

from bench.data.splits import Split
from bench.results.findings import Finding, finding, graded
from bench.results.trainings import recorded_extra


def extra_data(run: Mapping[str, Any], test: Split) -> list[Finding]:
    """The finding on the extra images of a training, whose record compared them with a whole test split.

    Empty: the training had none, or is not recorded.
    """
    extra = run.get("training_data", {}).get("extra")
    if extra is None:
        return []
    found = extra.get("test_duplicates")
    known = extra.get("test_digest") == test.digest()
    if found:
        text = f"{found} of them are test images"
    elif found is None:
        text = "whether test images are among them is not recorded"
    else:
        text = "none of them is a test image" if known else "they were compared with other test images than these"
    severity = graded(error=bool(found), note=found is None or not known)
    return [finding("extra-data", severity, f"{recorded_extra(run)}: {text}", found, 0)]
