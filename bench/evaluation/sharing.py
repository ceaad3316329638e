"""One evaluation by several processes: each computes its share of the blocks, and the first merges them."""

import dataclasses
import subprocess
from collections.abc import Callable

import torch

from bench.catalogue.plugins import plugin_files
from bench.errors import BenchError
from bench.evaluation.request import EvaluationRequest
from bench.launching import program
from bench.system.signals import Terminated
from bench.text import setting_text


def share(request: EvaluationRequest, processes: int, run: Callable[[], object]) -> None:
    """Run this process's share while further ones run theirs, and wait for them; if it stops, they stop too.

    Raises:
        BenchError: one of the others failed.
    """
    if request.module is not None or request.held is not None:
        raise BenchError("a model or dataset in memory is evaluated by one process: leave out processes.")
    others: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, processes):
            command = shard_command(_on_its_device(dataclasses.replace(request, shard=(number, processes))))
            # A session of its own: Ctrl-C reaches this process alone, which ends the others.
            others.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True))
        run()
    except BaseException as error:
        for other in others:
            # What they have finished is on disk, and files are whole at any time.
            other.terminate() if isinstance(error, Terminated) else other.kill()
        raise
    finally:
        codes = [other.wait() for other in others]
    if failed := [str(code) for code in codes if code]:
        raise BenchError(
            f"{len(failed)} of {len(codes)} processes that share the evaluation failed (exit code "
            f"{', '.join(failed)}). Finished blocks are kept: evaluate again, or with one process."
        )


def shard_command(request: EvaluationRequest) -> list[str]:
    """The words of a `bench eval` that makes the same request, with the plug-in files of this process."""
    values = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    for unsaid in ("command", "module", "held"):  # the command is that of the process that writes the result
        del values[unsaid]
    checkpoint = values.pop("checkpoint")
    values["corruptions_dir"] = values.pop("corruptions")
    values["eps"] = [f"{norm}={radius}" for norm, radius in values.pop("epsilons").items()]
    values["shard"] = "{}/{}".format(*request.shard)
    if isinstance(request.classes, tuple):
        values["classes"] = setting_text(request.classes)
    values["plugin"] = plugin_files()
    words = [*program(), "eval"]
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                words.append(f"{option}={one}")
    return words if checkpoint is None else [*words, "--", str(checkpoint)]


def _on_its_device(request: EvaluationRequest) -> EvaluationRequest:
    """The request on a GPU that few others share, where there are several."""
    gpus = torch.cuda.device_count()
    if gpus < 2 or request.device == "cpu":
        return request
    return dataclasses.replace(request, device=f"cuda:{request.shard[0] % gpus}")
