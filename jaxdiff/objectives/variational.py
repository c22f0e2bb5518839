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

Logsnr = Callable[[Params, Array], Array]  # (params, times) -> logsnr of the times' shape, decreasing between fixed ends


def variational_diffusion(
    network: ConditionalNetwork,
    logsnr: Logsnr,
    parameterization: Parameterization,
    *,
    condition: Condition,
) -> Objective:
    """The bound of continuous time, `mean(l)` with `l = -logsnr'(t) / 2 * snr * mean((x0_hat - x0)^2)`, in nats per dimension.

    Kingma et al. (2021), section 5. The params are `{"network": ..., "schedule": ...}`. The network descends the bound, the
    schedule `mean(l^2)`, which is the variance of l since no schedule between the same ends moves its mean (section 5.3 and
    appendix I.2): one forward and one backward pass serve both. Here l is squared in units of its value for linear logsnr
    and an error of 1 in noise, so that its gradient, else ten times the network's, leaves clipping to the network. Left
    out are the bound's other two terms: the prior's is constant, and the reconstruction's, at logsnr_max, hears of the
    network only where a decoder does.
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
    """The same `[B]`, but its gradient in the last two arguments, `[B]` like it, is that of `(value / unit)^2`."""

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
