"""The loop of epochs and steps.

Everything random is a function of (seed, epoch), so a run resumed from its last saved epoch continues to the same bits
as one that was never stopped; on CUDA to rounding, and with `--deterministic` to the same bits.
"""

from dataclasses import replace
from typing import Any

from bench.results.watched import watched_text
from bench.system.devices import training_arithmetic, warning_of_slow_bfloat16
from bench.system.progress import TrainingProgress
from bench.system.signals import to_its_end
from bench.training.averages import Averages
from bench.training.held_out import held_out_accuracies
from bench.training.refusals import (
    require_finite_losses,
    require_finite_model,
    require_the_same_kept_state,
    require_what_is_recorded,
)
from bench.training.run import TrainingRun
from bench.training.run_folder import RunFolder
from bench.training.saves import Saves
from bench.training.stray_state import StrayState


def fit(run: TrainingRun, folder: RunFolder, quiet: bool, save_every: float) -> None:
    """Train the epochs that are missing, saving about every so many seconds.

    Raises:
        BenchError: the loss or the model is not finite, memory does not suffice, or the run is not what would be
            recorded of it.
    """
    writes, protocol = run.processes.writes, run.protocol
    place = folder.path if writes else None
    progress = TrainingProgress(
        quiet or not writes, place, protocol.epochs, run.steps_per_epoch, run.device, folder.finished
    )
    if run.precision == "bf16" and not progress.quiet and (warning := warning_of_slow_bfloat16(run.device)):
        progress.say(warning)
    stray = StrayState(run.defense, run.model, (run.optimizer, *run.kept.items.values()), progress.say)
    with progress, training_arithmetic(run.precision, run.deterministic), Saves(folder, save_every) as saves:
        for epoch in range(folder.finished, protocol.epochs):
            row = train_epoch(run, epoch, folder, progress, stray)
            run.update_average(epoch)
            if run.held_out is not None:
                row |= held_out_accuracies(run.model, run.held_out, protocol, run.seed)
            seen = {} if run.watch is None else run.watch.row(run.model)
            row |= seen
            if writes:
                with to_its_end():
                    saves.epoch_done(row, run.state())
            progress.epoch_done(row, {"watched": watched_text(seen)} if seen else {}, saves.on_disk)


def train_epoch(
    run: TrainingRun, epoch: int, folder: RunFolder, progress: TrainingProgress, stray: StrayState
) -> dict[str, Any]:
    """One pass over the training set; returns the means of all loss terms and recorded values."""
    averages = Averages()
    context = run.context(epoch, averages)
    run.set_rates(epoch, 0)
    with run.seeded(epoch), run.observed_rates.watched(), run.stepping(averages, stray) as take:
        run.model.train()
        run.defense.begin_epoch(run.model, context)
        for step, (images, labels, told) in enumerate(run.steps(context)):
            if step and run.protocol.schedule_by == "step":
                run.set_rates(epoch, step)
            with to_its_end():
                terms = take(images, labels, told)
                run.averaged.after_step((epoch + (step + 1) / run.steps_per_epoch) / run.protocol.epochs)
            if step == 0:  # before an epoch is spent on what could not be resumed or is not what is recorded
                run.kept.require_savable()
                require_what_is_recorded(run, stray)
                if run.view.refused and epoch == folder.finished:
                    progress.say("Crafting sees the model unfolded: folded, its logits move by more than rounding.")
            # About once a second: between two of these, no step waits for the device.
            if progress.step(len(labels)):
                require_finite_losses(averages, epoch, step, folder.path)
                progress.show(terms)
        # What the defense records from here on is of no batch: every process has an equal part in it.
        run.agreement.weight = run.processes.weight(None)
        run.defense.end_epoch(run.model, replace(context, batch=run.steps_per_epoch))
    averages.unite(run.processes, run.device)
    require_finite_losses(averages, epoch, step, folder.path)
    require_finite_model(run.model, epoch, folder.path)
    require_what_is_recorded(run, stray)
    require_the_same_kept_state(run)
    used = run.observed_rates.row() | run.how()
    return {"epoch": epoch + 1, **used, **{name: v for name, v in averages.means().items() if name not in used}}
