"""The columns of a board of attacks: accuracies clean, under each attack, and in the worst case."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from bench.errors import BenchError
from bench.leaderboard.tables.row_names import row_names
from bench.leaderboard.tables.table import ColumnFormat, Columns
from bench.results.board_rows import BoardRow, best_known
from bench.results.file import AttackRecord, EvaluationResult, canonical_json
from bench.results.metrics import (
    CLEAN,
    Convention,
    PerSample,
    columns,
    correct,
    derived_columns,
    main_autoattack,
    main_threat,
    one_draw,
    worst_cases,
)

AVERAGE = "Avg"
BEST_KNOWN = "Best known"
"""A column of boards where others found images for a row after its evaluation."""


def columns_of_attacks(results: Sequence[EvaluationResult], convention: Convention) -> Columns:
    """Clean, worst cases, the suite's attacks in its order, its own columns, and the mean of Clean and AutoAttack.

    Where others found images for one of the results of the board, also what is best known of each.

    Raises:
        BenchError: a result of corruptions, or a suite whose column has a title of these.
    """
    if any(result.corruptions for result in results):
        raise BenchError("results under corruptions hold no attacks: `bench leaderboard` shows their means.")
    first = results[0]
    differing = [label for label in first.attacks if len(_objectives(results, label)) > 1]
    threats = dict.fromkeys(f"{record.norm} {record.epsilon}" for record in first.attacks.values())
    numbers = [attack_numbers(result, convention) for result in results]
    return Columns(
        title=f"{first.run.get('dataset')}, {', '.join(threats) or 'no attack'}, {suite_and_samples(first)}, "
        f"convention {convention}",
        rank_by=ranking_column(first, differing),
        formats={title: ColumnFormat(compares=title not in differing) for title in numbers[0]},
        numbers=numbers,
        notes=(*_column_notes(results), *_loss_notes(results)),
    )


def attack_numbers(result: EvaluationResult, convention: Convention = "any") -> dict[str, PerSample]:
    """Outcomes of one result of attacks by column title; in `AVERAGE`, the mean of two of each sample.

    Raises:
        BenchError: as `bench.results.metrics.columns`, or a column of the suite is called as one of the last two.
    """
    found: dict[str, PerSample] = {**columns(result, convention), **one_draw(result)}
    autoattack = main_autoattack(result)
    last: dict[str, PerSample] = {}
    if autoattack is not None:
        last[AVERAGE] = (correct(result) * 1.0 + correct(result, autoattack.label, convention)) / 2
    if isinstance(result, BoardRow) and result.beside_found:
        last[BEST_KNOWN] = best_known(result)
    for title in last.keys() & found.keys():
        raise BenchError(f"the suite has a column {title!r} of its own. Give it another label.")
    return found | last


def ranking_column(result: EvaluationResult, differing: Sequence[str] = ()) -> str:
    """Title of the column that ranks a table of attacks unless another is asked for.

    AutoAttack under the suite's main threat model, as on RobustBench; else the worst case in that norm. `differing`
    are columns in which the rows' losses differ, and which so rank none.
    """
    autoattack = main_autoattack(result)
    if autoattack is not None and autoattack.label not in differing:
        return autoattack.label
    # A suite may name a main norm that no attack of it has.
    return next(reversed(worst_cases(result)), CLEAN) if result.attacks else CLEAN


def suite_and_samples(result: EvaluationResult) -> str:
    """`suite full version 3, 1000 samples`, for the title of a board, `of 10 classes` where others were left out."""
    kept = len(result.run.get("kept_classes", ()))
    of_some = f" of {kept} classes" if kept else ""
    suite = f"suite {result.suite.get('name')} version {result.suite.get('version')}"
    return f"{suite}, {len(result.label)} samples{of_some}"


def radius_families(result: EvaluationResult) -> list[list[AttackRecord]]:
    """Attacks that differ in their radius alone: the lines of accuracy over the radius.

    One attack each, with two radii or more, the smallest first; of equal radii the first counts.
    """
    families: dict[str, dict[Fraction, AttackRecord]] = {}
    for record in result.attacks.values():
        setting = [record.attack, record.norm, record.objective, record.parameters]
        families.setdefault(canonical_json("attack", setting), {}).setdefault(Fraction(record.epsilon), record)
    return [[family[radius] for radius in sorted(family)] for family in families.values() if len(family) > 1]


def objective_text(record: AttackRecord) -> str:
    """The loss that an attack ascended; of one's own, also the digest of its file, where that is recorded."""
    digest = record.parameters.get("objective_sha256")
    return f"{record.objective} [sha256 {str(digest)[:8]}]" if digest else record.objective


def _column_notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    attacks = results[0].attacks
    for title, labels in worst_cases(results[0]).items() if len(attacks) > 1 else ():
        which = "every attack of the suite" if len(labels) == len(attacks) else "every attack in that norm"
        norms = ", ".join(dict.fromkeys(attacks[label].norm for label in labels))
        yield f"Column {title}: per image, under {which} ({norms})"
    if draws := results[0].draws:
        yield (
            f"Random models: an image counts where all {draws} draws are right; in columns `one draw`, the share of "
            "them that is, and intervals hold what another draw would change"
        )
    for label, members in derived_columns(results[0]).items():
        yield f"Column {label}: per image, under {', '.join(members)}"
    for label in attacks:
        objectives = _objectives(results, label)
        if len(objectives) > 1:
            found = "; ".join(f"{objective}: {', '.join(models)}" for objective, models in sorted(objectives.items()))
            yield f"Column {label}: the rows' losses differ, so none is best ({found})"
    autoattack = main_autoattack(results[0])
    if autoattack:
        yield f"Column {AVERAGE}: mean of {CLEAN} and {autoattack.label}"
    if isinstance(results[0], BoardRow) and results[0].beside_found:
        threat = " ".join(map(str, main_threat(results[0]) or ()))
        yield f"Column {BEST_KNOWN}: per image, under every attack inside {threat}, and under images that others found"


def _objectives(results: Sequence[EvaluationResult], label: str) -> dict[str, dict[str, None]]:
    """Models by the loss that an attack ascended on them."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        models = found.setdefault(objective_text(result.attacks[label]), {})
        models[str(result.run.get("model", "unnamed"))] = None
    return found


def _loss_notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    for name, result in zip(row_names(results), results, strict=True):
        losses = {label: record.loss for label, record in result.attacks.items() if record.loss is not None}
        means = ", ".join(f"{label} {loss.mean():.4f}" for label, loss in losses.items())
        if losses:
            yield f"{name}: mean cross-entropy of all samples at the last iterate: {means}"
