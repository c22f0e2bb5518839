"""What a run is: typed frozen dataclasses, written as plain Python in `configs/`, one recipe a file.

Strings that choose code live here and on the command line alone; `recipe` turns them into functions.
"""

from jaxdiff.app.config.distillation import (
    COST,
    DENOISERS,
    STUDENTS,
    Distillation,
    halvings,
    network_calls,
    on_list,
    round_steps,
    rounds,
    sampling_steps,
    varies,
)
from jaxdiff.app.config.fields import (
    Autoencoder,
    Cascade,
    Data,
    Diffusion,
    Evaluation,
    Experiment,
    Mesh,
    Model,
    Optimizer,
    SamplerName,
    Sampling,
    Sources,
    Spacing,
    Vae,
)
from jaxdiff.app.config.ladder import Ladder
from jaxdiff.app.config.validation import FAMILIES, a_run_of, differences, from_dict, load, load_ladder, to_dict, validated

__all__ = [
    "COST",
    "DENOISERS",
    "FAMILIES",
    "STUDENTS",
    "Distillation",
    "halvings",
    "network_calls",
    "on_list",
    "round_steps",
    "rounds",
    "sampling_steps",
    "varies",
    "Autoencoder",
    "Cascade",
    "Data",
    "Diffusion",
    "Evaluation",
    "Ladder",
    "load_ladder",
    "Experiment",
    "Mesh",
    "Model",
    "Optimizer",
    "SamplerName",
    "Sampling",
    "Sources",
    "Spacing",
    "Vae",
    "differences",
    "from_dict",
    "load",
    "a_run_of",
    "to_dict",
    "validated",
]
