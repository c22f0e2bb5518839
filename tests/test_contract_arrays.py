"""The table of arrays: every function of the core against every kind of array and key that it is given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DETERMINISTIC, GUIDANCES, JUMPS, METHODS, PARAMETERIZATIONS, SAMPLERS, SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import editing, likelihood, losses, objectives, oracles, process, targets, training

HALF = ("bfloat16", "float16")
LABEL = (1.0, 0.2, 0.0)


def exact(x, level):
    """The mixture's denoiser, in float64 where arrays are."""
    return oracles.denoiser(clouds())(x, level)


class Given(NamedTuple):
    """What the functions are given: x, x0 and noise `[B, 2]`, levels `[N + 1]`, of which t and s are two, and a key."""

    x: jax.Array
    x0: jax.Array
    noise: jax.Array
    levels: jd.Level
    key: jax.Array

    @property
    def t(self):
        return self.levels[1]

    @property
    def s(self):
        return self.levels[2]


def given(num=3):
    """Arrays of numpy, float32."""
    x0, noise = np.random.default_rng(0).normal(size=(2, num, 2)).astype(np.float32)
    levels = jax.tree.map(np.asarray, jd.grid(jd.cosine(-8.0, 8.0), 4))
    return Given(levels.alpha[1] * x0 + levels.sigma[1] * noise, x0, noise, levels, jax.random.key(0))


def drawn(sampler, g, x=None):
    return jd.sample(sampler, exact, g.levels.sigma[0] * g.noise if x is None else x, g.levels, g.key)


def network(parameterization):
    return jd.denoiser(lambda x, logsnr: jnp.tanh(x), parameterization)


def guided(name):
    label = oracles.denoiser(oracles.conditional(clouds(), LABEL))
    return GUIDANCES[name](label, exact, oracles.class_log_prob(clouds(), LABEL), 1.5)


def first(x):
    """An operator: the first value of each example, linear."""
    return x[..., :1]


def method_loss(name, g):
    """The loss of a training method, of a network with one parameter, its own average and if so its teacher."""

    def student(params, given, key):
        return jd.denoiser(lambda x, logsnr: jnp.tanh(params.astype(x.dtype) * x), jd.predict_v)

    def jumper(params, given, key):
        return jd.average_denoiser(lambda x, t, s: jnp.tanh(params.astype(x.dtype) * x + 0.1 * s[:, None]), jd.predict_v)

    def teacher(frozen, given):
        return student(frozen["encoder"], given, None)

    one = jnp.asarray(0.9, g.x0.dtype)
    state = training.TrainState(jnp.int32(3), one, {"ema": one}, (), {"encoder": one})
    batch = {"image": g.x0, "index": jnp.arange(len(g.x0))}
    kind = METHODS[name]
    objective = kind.objective(jumper if name in JUMPS else student, teacher if kind.teacher else None, jd.cosine(-8.0, 8.0))
    loss = objective(one, state, batch, g.key)
    return jnp.broadcast_to(loss, g.x0.shape[:1])


def wave(g):
    """An average denoiser that is no flow's."""

    def network(x, t, s):
        return jnp.sin(x + 0.1 * (t + s).reshape(-1, *(1 for _ in x.shape[1:])))

    return jd.average_denoiser(network, jd.predict_v)


def images(g):
    """x0 and noise as two rows of an image, `[B, 2, 2, 1]`."""
    return jnp.stack([g.x0, g.noise], axis=1)[..., None]


def enlarged(g):
    """The images of a cascade's second stage, of twice their size."""
    stage = jd.cascade.Stage(
        lambda given: lambda x, level: (x + given["spatial"]) / 2, jd.ddim(), g.levels, (4, 4, 1), 2, g.levels[3]
    )
    return jd.cascade.enlarged(stage, images(g), g.key)


def regressed(g, weight=losses.v_weight, distance=losses.squared_error):
    return jd.regression_loss(network(jd.predict_v), targets.data(g.x0), g.x0, g.t, g.key, weight, distance)


KEPT = {  # functions whose result has x's shape and dtype
    "diffuse": lambda g: jd.diffuse(g.x0, g.noise, g.t),
    "transfer": lambda g: jd.transfer(g.x, g.x0, g.t, g.s),
    "implied_x0": lambda g: jd.implied_x0(g.x, g.x0, g.t, g.s),
    "posterior_std": lambda g: process.posterior_std(g.t, g.s) * g.x,
    "forward_std": lambda g: process.forward_std(g.t, g.s) * g.x,
    "from_logsnr": lambda g: jd.from_logsnr(g.t.logsnr).alpha * g.x,
    **{f"denoiser {name}": lambda g, p=p: network(p)(g.x, g.t) for name, (p, *_) in PARAMETERIZATIONS.items()},
    "bounded": lambda g: network(jd.bounded(jd.predict_x0))(g.x, g.t),
    "clip": lambda g: jd.clip(network(jd.predict_x0), -0.5, 0.5)(g.x, g.t),
    "noise_like": lambda g: losses.noise_like(g.key, g.x),
    "data": lambda g: targets.data(g.x0)(g.x, g.t),
    "euler": lambda g: targets.euler(network(jd.predict_v), g.x, g.t, g.s),
    "two_steps": lambda g: targets.two_steps(network(jd.predict_v), g.s, g.levels[3])(g.x, g.t),
    "two_jumps": lambda g: targets.two_jumps(wave(g), wave(g), g.s, g.levels[3])(g.x, g.t),
    "mean_flow": lambda g: targets.mean_flow(wave(g), targets.data(g.x0), g.s)(g.x, g.t),
    "average_denoiser": lambda g: wave(g)(g.x, g.t, g.s),
    "ahead": lambda g: targets.ahead(network(jd.predict_v), targets.data(g.x0), g.s)(g.x, g.t),
    **{name: lambda g, sampler=sampler: drawn(sampler, g) for name, sampler in SAMPLERS.items()},
    "overshoot": lambda g: drawn(jd.overshoot(g.levels), g),
    "trajectory": lambda g: jd.trajectory(jd.heun(), exact, g.levels.sigma[0] * g.noise, g.levels, g.key)[-1],
    "sdedit": lambda g: editing.sdedit(jd.ddim(), exact, g.x0, g.levels[2:], g.key),
    "invert": lambda g: editing.invert(jd.ddim(), exact, g.x0, g.levels, g.key),
    "inpaint": lambda g: drawn(editing.inpaint(jd.ddim(), g.x0, g.x0 > 0), g),
    "resampled": lambda g: drawn(editing.resampled(jd.ddim(), 2), g),
}
OTHER = {  # functions of x whose result has another shape or, as the mixtures are in float32, at least its dtype
    **{f"guidance {name}": lambda g, name=name: guided(name)(g.x, g.t) for name in GUIDANCES},
    "posterior_guide": lambda g: editing.posterior_guide(exact, first, first(g.x0), 0.5, 1)(g.x, g.t),
    "reconstruction_guide": lambda g: editing.reconstruction_guide(exact, first, first(g.x0), 0.5)(g.x, g.t),
    "oracle": lambda g: exact(g.x, g.t),
    "score": lambda g: oracles.score(clouds())(g.x, g.t),
    "log_density": lambda g: oracles.log_density(clouds(), g.x, g.t),
    "class_log_prob": lambda g: oracles.class_log_prob(clouds(), LABEL)(g.x, g.t),
    "guided": lambda g: oracles.guided(clouds(), LABEL, 2.0)(g.x, g.t),
    "flow_map": lambda g: oracles.flow_map(oracles.gaussian([0.3, -0.2], [0.5, 0.8]))(g.x, g.t, g.s),
    "regression_loss": regressed,
    "pseudo_huber": lambda g: regressed(g, distance=losses.pseudo_huber(0.1)),
    **{f"weight {name}": lambda g, weight=weight: regressed(g, weight) for name, (_, weight, _) in PARAMETERIZATIONS.items()},
    "truncated_snr": lambda g: regressed(g, losses.truncated_snr),
    "min_snr": lambda g: regressed(g, losses.min_snr()),
    "gaussian": lambda g: likelihood.gaussian(g.x0, g.x, g.t.sigma),
    "discretized_gaussian": lambda g: likelihood.discretized_gaussian(g.x0, g.x, g.t.sigma),
    "discretized_logistic": lambda g: likelihood.discretized_logistic(g.x0, g.x, g.t.sigma),
    "bernoulli": lambda g: likelihood.bernoulli(jnp.sign(g.x0), g.x),
    "squared_error": lambda g: likelihood.bounds.squared_error(exact, g.x0, g.t, g.key),
    "discrete_bound": lambda g: likelihood.discrete_bound(exact, g.x0, g.levels[:-1], g.key, likelihood.gaussian).value,
    "continuous_bound": lambda g: (
        likelihood.continuous_bound(exact, g.x0, jd.cosine(-8.0, 8.0), g.key, likelihood.gaussian, num_times=4).value
    ),
    "flow_log_density": lambda g: (
        likelihood.flow_log_density(exact, g.x0, g.levels[:-1], g.key, jd.ddim(), likelihood.exact()).value
    ),
    "channel_kl": lambda g: likelihood.channel_kl(likelihood.Posterior(g.x0, jnp.abs(g.x) + g.t.sigma)),
    "kl": lambda g: likelihood.kl(likelihood.Posterior(g.x0, jnp.abs(g.x) + g.t.sigma)),
    "elbo": lambda g: (
        likelihood.elbo(
            lambda x0: (x0, jnp.ones_like(x0)), lambda z, x0: likelihood.gaussian(x0, z, jnp.ones_like(x0)), g.x0, g.key
        ).value
    ),
    "downsampled": lambda g: objectives.downsampled(images(g), 2),
    "upsampled": lambda g: objectives.upsampled(images(g), 2),
    "enlarged": enlarged,
    **{f"objective {name}": lambda g, name=name: method_loss(name, g) for name in METHODS},
}
ALL = {**KEPT, **OTHER}
OF_BATCHES = {name for name in OTHER if name not in ("oracle", "score", "log_density", "class_log_prob", "guided", "flow_map")}
RANDOM = {*SAMPLERS} - DETERMINISTIC | {"overshoot", "noise_like", "sdedit", "inpaint", "resampled"}
RANDOM |= {name for name in OTHER if name.startswith(("weight", "regression", "pseudo", "truncated", "min_snr", "objective"))}
RANDOM |= {"enlarged", "squared_error", "discrete_bound", "continuous_bound", "elbo"}
COMPUTED = [name for name in ALL if name not in RANDOM]
each = pytest.mark.parametrize("name", ALL)


def cast(g, dtype):
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), g._replace(key=()))
    return leaves._replace(key=g.key)


@jax.jit
def computed(g):
    """What the deterministic functions return."""
    return {name: ALL[name](g) for name in COMPUTED}


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_within_two_percent_of_float32(dtype):
    """Of inputs that are rounded before."""
    rounded = cast(given(), jnp.dtype(dtype))
    with jax.numpy_dtype_promotion("standard"):  # the mixtures are in float32
        half, whole = jax.device_get((computed(rounded), computed(cast(rounded, jnp.float32))))
    errors = {name: np.max(np.abs(half[name].astype(np.float32) - whole[name])) / np.max(np.abs(whole[name])) for name in half}
    assert {name: float(error) for name, error in errors.items() if not error < 0.02} == {}
    assert {half[name].dtype for name in half if name in KEPT} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", [name for name in ALL if name not in COMPUTED])
def test_half_precision_is_taken_and_kept(name):
    with jax.numpy_dtype_promotion("standard"):
        result = jax.eval_shape(ALL[name], cast(given(), jnp.bfloat16))
    assert result.dtype == jnp.bfloat16 or (result.dtype == jnp.float32 and name in OTHER)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SAMPLERS])  # of which test_contract.py tests it
def test_float64_is_kept_and_gradients_can_be_taken(name, float64):
    """Gradients in x0 and noise, of what x is made; their values have tests beside the functions."""

    def total(x0, noise, g):
        return jnp.sum(ALL[name](g._replace(x0=x0, noise=noise, x=jd.diffuse(x0, noise, g.t))))

    g = cast(given(), jnp.float64)
    with jax.numpy_dtype_promotion("standard" if name.startswith("objective") else "strict"):  # these draw times in float32
        value, gradients = jax.eval_shape(jax.value_and_grad(total, argnums=(0, 1)), g.x0, g.noise, g)
    assert value.dtype == jnp.float64
    assert all(leaf.shape == g.x0.shape for leaf in gradients)


@each
def test_one_example_with_and_without_a_batch_axis(name):
    """The batch of one under vmap and with typed keys; x `[2]` with numpy's arrays, which stay numpy's, and a key of uint32."""
    g = given(1)
    stacked, keys = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), g._replace(key=())), jax.random.split(g.key, 2)
    mapped = jax.eval_shape(jax.vmap(lambda g, key: ALL[name](g._replace(key=key))), stacked, keys)
    assert mapped.shape[:2] == (2, 1)
    assert mapped.dtype == jnp.float32
    if name not in OF_BATCHES:
        alone = g._replace(x=g.x[0], x0=g.x0[0], noise=g.noise[0])
        without = jax.eval_shape(lambda key: ALL[name](alone._replace(key=key)), jax.random.PRNGKey(0))
        assert (without.shape, without.dtype) == (mapped.shape[2:], jnp.float32)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.split(jax.random.PRNGKey(0), 3)], ids=["one", "three"])
def test_noise_by_keys_of_uint32_is_that_of_typed_ones(key):
    typed = jax.random.wrap_key_data(key)
    np.testing.assert_array_equal(losses.noise_like(key, given().x), losses.noise_like(typed, given().x))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_keep_the_dtype_of_their_times(name):
    for dtype in ("float32", *HALF):
        level = jax.eval_shape(SCHEDULES[name], jax.ShapeDtypeStruct((5,), jnp.dtype(dtype)))
        assert level.alpha.dtype == level.sigma.dtype == jnp.dtype(dtype)


def test_a_key_of_each_kind_is_a_program_of_its_own():
    """Without jit, one after another: their programs have the same text."""
    g = given()
    ends = [jd.sample(jd.ddpm(), exact, g.x, g.levels, make(0)) for make in (jax.random.key, jax.random.PRNGKey)]
    np.testing.assert_array_equal(*ends)


def test_a_number_has_no_batch_axis():
    with pytest.raises(ValueError, match="denoiser: x must have a batch axis, got a number"):
        network(jd.predict_v)(jnp.ones(()), jd.cosine()(0.5))
