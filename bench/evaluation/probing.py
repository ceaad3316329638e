"""The probes of the trust report around an evaluation: a look before, between and after its attacks."""

import json
from functools import partial

import numpy as np

from bench.engine.outcomes import Outcome, Report
from bench.errors import BenchError, cause, ran_out
from bench.evaluation.prepare import Prepared
from bench.results.findings import Finding
from bench.system.blocks import PartStore
from bench.system.devices import full_float32
from bench.system.randomness import untouched_randomness
from bench.trust.constancy import Witness
from bench.trust.probes import probe
from bench.trust.report import examined


def first_look(prepared: Prepared) -> Witness | None:
    """A witness that has seen the model before anything else is shown to it; None: without probes.

    Raises:
        BenchError: the model cannot be looked at.
    """
    if not prepared.request.probes:
        return None
    try:
        with untouched_randomness(), full_float32():
            return Witness.call(prepared.looked_at, prepared.threat, prepared.request.probes)
    except Exception as error:
        if ran_out(error):
            raise
        raise BenchError(f"the model cannot be looked at: {cause(error)}.") from error


def looking(witness: Witness | None, parts: PartStore, report: Report) -> Report:
    """The report of progress, with a look of the witness after every group of cells."""

    def reporting(name: str, done: int, total: int, standing: int | None) -> None:
        report(name, done, total, standing)
        if witness is not None and done == total:
            witness.look(f"they were asked for after {name}")
            if witness.changed:
                # For the process that writes the report, which may be another one.
                parts.put("witness", {"changed": np.array(witness.changed), "when": np.array(witness.when)})

    return reporting


def probed(
    prepared: Prepared, outcome: Outcome, witness: Witness | None, parts: PartStore, report: Report
) -> list[Finding]:
    """The probes' findings, from disk where they are there; none without a witness."""
    if witness is None:
        return []
    count = prepared.request.probes
    # No outcome depends on how many images are probed, so that the number may change without another evaluation.
    name = f"probes-{count}"
    known = parts.get(name)
    if known is None:
        report("trust report", 0, count, None)
        seen = parts.get("witness")
        if seen is not None and int(seen["changed"]) > witness.changed:
            witness.changed, witness.when = int(seen["changed"]), str(seen["when"])
        random = None if prepared.target.drawn is None else prepared.target
        training = prepared.dataset.train
        look = partial(probe, prepared.looked_at, prepared.threat, count, witness, outcome, training, random)
        known = {"findings": np.array(json.dumps(examined(look)))}
        parts.put(name, known)
    report("trust report", count, count, None)
    findings: list[Finding] = json.loads(str(known["findings"]))
    return findings
