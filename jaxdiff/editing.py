"""Image editing with existing samplers and denoisers, without training.

`sdedit` and `invert` start from an image; `inpaint` and `resampled` transform samplers, `posterior_guide` and
`reconstruction_guide` denoisers. RePaint is `resampled(inpaint(ddpm(), known, mask), 10)`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import at_least_float32, check_count
from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser, ReverseKernel
from jaxdiff.process import Level, diffuse, forward_std
from jaxdiff.samplers import Sampler, sample
from jaxdiff.samplers.loop import map_step

Operator = Callable[[Array], Array]  # what is observed of clean images: [B, ...] -> [B, ...]


@compiled_once
def sdedit(sampler: Sampler, denoise: Denoiser | ReverseKernel, x0: Array, levels: Level, key: Array) -> Array:
    """The image noised to `levels[0]` and sampled back along `levels`, such as `grid(schedule, 50)[20:]`.

    Meng et al. (2022), algorithm 1: the noisier the first level, the less of x0 remains.
    """
    noise_key, sampler_key = jax.random.split(key)
    x = diffuse(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), levels[0])
    return sample(sampler, denoise, x, levels, sampler_key)


@compiled_once
def invert(sampler: Sampler, denoise: Denoiser, x0: Array, levels: Level, key: Array, iterations: int = 4) -> Array:
    """The x at `levels[0]` from which the same sampler and levels return to x0: its steps, inverted from clean to noise.

    Each step integrates the ODE upwards (Song, Meng & Ermon 2021, section 5.4), then is corrected by `iterations` of the fixed
    point `x + alpha_t / alpha_s (x_s - step(x))`, so that the step from x ends at x_s. That returns to x0 even near the boundary
    of two modes, where the ODE amplifies errors. For samplers without randomness and memory: `ddim()`, `heun()`. With 0
    iterations it is plain DDIM inversion.
    """
    dtype = x0.dtype
    x0, levels = at_least_float32((x0, levels))

    def down(x, t, s):
        return sampler.step(denoise, x, sampler.init(x), t, s, key)[0]

    def corrected(guess, x_s, t, s):
        return jax.lax.fori_loop(0, iterations, lambda _, x: x + t.alpha / s.alpha * (x_s - down(x, t, s)), guess)

    def up(x_s, index):
        t, s = levels[index], levels[index + 1]
        return corrected(down(x_s, s, t), x_s, t, s), None

    x = corrected(levels[-2].alpha * x0, x0, levels[-2], levels[-1])
    return jax.lax.scan(up, x, jnp.arange(levels.sigma.size - 3, -1, -1))[0].astype(dtype)


def inpaint(sampler: Sampler, known: Array, mask: Array) -> Sampler:
    """The sampler with x replaced, where `mask` is true, by the known image at each step's level.

    Song et al. (2021), appendix I.2. Alone it leaves seams, as `known` is noised again in each step and the rest cannot
    adapt to it; see `resampled`. `known` and `mask` broadcast against x.
    """

    def filled(step):
        def step_and_fill(denoise, x, memory, t, s, key):
            sampler_key, noise_key = jax.random.split(key)
            x, memory = step(denoise, x, memory, t, s, sampler_key)
            noised = diffuse(jnp.asarray(known, x.dtype), jax.random.normal(noise_key, x.shape, x.dtype), s)
            return jnp.where(mask, noised, x), memory

        return step_and_fill

    return map_step(filled, sampler)


def resampled(sampler: Sampler, times: int) -> Sampler:
    """The sampler with each step repeated `times` times, noised back from s to t in between (time travel).

    Lugmayr et al. (2022), algorithm 1 (RePaint), with a jump of one step. The bias falls with `times`, as
    long as the noise can still move x between modes of the data. For samplers without memory.

    Raises:
        ValueError: `times` is not a whole number of at least 1.
    """
    check_count("resampled", times=times)

    def repeated(step):
        def step_repeatedly(denoise, x, memory, t, s, key):
            def there_and_back(number, x):
                step_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
                x_s, _ = step(denoise, x, memory, t, s, step_key)
                return t.alpha / s.alpha * x_s + forward_std(t, s) * jax.random.normal(noise_key, x.shape, x.dtype)

            x = jax.lax.fori_loop(0, times - 1, there_and_back, x)
            return step(denoise, x, memory, t, s, jax.random.fold_in(key, times - 1))

        return step_repeatedly

    return map_step(repeated, sampler)


def posterior_guide(denoise: Denoiser, operator: Operator, observed: Array, std: float, iterations: int = 4) -> Denoiser:
    """`D + C A' (A C A' + std^2)^-1 (observed - A D)`: the denoiser given `observed = A x0 + std * noise`, A linear.

    `C = sigma^2 / alpha * dD/dx` is the covariance of x0 given x (Tweedie), so it is exact for Gaussian data and approximates
    p(x0 | x) by a Gaussian elsewhere (Rozet et al. 2024, algorithm 3; Boys et al. 2023, eq. 13). The inverse is
    `iterations` steps of conjugate gradients, one vector-Jacobian product each; exact with as many as there are
    observations. Modes that only the observation distinguishes get wrong weights. Fails where alpha = 0.
    """

    def guided(x: Array, level: Level) -> Array:
        x0, pull = jax.vjp(lambda x: denoise(x, level), x)
        adjoint = jax.linear_transpose(operator, x0)

        def covariance(v):  # C A' v
            return level.sigma**2 / level.alpha * pull(adjoint(v)[0])[0]

        error = observed - operator(x0)
        return x0 + covariance(_conjugate_gradients(lambda v: operator(covariance(v)) + std**2 * v, error, iterations))

    return guided


def reconstruction_guide(
    denoise: Denoiser, operator: Operator, observed: Array, std: float, scale: float | Array = 1.0, data_std: float = 1.0
) -> Denoiser:
    """`D + scale * sigma^2 / alpha * grad log N(observed; operator(D), std^2 + r^2)`, for any differentiable operator.

    Chung et al. (2023), eq. 16 (DPS), with the variance `r^2 = 1 / (1 / data_std^2 + alpha^2 / sigma^2)` of x0 given x of Song
    et al. (2023), eq. 7 (pseudo-inverse guidance), instead of a step size to tune. One vector-Jacobian product. A rough
    approximation; prefer `posterior_guide` for linear operators. Fails where alpha = 0.
    """

    def guided(x: Array, level: Level) -> Array:
        variance = std**2 + 1 / (1 / data_std**2 + level.alpha**2 / level.sigma**2)

        def misfit(x):
            x0 = denoise(x, level)
            return jnp.sum((observed - operator(x0)) ** 2) / 2, x0

        gradient, x0 = jax.grad(misfit, has_aux=True)(x)
        return x0 - scale * level.sigma**2 / (level.alpha * variance) * gradient

    return guided


def _conjugate_gradients(matrix: Operator, b: Array, iterations: int) -> Array:
    """`matrix^-1 b`, solved for each example by itself, independent of the rest of the batch."""

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)

    enough = dot(b, b) * jnp.finfo(b.dtype).eps ** 2

    def improved(_, state):
        solution, residual, direction = state
        image, size = matrix(direction), dot(residual, residual)
        active = size > enough  # a solved example is kept, and its gradient stays finite

        def ratio(a: Array, b: Array) -> Array:
            return jnp.where(active, a / jnp.where(active, b, 1), 0)

        step = ratio(size, dot(direction, image))
        residual_after = residual - step * image
        return (
            solution + step * direction,
            residual_after,
            residual_after + ratio(dot(residual_after, residual_after), size) * direction,
        )

    return compiled_once(jax.lax.fori_loop)(0, iterations, improved, (jnp.zeros_like(b), b, b))[0]
