"""`verify`: tests of any sampler on distributions with exact denoisers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
from jax import Array

from jaxdiff import samplers
from jaxdiff.compilation import traced_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.oracles import mixtures, properties
from jaxdiff.oracles.comparison import Check, compare, compare_moments
from jaxdiff.oracles.mixtures import Mixture
from jaxdiff.oracles.properties import Function
from jaxdiff.samplers import Sampler


@dataclass(frozen=True)
class Report:
    """The table that `verify` prints."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every line passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        rows = [("", "measured", "allowed", ""), *((*check[:3], "" if check.passed else "FAILS") for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
        )


def verify(
    sampler: Sampler | Function,
    order: float | None = None,
    *,
    denoiser: Callable[[Mixture], Denoiser] = mixtures.denoiser,
    num: int = 20_000,
    seed: int = 0,
) -> Report:
    """The table of a sampler's errors on data in two dimensions whose denoiser, distribution and flow are known exactly.

    The sampler is a `Sampler`, or a function `(denoise, x, levels [N + 1], key) -> x0`. `order` is the claimed order
    of convergence; by default the number of its calls of the denoiser in a step. Samplers for consistency functions are tested
    with `denoiser=oracles.flow_map`. `num` samples determine the Monte Carlo errors. Loop over the levels with `jax.lax.scan`:
    a loop in Python takes minutes to compile.

    - Order: slope of the error in the number of steps. Without randomness, the error to the exact flow of one Gaussian,
      in float64, over alternating long and short steps; with it, the error of mean and covariance.
    - Few steps, of a solver without randomness whose order is above 1: its median error to the exact flow of a mixture on the
      schedules' own levels is at most 1.5 times DDIM's at 5 steps, and no more than DDIM's at 10 and 20.
    - Mean, covariance and sliced Wasserstein distance (64 directions) to a mixture, at 256 steps, on variance-preserving,
      variance-exploding and straight levels. Allowed are four Monte Carlo standard errors plus 2% of the data's standard
      deviation.
    - The rest: the last step returns the denoiser's x0; results are finite on common lists of levels, of x's dtype, and the same
      for the same key; one compilation.

    Raises:
        ValueError: x0 is not an array of x's shape, or an order is claimed for a sampler that uses its key.

    >>> import jaxdiff as jd
    >>> jd.oracles.verify(jd.ddim(), num=500).passed
    True
    """
    function = _function(sampler)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        lines = tuple(_checks(function, order, denoiser, num, jax.random.key(seed)))
    return Report(lines)


def _checks(function: Function, order: float | None, denoiser: Callable, num: int, key: Array) -> Iterator[Check]:
    flowing = denoiser is not mixtures.denoiser
    data = properties.gaussian() if flowing else properties.clouds()
    x = jax.random.normal(key, (8, 2))
    sampled = traced_once(functools.partial(function, denoiser(data)))
    uses_key, *lines = properties.key_and_compilations(function, denoiser(data), sampled, x)
    yield lines[0]
    if order is not None and uses_key:
        raise ValueError("an order can be claimed only for a sampler that does not use its key")
    yield lines[1]
    yield properties.last_step(function, x)
    yield properties.not_finite(sampled, x)
    yield properties.dtypes(function, denoiser)
    if uses_key or flowing:
        yield properties.convergence_in_law(function, denoiser, 4 * num, key)
    else:
        yield from properties.orders(function, order)
    yield from compare(properties.ends(sampled, data, properties.easy_levels(), num, key), data, jax.random.fold_in(key, 1))
    for name, levels in properties.families().items():
        for line in compare_moments(properties.ends(sampled, data, levels, num, key), data):
            yield line._replace(name=f"{line.name}, {name}")


def _function(sampler: Sampler | Function) -> Function:
    if not isinstance(sampler, Sampler):
        return sampler
    return lambda denoise, x, levels, key: samplers.sample(sampler, denoise, x, levels, key)
