"""What a run is: typed frozen dataclasses, written as plain Python in `configs/`, one recipe a file.

Strings that choose code live here and on the command line alone; `build` turns them into functions.
"""

from jaxdiff.app.config.costs import calls_per_example, training_calls
from jaxdiff.app.config.distillation import Distillation, Ladder, guidance_is_input, network_calls, uses_discrete_levels
from jaxdiff.app.config.dit import Dit
from jaxdiff.app.config.field_types import DENOISERS, FAMILIES, KERNELS, STUDENTS, SamplerName, Spacing
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
    Sampling,
    Sources,
    Vae,
)
from jaxdiff.app.config.flow import Flow
from jaxdiff.app.config.matching import Matching
from jaxdiff.app.config.published import Betas, Published
from jaxdiff.app.config.rules import with_article
from jaxdiff.app.config.text import Text
from jaxdiff.app.config.validation import (
    differences,
    flatten,
    from_dict,
    is_resumable,
    load,
    load_ladder,
    of_run,
    read,
    to_dict,
    validated,
)
