"""Maximum likelihood: log-densities and their bounds, with error bars, in nats and bits per dimension."""

from jaxdiff.likelihood.bounds import continuous_bound, discrete_bound, step_terms
from jaxdiff.likelihood.checks import check_data
from jaxdiff.likelihood.densities import bernoulli, discretized_gaussian, discretized_logistic, gaussian
from jaxdiff.likelihood.dequantization import Dequantization, dequantized_bound, diffused, uniform, variational
from jaxdiff.likelihood.estimate import Estimate, bits_per_dim, in_bits_per_dim, mean
from jaxdiff.likelihood.flow import Divergence, adaptive_flow_log_density, exact, flow_log_density, hutchinson, noise_prior
from jaxdiff.likelihood.vae import (
    Pixels,
    Posterior,
    binary_pixels,
    channel_kl,
    elbo,
    gaussian_pixels,
    importance_bound,
    kl,
    logistic_pixels,
    reparameterized,
)

__all__ = [
    "Dequantization",
    "Divergence",
    "Estimate",
    "Pixels",
    "Posterior",
    "adaptive_flow_log_density",
    "bernoulli",
    "binary_pixels",
    "bits_per_dim",
    "channel_kl",
    "check_data",
    "continuous_bound",
    "dequantized_bound",
    "diffused",
    "discrete_bound",
    "discretized_gaussian",
    "discretized_logistic",
    "elbo",
    "exact",
    "flow_log_density",
    "gaussian",
    "gaussian_pixels",
    "hutchinson",
    "importance_bound",
    "in_bits_per_dim",
    "kl",
    "logistic_pixels",
    "mean",
    "noise_prior",
    "reparameterized",
    "step_terms",
    "uniform",
    "variational",
]
