"""What the TPU compiler says of a config's real step on chips that are only described: memory, work, collectives, a bound."""

from jaxdiff.app.plan.chips import CHIPS, topology
from jaxdiff.app.plan.plans import GIB, Job, Plan, cache_dir, planned
from jaxdiff.app.plan.search import conclusion, largest_batch, recommendation, sweep, variants, with_batch
