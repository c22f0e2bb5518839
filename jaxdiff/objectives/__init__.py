"""Objectives: networks and losses bound together into what is trained.

An objective is a pure function `(params, state, batch, key) -> loss []`. A batch is a mapping of arrays: `image`
`[B, H, W, C]` in [-1, 1], `label` `[B]`, and `index` `[B]`, an example's position in the whole batch. Times, noise and
dropped labels are keyed by that index, so a loss does not depend on how the batch is cut over devices. Dropout masks
alone are drawn for the array at hand: the same on every mesh, others under pmap or another number of processes.
"""

from jaxdiff.objectives.autoencoding import vae
from jaxdiff.objectives.classification import class_log_probs, classifier, label_log_prob
from jaxdiff.objectives.denoising import diffusion, labelled
from jaxdiff.objectives.keys import drop_label
from jaxdiff.objectives.kinds import ClassifierNetwork, LabelledNetwork, Objective, Params
from jaxdiff.objectives.variational import variational_diffusion

__all__ = [
    "ClassifierNetwork",
    "LabelledNetwork",
    "Objective",
    "Params",
    "class_log_probs",
    "classifier",
    "diffusion",
    "drop_label",
    "label_log_prob",
    "labelled",
    "vae",
    "variational_diffusion",
]
