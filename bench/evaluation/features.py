"""How well features separate classes (Adv-DPNP, https://arxiv.org/abs/2504.03782, section 4.3, eqs. 8-12, Table 4).

With f_i the feature of sample i, y_i its true class, C_j the N_j samples of class j, m_j their mean feature, m the
mean feature of all samples, and c_j the model's centre of class j (`Classifier.class_centres`):

    eq. 8    FDR      = sum_j  [sum_{i in C_j} ||f_i - m_j||^2] / [N_j ||m_j - m||^2]                    lower is better
    eq. 9    AFS      = [sum_j sum_{i in C_j} (1 - cos(f_i, m_j))] / [sum_j N_j (1 - cos(m_j, m))]       lower is better
    eq. 10   SCR      = mean_j  min_{k != j} ||c_k - c_j|| / mean_{i in C_j} ||f_i - c_j||              higher is better
    eq. 11   MeanSep  = mean_j  min_{k != j} angle(c_j, c_k)                                            higher is better
    eq. 12   MinSep   = min_j   min_{k != j} angle(c_j, c_k)                                            higher is better

The paper leaves some things open. Here:

* The text calls FDR a ratio of inter-class to intra-class variance; eq. 8 is its inverse, within over between, summed
  over the M classes and not averaged. Eq. 8 is followed. Table 4 seems to print eq. 8 / M^2: only then do its FDR and
  AFS have one ratio on ten and on a hundred classes. Boards show both (`leaderboard/tables/features.py`).
* Adversarial features are a data set of their own in eqs. 8 and 9: m_j and m are their means. Eq. 10 measures both
  sets against the same c_j. The class of a sample is its true one, and misclassified samples count.
* c_j is the prototype or the classifier's row. Eq. 10 takes it as it is; the angles of eqs. 11 and 12 are those of
  unit vectors (the paper prints arccos of c_j . c_k), in degrees.
* The cosine of a zero vector with anything is 0.
* A class without samples is left out of eqs. 8 to 10, and the mean of eq. 10 is over the others; it remains a rival.
* A ratio of 0 to 0 counts as the worst value: where class means coincide, eqs. 8 and 9 are infinite; where centres
  do, that term of eq. 10 is 0. Features that all lie on their centres make eq. 10 infinite.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.data.splits import Split
from bench.engine.outcomes import Outcome
from bench.errors import BenchError, cause
from bench.interfaces import Centres, Classifier, Features, Labels, PerExample
from bench.results.file import FeatureRecord

_ROWS = 1024
"""Samples converted to float64 at once: 5 MB of 640 numbers each."""


@dataclass(frozen=True)
class Discrimination:
    """How a set of features separates classes; infinite as the module says."""

    fdr: float
    """Eq. 8, 0 or more; lower is better."""
    afs: float
    """Eq. 9, 0 or more; lower is better."""
    scr: float
    """Eq. 10, 0 or more; higher is better."""


@dataclass(frozen=True)
class FeatureMetrics:
    """The row of a model in Table 4."""

    samples: int
    classes: int
    """With at least one sample: what eqs. 8 to 10 are taken over."""
    clean: Discrimination
    adversarial: Discrimination
    mean_separation: float
    """Eq. 11, in degrees."""
    min_separation: float
    """Eq. 12, in degrees."""


class FeatureAccumulator:
    """Takes clean and adversarial features in batches; any order or partition gives the same to float64 rounding.

    Sums are float64 and on the CPU. Nothing grows with the number of samples: the state is four means per class.

    Args:
        centres: one row per class, at least two, in the space of the features.

    Raises:
        BenchError: fewer than two centres, or one that is zero, NaN or infinite.
    """

    def __init__(self, centres: Centres) -> None:
        self._centres = centres.detach().cpu().double()
        self._angles = nearest_angles(centres)
        self._clean, self._adversarial = _FeatureSet(self._centres), _FeatureSet(self._centres)
        self._samples = 0

    def add(self, clean: Features, adversarial: Features, labels: Labels) -> None:
        """Take in a batch: features of the same samples, clean and attacked, and their true classes.

        Raises:
            BenchError: features that are NaN or infinite or not of the centres' size, or a label without a centre.
        """
        labels = labels.cpu()
        for kind, features in (("clean", clean), ("adversarial", adversarial)):
            self._check(kind, features, labels)
        for gathered, features in ((self._clean, clean), (self._adversarial, adversarial)):
            for part, classes in zip(torch.split(features.detach(), _ROWS), torch.split(labels, _ROWS), strict=True):
                gathered.add(part.cpu().double(), classes)
        self._samples += len(labels)

    def finish(self) -> FeatureMetrics:
        """The metrics of everything added so far.

        Raises:
            BenchError: the samples are of fewer than two classes.
        """
        classes = int((self._clean.points.count > 0).sum())
        if classes < 2:
            raise BenchError(
                f"{self._samples} samples of {classes} class{'es' * (classes != 1)}: features are compared between "
                "classes. Evaluate samples of at least two."
            )
        return FeatureMetrics(
            samples=self._samples,
            classes=classes,
            clean=self._clean.discrimination(),
            adversarial=self._adversarial.discrimination(),
            mean_separation=float(self._angles.mean()),
            min_separation=float(self._angles.min()),
        )

    def _check(self, kind: str, features: Features, labels: Labels) -> None:
        count, dim = self._centres.shape
        if features.shape[1] != dim:
            raise BenchError(
                f"{kind} features have {features.shape[1]} numbers and class centres {dim}. "
                "Let `features` and `class_centres` of the model share one space."
            )
        outside = labels[(labels < 0) | (labels >= count)]
        if len(outside):
            raise BenchError(f"label {int(outside[0])} is not in 0..{count - 1}. Give a model with a centre per class.")
        finite = torch.cat([part.isfinite().all(1) for part in torch.split(features.detach(), _ROWS)])
        bad = (~finite).nonzero().flatten().tolist()
        if bad:
            row = features[bad[0]]
            value = float(row[~row.isfinite()][0])
            raise BenchError(
                f"{kind} features of sample {self._samples + bad[0]} (class {int(labels[bad[0]])}) hold {value}: "
                "they cannot be compared. Check the model's weights."
            )


@torch.no_grad()
def require_features(name: str, model: nn.Module, test: Split) -> None:
    """Refuse a model without features that can be compared between classes: tried as if all images had the first's."""
    if not isinstance(model, Classifier):
        raise BenchError(
            f"{name} has no features to measure: give a checkpoint of `bench train`, or a module that is a "
            "bench.interfaces.Classifier (features, score, class_centres)."
        )
    try:
        features = model.features(test.images(slice(0, 1))).expand(len(test), -1)
        gathered = FeatureAccumulator(model.class_centres())
    except Exception as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"the features of {name} cannot be measured: {cause(error)}") from error
    gathered.add(features, features, test.labels)
    gathered.finish()


def feature_record(model: nn.Module, outcome: Outcome) -> FeatureRecord | None:
    """Metrics of the features that the suite's first cell left; None where it left none."""
    pair = next(iter(outcome.features.values()), None)
    if pair is None or not isinstance(model, Classifier):
        return None
    centres = model.class_centres()
    gathered = FeatureAccumulator(centres)
    labels = torch.from_numpy(outcome.label.astype(np.int64))
    gathered.add(torch.from_numpy(pair.clean), torch.from_numpy(pair.adversarial), labels)
    found = gathered.finish()
    return FeatureRecord(
        attack=next(iter(outcome.features)),
        centres=f"class_centres of {type(model).__name__}, {len(centres)} x {centres.shape[1]}",
        samples=found.samples,
        classes=found.classes,
        fdr_clean=found.clean.fdr,
        fdr_adversarial=found.adversarial.fdr,
        afs_clean=found.clean.afs,
        afs_adversarial=found.adversarial.afs,
        scr_clean=found.clean.scr,
        scr_adversarial=found.adversarial.scr,
        mean_separation=found.mean_separation,
        min_separation=found.min_separation,
    )


def nearest_angles(centres: Centres) -> Float[Tensor, " classes"]:
    """Degrees between each centre and the one nearest to it in angle, in float64: eqs. 11 and 12 before mean and min.

    Raises:
        BenchError: fewer than two centres, or one that is zero, NaN or infinite.
    """
    if len(centres) < 2:
        raise BenchError(f"{len(centres)} class centres have no angle between them. Give a model of at least two.")
    points = centres.detach().cpu().double()
    length = torch.linalg.vector_norm(points, dim=1)
    bad = (~(length.isfinite() & (length > 0))).nonzero().flatten().tolist()
    if bad:
        raise BenchError(f"the centre of class {bad[0]} has length {float(length[bad[0]])}: it has no direction.")
    unit = _directions(points)
    rival = unit[(unit @ unit.T).fill_diagonal_(-torch.inf).argmax(1)]
    # arccos of a product near 1 keeps half the digits; this keeps all.
    apart = torch.linalg.vector_norm(unit - rival, dim=1)
    return torch.rad2deg(2 * torch.atan2(apart, torch.linalg.vector_norm(unit + rival, dim=1)))


class _Moments:
    """Count, mean and scatter (summed squared distance from the mean) by class, of vectors that come in batches."""

    def __init__(self, classes: int, dim: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self.mean = torch.zeros(classes, dim, dtype=torch.float64)
        self.scatter = torch.zeros(classes, dtype=torch.float64)

    def add(self, vectors: Features, labels: Labels) -> None:
        """Merge a batch (Chan, Golub & LeVeque 1983, pairwise updating): no large numbers are subtracted."""
        count = torch.bincount(labels, minlength=len(self.count)).double()
        mean = torch.zeros_like(self.mean).index_add_(0, labels, vectors) / count.clamp_min(1)[:, None]
        scatter = torch.zeros_like(self.scatter).index_add_(0, labels, (vectors - mean[labels]).square().sum(1))
        total = self.count + count
        share = count / total.clamp_min(1)
        shift = mean - self.mean
        self.scatter += scatter + shift.square().sum(1) * self.count * share
        self.mean += shift * share[:, None]
        self.count = total


class _FeatureSet:
    """Sums over one set of features, for eqs. 8 to 10."""

    def __init__(self, centres: Centres) -> None:
        self.centres = centres
        self.points, self.directions = _Moments(*centres.shape), _Moments(*centres.shape)
        self.zeros = torch.zeros(len(centres), dtype=torch.float64)
        self.distance = torch.zeros(len(centres), dtype=torch.float64)
        """Summed, from each sample to the centre of its class."""

    def add(self, features: Features, labels: Labels) -> None:
        """Take in float64 features."""
        self.points.add(features, labels)
        self.directions.add(_directions(features), labels)
        self.zeros.index_add_(0, labels, _is_zero(features))
        self.distance.index_add_(0, labels, torch.linalg.vector_norm(features - self.centres[labels], dim=1))

    def discrimination(self) -> Discrimination:
        """Eqs. 8 to 10 over the classes that have samples."""
        seen = self.points.count > 0
        count, mean = self.points.count[seen], self.points.mean[seen]
        # Relative to one of the class means, the mean of equal means is exactly theirs: 0 to 0 is then seen as such.
        overall = mean[:1] + (count @ (mean - mean[:1]))[None] / count.sum()
        between = count * (mean - overall).square().sum(1)
        angular_between = count * _one_minus_cosine(mean, overall)
        gap = torch.cdist(self.centres, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = gap.fill_diagonal_(torch.inf).amin(1)[seen]
        compactness = nearest * count / self.distance[seen]
        return Discrimination(
            fdr=float(_worst_if_equal(self.points.scatter[seen], between).sum()),
            afs=float(_worst_if_equal(self._angular_within()[seen].sum(), angular_between.sum())),
            scr=float(torch.where(nearest > 0, compactness, 0.0).mean()),
        )

    def _angular_within(self) -> Float[Tensor, " classes"]:
        """Summed 1 - cos(f_i, m_j), by way of 1 - cos(a, b) = ||a - b||^2 / 2 between unit vectors."""
        centre, count = self.points.mean, self.points.count
        offset = (self.directions.mean - _directions(centre)).square().sum(1)
        squares = self.directions.scatter + count * offset
        return (squares + self.zeros + count * _is_zero(centre)) / 2


def _directions(vectors: Features) -> Features:
    """Vectors at length 1; zero stays zero."""
    return functional.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)


def _is_zero(vectors: Features) -> PerExample:
    """1.0 where a vector is zero, else 0.0."""
    return (vectors == 0).all(1).double()


def _one_minus_cosine(left: Features, right: Float[Tensor, "1 dim"]) -> PerExample:
    """1 - cos, row by row; 1 where either is zero."""
    squares = (_directions(left) - _directions(right)).square().sum(1)
    return (squares + _is_zero(left) + _is_zero(right)) / 2


def _worst_if_equal(within: Tensor, between: Tensor) -> Tensor:
    """The ratio, infinite where nothing is between."""
    return torch.where(between > 0, within / between, torch.inf)
