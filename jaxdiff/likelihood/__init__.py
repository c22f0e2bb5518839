"""Maximum likelihood: log-densities and their bounds, with error bars, in nats and bits per dimension."""

from jaxdiff.likelihood.densities import bernoulli, discretized_gaussian, discretized_logistic, gaussian
from jaxdiff.likelihood.estimate import Estimate, bits_per_dim, in_bits_per_dim, mean

__all__ = [
    "Estimate",
    "bernoulli",
    "bits_per_dim",
    "discretized_gaussian",
    "discretized_logistic",
    "gaussian",
    "in_bits_per_dim",
    "mean",
]
