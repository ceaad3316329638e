"""A model under a suite. The harness projects, classifies and times; an attack's word counts for nothing.

Cells that share a search are run as one (`bench.engine.groups`, `bench.engine.search`). Other attacks are given a
watched model: the first image on the way that is allowed and misclassified is kept, and judged once more at the end.
Either may search on a faster model of the same function, or in coarser numbers: what the judge does not confirm does
not count, and the search goes on.
So two conventions of success come out: `any` (an adversarial image found on the way counts) and `final` (only the last
one).
"""

import hashlib
import time
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from bench.catalogue.plugins import make_attack
from bench.catalogue.suites import Suite
from bench.engine.adversarials import Adversarials
from bench.engine.group_run import GroupRun, int16
from bench.engine.groups import plan
from bench.engine.memory import in_pieces
from bench.engine.outcomes import AttackFaults, FeaturePair, Outcome, Report
from bench.engine.target import Target
from bench.interfaces import classes
from bench.results.file import AttackRecord
from bench.results.findings import Finding, finding
from bench.system.blocks import Arrays, PartStore
from bench.system.devices import full_float32
from bench.system.randomness import untouched_randomness


def run_suite(
    target: Target,
    suite: Suite,
    *,
    convention: Literal["any", "final"] = "any",
    parts: PartStore | None = None,
    shard: tuple[int, int] = (0, 1),
    report: Report = lambda name, done, total, standing: None,
) -> Outcome:
    """Outcomes of the target's images, clean and under every cell of a suite with every radius filled in.

    The model is in eval mode from here on. Convention `any` takes an image out once it is broken; `final` measures both
    conventions. Finished blocks are kept in `parts`; shard (i, n) computes only every n-th, from the i-th, and its
    outcome is incomplete.

    Raises:
        BenchError: an unknown attack or parameter, or an attack that returns images of another shape.
    """
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in suite.cells}
    parts = parts or PartStore(None, {})
    for model in target.models:
        model.eval()
    findings: list[Finding] = []
    faults = AttackFaults()
    labels = target.split.labels.cpu().numpy().astype(np.int16)
    with untouched_randomness(), full_float32():
        known = _clean_outcomes(target, parts)
        clean, not_finite = known["prediction"], int(known.get("not_finite", 0))
        if not_finite:
            text = f"{not_finite} of {len(clean)} clean images give logits that are NaN or infinite"
            findings.append(finding("non-finite-logits", "error", text, not_finite, 0))
        records: dict[str, AttackRecord] = {}
        kept: dict[str, Adversarials] = {}
        features: dict[str, FeaturePair] = {}
        for number, group in enumerate(plan(suite.cells, attacks)):
            # An attack is given the model itself: one that changes it must not spoil the groups after it.
            before = [state_digest(model) for model in target.models]
            saved = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in target.models]
            run = GroupRun(target, group, clean, labels, convention == "final", report)
            records |= run.records(number, parts, shard, faults)
            kept |= run.adversarials
            features |= run.features
            changed = [state_digest(model) for model in target.models] != before
            if changed:
                for model, state in zip(target.models, saved, strict=True):
                    model.load_state_dict(state)
                parts.put(f"{number:03d}-changed", {})
            if changed or parts.get(f"{number:03d}-changed") is not None:
                text = f"parameters or buffers changed while {group.name} ran"
                findings.append(finding("model-changed", "error", text, value=group.name))
            for model in target.models:
                model.eval()
    ordered = {cell.label: records[cell.label] for cell in suite.cells}
    images = {label: kept[label] for label in ordered if label in kept}
    findings = [*faults.findings(), *findings]
    right_draws = known.get("right_draws")
    return Outcome(labels, clean, ordered, tuple(findings), images, features, clean_right_draws=right_draws)


def untried(target: Target, suite: Suite, convention: Literal["any", "final"] = "any") -> Outcome:
    """An outcome of the form that `run_suite` returns, of a model that is always right, without a look at it."""
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in suite.cells}
    labels = target.split.labels.cpu().numpy().astype(np.int16)
    records: dict[str, AttackRecord] = {}
    for group in plan(suite.cells, attacks):
        records |= GroupRun(target, group, labels, labels, convention == "final", lambda *progress: None).recorded([])
    right_draws = None if target.drawn is None else np.full_like(labels, target.drawn.draws)
    ordered = {cell.label: records[cell.label] for cell in suite.cells}
    return Outcome(labels, labels, ordered, (), clean_right_draws=right_draws)


def _clean_outcomes(target: Target, parts: PartStore) -> Arrays:
    """Per clean image its prediction and, of a random model, right draws; and how many logits are not finite."""
    known = parts.get("clean")
    if known is None:
        count, size = len(target.split), target.batch_size
        blocks = np.split(np.arange(count), range(size, count, size))
        started = time.perf_counter()
        verdicts = [verdict for block in blocks for verdict in in_pieces(block, target, partial(_verdicts, target))]
        known = {name: np.concatenate([verdict[name] for verdict in verdicts]) for name in verdicts[0]}
        known["not_finite"] = np.array(known["not_finite"].sum())
        known["seconds"] = np.array((time.perf_counter() - started) / count)
        parts.put("clean", known)
    target.seconds = float(known["seconds"]) if "seconds" in known else None
    return known


def _verdicts(target: Target, rows: np.ndarray) -> Arrays:
    indices = torch.from_numpy(rows).to(target.split.labels.device)
    images = target.split.images(indices)
    logits = target.judge(images)
    odd = (~torch.isfinite(logits)).any(1).cpu().numpy()
    if target.drawn is None:
        return {"prediction": int16(classes(logits)), "not_finite": odd}
    verdicts = target.drawn_verdicts(images, indices, attacked=False)
    return {"prediction": int16(verdicts.prediction), "right_draws": int16(verdicts.right), "not_finite": odd}


def state_digest(model: nn.Module) -> str:
    """sha256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
