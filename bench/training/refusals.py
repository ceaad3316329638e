"""Reasons to stop a training, so that no checkpoint says what is not so."""

from pathlib import Path

import torch
from torch import nn

from bench.errors import BenchError
from bench.system.files import content_digest
from bench.training.attacked_weights import require_trained_weights
from bench.training.averages import Averages
from bench.training.run import TrainingRun
from bench.training.run_folder import PLUGIN_KINDS, RunFolder, identity
from bench.training.stray_state import StrayState


def require_finite_losses(averages: Averages, epoch: int, step: int, folder: Path) -> None:
    """Refuse to go on with a loss that is not a number any more; the error names the last good checkpoint."""
    bad = averages.not_finite()
    if bad:
        raise _diverged(f"the loss is not finite in epoch {epoch + 1}, by step {step + 1}", bad, epoch, folder)


def require_finite_model(model: nn.Module, epoch: int, folder: Path) -> None:
    """Refuse to go on with a model that the last step broke, which no loss shows."""
    state = model.state_dict().items()
    bad = [name for name, tensor in state if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise _diverged(f"the model is not finite after epoch {epoch + 1}", bad[:5], epoch, folder)


def _diverged(what: str, where: list[str], epoch: int, folder: Path) -> BenchError:
    kept = f"the checkpoint of epoch {epoch} is in {folder / 'last'}" if epoch else "no epoch was finished"
    return BenchError(
        f"{what}: {', '.join(where)}; {kept}. Lower --learning-rate, or change the defense's weights with --set."
    )


def require_what_is_recorded(run: TrainingRun, stray: StrayState) -> None:
    """Refuse a run that is not what its record says, or that a resumed run would not continue.

    So is one in which crafting attacks other weights than are trained, or the defense has unregistered state.
    """
    optimizers = (run.optimizer, *run.kept.optimizers.values())
    trained = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    for shown in run.view.shown:
        require_trained_weights(shown, run.view.images, trained)
    stray.require_none(run.observed_rates.strangers)


def require_the_same_kept_state(run: TrainingRun) -> None:
    """Refuse, in every process, states of the defense that differ: only those of the first process are saved."""
    different = run.processes.differences(run.kept.digests()) if run.kept.items else []
    if different:
        raise BenchError(
            f"the {run.processes.count} processes do not keep the same {', '.join(different)}: let it move alike "
            "in all, or declare in the defense why it is `undivided`."
        )


def require_the_same_start(run: TrainingRun, folder: RunFolder) -> None:
    """Refuse, in every process, to go on with other models or in other ways than the other processes."""
    if run.processes.count == 1:
        return
    start = identity(folder.config) | {f"{kind}'s file": folder.config.get(f"{kind}_sha256") for kind in PLUGIN_KINDS}
    start |= {"epochs": folder.finished, "model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    mine = {name: content_digest(value) for name, value in start.items()}
    mine |= {f"state {name}": digest for name, digest in run.kept.digests().items()}
    different = run.processes.differences(mine)
    if different:
        raise BenchError(
            f"{folder.path}: the {run.processes.count} processes do not start alike (different "
            f"{', '.join(different)}): give all the same options, version, data and folder of runs."
        )
