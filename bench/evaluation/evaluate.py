"""From a model and a suite to a result file. A stopped evaluation goes on; several processes can share one."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from bench.engine.adversarials import adversarials_path
from bench.engine.memory import shortage
from bench.engine.outcomes import Outcome, Report
from bench.engine.run import run_suite
from bench.errors import BenchError, cause, ran_out
from bench.evaluation.corrupted import predict_corrupted
from bench.evaluation.counting import Counting, Overall, pieces_of
from bench.evaluation.prepare import Prepared, prepare, refuse_existing
from bench.evaluation.probing import first_look, looking, probed
from bench.evaluation.record import is_whole, make_result, require_room, write, written
from bench.evaluation.request import EvaluationRequest
from bench.evaluation.sharing import share
from bench.results.file import EvaluationResult, content_digest
from bench.system.blocks import PartStore, ended
from bench.system.devices import full_float32
from bench.system.files import clear_temporaries
from bench.system.heartbeat import Heartbeat, sign_of_evaluation
from bench.system.signals import to_its_end


def evaluate(
    request: EvaluationRequest,
    report: Report = lambda name, done, total, standing: None,
    processes: int = 1,
    tell: Callable[[str], None] = lambda line: None,
    overall: Overall = lambda done, total, images, left: None,
) -> tuple[EvaluationResult, Path]:
    """Evaluate and write the result file; returns the result and its path.

    With several `processes`, this one shares the work with others of the same request and merges what they finish. What
    was done to make the model one that can be evaluated is told, a line each, before the work; `overall` is how far
    all of it is.

    Raises:
        BenchError: bad input, a result that could not be kept, a process that failed, or a result file that is there,
            at the start or the end.
    """
    started = time.perf_counter()
    prepared = prepare(request)
    parts = PartStore(prepared.path, prepared.identity())
    whole = request.shard == (0, 1)
    if whole and (noted := parts.noted_end()) and (result := written(prepared, noted)):
        if is_whole(prepared, noted):  # it was killed while it cleared up
            clear_up(prepared.path, result)
            return result, prepared.path
    else:
        refuse_existing(request, prepared.path)
    require_room(prepared)
    for line in prepared.subject.told:
        tell(line)
    with Heartbeat(sign_of_evaluation(prepared.path, request.shard)) as heart:
        with shortage("Free memory, or take a smaller --probes or another --device."):
            witness = first_look(prepared)
            counting = Counting(pieces_of(prepared), report, heart.tell, overall)
            run = partial(_run, prepared, parts, looking(witness, parts, counting))
            if processes > 1:
                share(request, processes, partial(run, (0, processes)))
            # After a shared run every block is on disk, and this one gathers them.
            outcome = run(request.shard)
            findings = probed(prepared, outcome, witness, parts, report) if whole else []
            result = make_result(prepared, outcome, findings, time.perf_counter() - started)
        with to_its_end():
            if whole:
                parts.note_end(content_digest(result))
                write(prepared, result, outcome)
            else:
                parts.finish_shard(request.shard, prepared.subject.description["checkpoint_digest"])
    if whole:
        clear_up(prepared.path, result)
    return result, prepared.path


def clear_up(path: Path, result: EvaluationResult) -> None:
    """Remove what evaluations that have written this result had on disk to go on from.

    The parts, by which they are known, go last.
    """
    for parts in ended(path, content_digest(result)):
        sign = sign_of_evaluation(path)
        clear_temporaries(path.parent, {file.name for file in (path, adversarials_path(path), sign)})
        with suppress(OSError):
            sign.unlink()
        parts.clear()


def _run(prepared: Prepared, parts: PartStore, report: Report, shard: tuple[int, int]) -> Outcome:
    """The outcome of the suite's cells, then of its corruptions."""
    target, convention = prepared.target, prepared.request.convention
    try:
        outcome = run_suite(target, prepared.suite, convention=convention, parts=parts, shard=shard, report=report)
        if prepared.corrupted is None:
            return outcome
        with full_float32():
            records, digest = predict_corrupted(target, prepared.corrupted, parts, shard, report)
        return dataclasses.replace(outcome, corruptions=records, corrupted_digest=digest)
    except Exception as error:
        if isinstance(error, BenchError) or ran_out(error):
            raise
        raise BenchError(f"the evaluation failed: {cause(error)}. Its finished blocks are kept.") from error
