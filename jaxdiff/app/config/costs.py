"""What training costs in network calls, by which methods of training compare."""

from typing import Any

from jaxdiff.app.config.field_types import STUDENTS, TWO_CALLS


def training_calls(c: Any, teacher: Any = None) -> float:
    """Network calls in the training of a config, its teacher's among them (its config is `teacher`): steps, examples, calls.

    Calls of any network forwards, of which those of the one that is trained are differentiated as well; a derivative along the flow
    is two calls. An autoencoder, text encoders, a critic's half networks and what the teacher cost are not among them.
    """
    return c.steps * c.data.batch_size * calls_per_example(c, teacher)


def calls_per_example(c: Any, teacher: Any = None) -> float:
    """Network calls in training for one example."""
    d, asked = c.distillation, 0
    if c.objective in STUDENTS and d.target == "teacher":
        guided = teacher is not None and teacher.objective not in STUDENTS and d.guidance != (1.0, 1.0)
        asked = 2 if guided else 1
    own = {"progressive": 1 + 2 * asked, "consistency": _consistency_calls(d, asked), "flow_map": _flow_calls(c, asked)}
    own["distribution_matching"] = d.steps + 1 + (asked + 1) / c.matching.generator_every
    return own.get(c.objective, 1 + asked)


def _consistency_calls(d: Any, asked: int) -> int:
    if d.curriculum == "continuous":
        return 1 + 2 + asked
    return 1 + 1 + asked * (2 if d.solver in TWO_CALLS else 1)


def _flow_calls(c: Any, asked: int) -> int:
    guided = c.distillation.target == "data" and c.distillation.guidance != (1.0, 1.0)
    asked += (1 + (c.flow.mix > 0)) * guided
    return asked + {"mean_flow": 3, "improved_mean_flow": 4, "alpha_flow": 2, "shortcut": 3}[c.flow.method]
