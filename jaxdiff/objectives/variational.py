"""The variational bound with a learned noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Parameterization
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.denoising import conditional
from jaxdiff.objectives.draws import draw
from jaxdiff.objectives.types import ConditionalNetwork, Objective, Params
from jaxdiff.process import from_logsnr

Logsnr = Callable[[Params, Array], Array]  # (params, times) -> logsnr at the times, decreasing between fixed ends


def variational_diffusion(
    network: ConditionalNetwork,
    logsnr: Logsnr,
    parameterization: Parameterization,
    *,
    condition: Condition,
) -> Objective:
    """The bound of continuous time, `mean(l)` with `l = -logsnr'(t) / 2 * snr * mean((x0_hat - x0)^2)`, in nats per dimension.

    Kingma et al. (2021), section 5. The params are `{"network": ..., "schedule": ...}`. The network minimizes the bound, the
    schedule `mean(l^2)`, that is the variance of l, as the mean of l does not depend on the schedule between fixed ends (section
    5.3 and appendix I.2); one forward and one backward pass compute both gradients. l is squared in units of its value for linear
    logsnr and an error of 1 in noise: otherwise the schedule's gradient, ten times the network's, would dominate clipping. The
    bound's other two terms are left out: the prior term is constant, and the reconstruction term at logsnr_max hardly depends on
    the network.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn, x0 = draw(batch, key, condition), batch["image"]

        def bound(weights: Params, logsnr: Array, slope: Array) -> Array:
            level = from_logsnr(logsnr).expand(x0.ndim)
            student = conditional(network, parameterization, weights, drawn.given, drawn.dropout_key)
            return -slope / 2 * losses.regression_loss(student, targets.data(x0), x0, level, drawn.noise_keys, losses.noise_weight)

        t = drawn.times()
        levels = jax.jvp(lambda t: logsnr(params["schedule"], t), (t,), (jnp.ones_like(t),))
        first, last = logsnr(params["schedule"], jnp.array([0.0, 1.0], t.dtype))
        return jnp.mean(_squared_for_levels(bound)((first - last) / 2, params["network"], *levels))

    return objective


def _squared_for_levels(bound: Callable[[Params, Array, Array], Array]) -> Callable[[Array, Params, Array, Array], Array]:
    """The bound `[B]` with the gradient of `(value / unit)^2` in its last two arguments, which are `[B]` as well."""

    @jax.custom_vjp
    def same(unit: Array, weights: Params, logsnr: Array, slope: Array) -> Array:
        return bound(weights, logsnr, slope)

    def forward(unit: Array, *arguments: Any) -> tuple[Array, Any]:
        value, pull = jax.vjp(bound, *arguments)
        return value, (2 * value / unit**2, pull)

    def backward(saved: Any, cotangent: Array) -> tuple[None, Params, Array, Array]:
        outer, pull = saved
        weights, logsnr, slope = pull(cotangent)
        return None, weights, outer * logsnr, outer * slope

    same.defvjp(forward, backward)
    return same
