"""What the TPU compiler says of a config's real step on chips that are only described: memory, work, collectives, a bound."""

from jaxdiff.app.plan.answer import answer, cache_dir
from jaxdiff.app.plan.chips import CHIPS, Chip, Topology, topology
from jaxdiff.app.plan.plans import Job, Plan, planned
from jaxdiff.app.plan.search import conclusion, largest_batch, recommendation, sweep, variants, with_batch
from jaxdiff.app.plan.summary import table, text, values

__all__ = [
    "CHIPS",
    "Chip",
    "Job",
    "Plan",
    "Topology",
    "answer",
    "conclusion",
    "cache_dir",
    "largest_batch",
    "planned",
    "recommendation",
    "sweep",
    "table",
    "text",
    "topology",
    "values",
    "variants",
    "with_batch",
]
