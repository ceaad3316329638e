"""The contract between the harness and its plug-ins. Read the files of this folder first.

Data flows one way:

    dataset -> train(defense) -> checkpoint -> evaluate(suite) -> result file -> table -> leaderboard

A *defense* is a frozen dataclass in `defenses/` that returns named loss terms. An *attack* is a frozen
dataclass in `attacks/` that returns images. Neither ever reports its own success: the harness projects what an
attack returns onto the threat model, classifies it again, and stores the outcome for every sample.

Images are NCHW float tensors in [0, 1]; models return logits and normalise inside, if at all.
"""

from bench.interfaces.attacks import NO_CLASS, Attack, IterativeAttack, Problem, State, classes, fooled, within
from bench.interfaces.augmentations import Augmentation
from bench.interfaces.breaking import BreakingSteps
from bench.interfaces.defenses import Defense, Family, Share, Stateful, TrainingContext, require_terms
from bench.interfaces.draws import Draws, runs_ahead
from bench.interfaces.hyperparameters import hyperparameter
from bench.interfaces.models import (
    Backbone,
    BackboneFactory,
    Classifier,
    LinearClassifier,
    MakeActivation,
    evaluation_mode,
    without_autocast,
)
from bench.interfaces.placement import Placement
from bench.interfaces.tensors import (
    Centres,
    FeatureMap,
    Features,
    Images,
    Indices,
    Labels,
    Logits,
    Objective,
    ObjectiveFactory,
    PerExample,
    Scalar,
    Step,
)
from bench.interfaces.threat import NORMS, ThreatModel
from bench.interfaces.transformations import TRANSFORMATIONS, Transformation
