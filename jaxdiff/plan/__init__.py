"""What the TPU compiler says of a config's real step on chips that are only described: memory, work, collectives, a bound."""

from jaxdiff.plan.chips import CHIPS, Chip, Topology, topology
from jaxdiff.plan.command import answer, kept
from jaxdiff.plan.plans import Job, Plan, planned
from jaxdiff.plan.report import table, text, values
from jaxdiff.plan.search import conclusion, largest_batch, recommendation, sweep, variants, with_batch

__all__ = [
    "CHIPS",
    "Chip",
    "Job",
    "Plan",
    "Topology",
    "answer",
    "conclusion",
    "kept",
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
