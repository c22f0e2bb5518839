"""Distribution matching: its gradient is that of a KL divergence, its players do not touch each other, and it covers a mixture."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import clouds

import jaxdiff as jd
from jaxdiff import losses, objectives, oracles, targets, training
from jaxdiff.app import build, config
from jaxdiff.models import discriminator, unet

REAL = {
    "gaussian": lambda: oracles.gaussian(jnp.array([0.3]), jnp.array(0.6)),
    "mixture": lambda: oracles.mixture([0.3, 0.7], [[-1.0], [0.6]], [0.2, 0.4]),
}
OWN = (-0.2, 0.9)  # mean and std of a generator's samples, far from both


def snr(t):
    return lambda sample, x0: losses.noise_weight(t)


def nothing(batch, key):
    return None


def matching_gradient(real, t, weight, fake=None):
    """The gradient of half the squared error to the target, over z and noise, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, noise = (jnp.asarray(axis.reshape(-1, 1)) for axis in np.meshgrid(nodes, nodes))
    share = jnp.asarray(np.outer(weights, weights).reshape(-1, 1) / (2 * np.pi))
    fake = oracles.denoiser(oracles.gaussian(jnp.array([OWN[0]]), jnp.array(OWN[1]))) if fake is None else fake

    def loss(p):
        sample = p[0] + p[1] * z
        x = jax.lax.stop_gradient(jd.diffuse(sample, noise, t))
        target = targets.matching(jax.lax.stop_gradient(sample), oracles.denoiser(real), fake, weight)(x, t)
        return jnp.sum(share * (sample - jax.lax.stop_gradient(target)) ** 2) / 2

    return jax.grad(loss)(jnp.array(OWN))


def divergence_gradient(real, t):
    """That of KL(noised samples, noised data) in the mean and the std of the samples, by quadrature over x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    x, share = jnp.asarray(nodes.reshape(-1, 1)), jnp.asarray(weights / np.sqrt(2 * np.pi))

    def divergence(p):
        std = jnp.hypot(t.alpha * p[1], t.sigma)
        log_density = oracles.log_density(real, t.alpha * p[0] + std * x, t)
        return -jnp.sum(share * log_density) - jnp.log(std)

    return jax.grad(divergence)(jnp.array(OWN))


@pytest.mark.parametrize("time", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("data", REAL)
def test_the_expected_gradient_is_that_of_the_kl_divergence(data, time, float64):
    """With the samples' own exact denoiser for the fake one, and the weight snr."""
    t = jd.cosine()(jnp.float64(time))
    found, expected = matching_gradient(REAL[data](), t, snr(t)), divergence_gradient(REAL[data](), t)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert np.min(np.abs(expected)) > 1e-3


def wide_gradient(exact, fake, key, num=20000, width=16):
    """Of mean and std of a generator of vectors with the weight of the paper, at a level in the middle."""
    z_key, noise_key = jax.random.split(key)
    z, noise = (jax.random.normal(key, (num, width)) for key in (z_key, noise_key))
    t = jd.cosine()(0.5)

    def loss(p):
        sample = p[0] + p[1] * z
        target = targets.matching(jax.lax.stop_gradient(sample), exact, fake)
        x = jd.diffuse(jax.lax.stop_gradient(sample), noise, t)
        return jnp.mean((sample - jax.lax.stop_gradient(target(x, t))) ** 2) / 2

    return jax.grad(loss)(jnp.array(OWN))


def wide(mean, std, width=16):
    return oracles.denoiser(oracles.gaussian(jnp.full((width,), mean), jnp.array(std)))


def test_nothing_moves_where_fake_equals_real():
    """Exactly, and only there; else the gradient leads mean and std to the data's, and past them where the fake one is."""
    assert not np.any(wide_gradient(wide(0.3, 0.6), wide(0.3, 0.6), jax.random.key(0)))
    mean, std = wide_gradient(wide(0.3, 0.6), wide(*OWN), jax.random.key(0))
    assert mean < -0.1
    assert std > 0.1
    mean, std = wide_gradient(wide(-0.7, 1.2), wide(*OWN), jax.random.key(0))
    assert mean > 0.1
    assert std < -0.1


def test_the_weight_is_one_over_the_error_by_hand():
    """A sample 0.5 and 1.5 from the real x0, 1 in the mean, and a fake one 0.25 from it."""
    sample, x0 = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 0.5]])
    target = targets.matching(sample, targets.data(x0), targets.data(x0 + 0.25), targets.unit_error)
    np.testing.assert_allclose(target(sample, jd.cosine()(0.5)), sample - 0.25)
    far = targets.matching(3 * sample, targets.data(3 * x0), targets.data(3 * x0 + 0.25), targets.unit_error)
    np.testing.assert_allclose(far(sample, jd.cosine()(0.5)), 3 * sample - 0.25 / 3, rtol=1e-6)


# Training on a mixture of three clouds in the plane, of which one is a fifth.

WIDTH, SIZE, STEPS, EVERY = 64, 256, 3000, 5


def mlp(params, x, logsnr):
    seen = jnp.concatenate([x, jnp.tanh(logsnr / 8)[:, None], jnp.sin(logsnr / 3)[:, None]], axis=1)
    for layer in params[:-1]:
        seen = jax.nn.silu(seen @ layer["kernel"] + layer["bias"][None])
    return seen @ params[-1]["kernel"] + params[-1]["bias"][None]


def mlp_params(seed):
    sizes, draw = (4, WIDTH, WIDTH, 2), np.random.default_rng(seed).normal
    return [
        {"kernel": jnp.asarray(draw(0, a**-0.5, (a, b)), jnp.float32), "bias": jnp.zeros((b,))}
        for a, b in itertools.pairwise(sizes)
    ]


def player(name):
    return lambda params, given, key: jd.denoiser(functools.partial(mlp, params[name]), jd.predict_v)


def taught(frozen, given):
    return oracles.denoiser(frozen)


PLAYERS = objectives.Players(player("generator"), player("fake"))


def matched(num, critic=None, weight=losses.v_weight):
    levels = jd.grid(jd.cosine(), num)
    options = {"condition": nothing, "every": EVERY, "critic": critic}
    return objectives.distribution_matching(PLAYERS, taught, levels, jd.cosine(), weight, **options)


def consistent():
    pairs = objectives.steps_of(jd.grid(jd.cosine(), 64))
    weight = objectives.of_noisier(losses.v_weight)
    return objectives.consistency(player("generator"), taught, pairs, weight, condition=nothing)


def turns(rate):
    moves = optax.conditionally_mask(optax.adam(rate, b1=0.5), lambda step: step % EVERY == 0)
    return optax.partition({"generator": moves, "fake": optax.adam(rate)}, lambda params: {name: name for name in params})


def trained(objective, optimizer, steps):
    step, start = training.train_step(objective, optimizer, {"ema": 0.99}), denoising()
    state = training.initial_state({"generator": start, "fake": start}, optimizer, {"ema": 0.99}, clouds())

    def body(state, key):
        return step(state, rows(key), jax.random.key(1))[0], None

    return jax.jit(lambda state: jax.lax.scan(body, state, jax.random.split(jax.random.key(0), steps))[0])(state)


def rows(key):
    return {"image": oracles.draw(clouds(), key, SIZE), "index": jnp.arange(SIZE)}


@functools.cache
def denoising():
    """Params of a diffusion model of the clouds, as which all begin."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def network(params, x, logsnr, given, key):
        return mlp(params, x, logsnr)

    step = training.train_step(
        objectives.diffusion(network, jd.cosine(), jd.predict_v, losses.v_weight, condition=nothing), optimizer, {"ema": 0.99}
    )
    state = training.initial_state(mlp_params(0), optimizer, {"ema": 0.99})

    def body(state, key):
        return step(state, rows(key), jax.random.key(2))[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(body, state, jax.random.split(jax.random.key(3), STEPS)))(state)
    return state.ema["ema"]


def drawn(state, num, count=4000):
    denoise = PLAYERS.generator({"generator": state.ema["ema"]["generator"]}, None, None)
    x, levels = jax.random.normal(jax.random.key(7), (count, 2)), jd.grid(jd.cosine(), num)
    return jax.jit(lambda x: jd.sample(jd.consistency(), denoise, x * levels.sigma[0], levels, jax.random.key(8)))(x)


def measured(x):
    """Precision and recall of samples (Kynkaanniemi et al. 2019, k = 3), and the shares of the nearest clouds."""
    x, data = np.asarray(x)[:1500], np.asarray(oracles.draw(clouds(), jax.random.key(9), 1500))

    def within(a, b):
        """The share of a that lies nearer to one of b than its third neighbour."""
        own, gaps = (np.linalg.norm(c[:, None] - b[None], axis=-1) for c in (b, a))
        return np.mean(np.any(gaps <= np.sort(own, axis=1)[:, 3][None], axis=1))

    stds, means = np.asarray(clouds().stds), np.asarray(clouds().means)
    gaps = np.linalg.norm((x[:, None] - means[None]) / stds[None], axis=-1)
    shares = np.bincount(np.argmin(gaps, axis=1), minlength=3) / len(x)
    return within(x, data), within(data, x), shares


def gap(one, other):
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
def test_generators_cover_a_mixture_in_one_step():
    """Of an exact teacher, beside consistency distillation: precision, recall, and the share of each cloud."""
    matches = trained(matched(1), turns(2e-3), 2000)
    agrees = trained(consistent(), optax.adam(optax.cosine_decay_schedule(2e-3, 1000)), 1000)
    start = training.initial_state({"generator": denoising(), "fake": denoising()}, optax.identity(), {"ema": 0.99})
    before, matching, consistency = map(measured, (drawn(each, 1) for each in (start, matches, agrees)))
    precision, recall, shares = matching
    assert before[0] < 0.4  # one step of a diffusion model
    assert precision > 0.8
    assert recall > 0.8
    assert np.max(np.abs(shares - np.asarray(clouds().weights))) < 0.13
    assert consistency[1] > 0.9


def beginning(optimizer):
    params = {"generator": mlp_params(0), "fake": mlp_params(1)}
    return training.initial_state(params, optimizer, {"ema": 0.99}, clouds())


def test_the_generator_and_its_moments_rest_between_its_steps():
    """Bit for bit, by the optimizer of the recipe; the fake denoiser moves in each step."""
    optimizer = build.optimizer(config.load("configs/digits_matching.py"))
    step = jax.jit(training.train_step(matched(2), optimizer, {"ema": 0.99}))
    states = [beginning(optimizer)]
    for number in range(EVERY + 2):
        states.append(step(states[-1], rows(jax.random.key(number)), jax.random.key(1))[0])
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        inner = [jax.tree.leaves(each.opt_state.inner_states["generator"].inner_state.inner_state) for each in (before, after)]
        moved = [gap(before.params["generator"], after.params["generator"]) > 0, gap(*inner) > 0]
        assert moved == [number % EVERY == 0] * 2
        assert gap(before.params["fake"], after.params["fake"]) > 0


def linear_critic():
    """It knows nothing but the fake denoiser and two numbers."""

    def score(params, given):
        return lambda x, level: jnp.sum(PLAYERS.fake(params, given, None)(x, level), axis=1) * params["head"][0] + params["head"][1]

    return objectives.Critic(score, weight=0.5, own_weight=0.5)


@pytest.mark.parametrize("critic", [None, linear_critic()], ids=["alone", "critic"])
def test_no_gradient_goes_from_one_players_loss_to_the_other(critic):
    """The gradient of the fake denoiser is the same in both kinds of steps, and the generator has none where it rests."""
    objective = matched(2, critic)
    silent = matched(2, critic and critic._replace(own_weight=0.0), lambda level: jnp.zeros_like(level.sigma))
    params = {**beginning(turns(1e-3)).params, "head": jnp.array([0.3, 0.1])}

    def loss(params, step, objective=objective):
        one = training.TrainState(step, {}, {}, (), clouds())
        return objective(params, one, rows(jax.random.key(0)), jax.random.key(1))

    graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
    alone = jax.jit(jax.grad(functools.partial(loss, objective=silent), has_aux=True))(params, jnp.int32(0))[0]
    ((_, on), moves), ((_, off), rests) = (graded(params, jnp.int32(step)) for step in (0, 1))
    assert float(off["generator"]) == 0
    assert float(on["generator"]) > 0
    np.testing.assert_allclose(on["fake"], off["fake"], rtol=1e-5)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(rests["generator"]))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(moves["generator"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moves["generator"], alone["generator"])
    for name in ("fake", "head"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moves[name], rests[name])
    assert gap(moves["fake"], jax.tree.map(jnp.zeros_like, moves["fake"])) > 1e-3
    assert bool(jnp.any(moves["head"])) == (critic is not None)


def test_a_generator_of_two_steps_is_trained_on_its_own_noised_samples():
    """Whose first step gives 2 and whose second what it sees: half the samples are 2, half 2 alpha + sigma noise."""

    def generator(params, given, key):
        return lambda x, level: jnp.where(level.sigma > 0.9, jnp.full_like(x, 2.0), x)

    def zero(*_):
        return lambda x, level: jnp.zeros_like(x)

    players, levels = objectives.Players(generator, zero), jd.grid(jd.cosine(), 2)
    objective = objectives.distribution_matching(players, zero, levels, jd.cosine(), losses.x0_weight, condition=nothing)
    many = {"image": jnp.zeros((8192, 2)), "index": jnp.arange(8192)}
    _, terms = jax.jit(objective)({}, training.TrainState(jnp.int32(1), {}, {}, (), {}), many, jax.random.key(0))
    np.testing.assert_allclose(terms["fake"], (4 + (4 / 2 + 1 / 2)) / 2, rtol=0.02)


def test_a_critic_leads_the_generator_to_higher_scores():
    """Where the teacher says nothing: against the gradient of its loss the score of samples grows."""

    def score(params, given):
        return lambda x, level: params["head"][0] * x[:, 0]

    critic = objectives.Critic(score, weight=1.0, own_weight=1.0)
    players = objectives.Players(lambda p, given, key: lambda x, level: p["generator"][None] + x, lambda p, *_: lambda x, level: x)
    still = objectives.distribution_matching(
        players,
        lambda *_: lambda x, level: x,
        jd.grid(jd.cosine(), 1),
        jd.cosine(),
        losses.v_weight,
        condition=nothing,
        critic=critic,
    )
    params = {"generator": jnp.zeros((2,)), "head": jnp.array([2.0])}
    gradient = jax.grad(
        lambda p: still(p, training.TrainState(jnp.int32(0), {}, {}, (), {}), rows(jax.random.key(0)), jax.random.key(1))[0]
    )(params)
    assert gradient["generator"][0] < -0.1
    assert gradient["generator"][1] == 0


def whole(dtype):
    """The loss of the recipe with a critic and a small UNet as a function of params and teacher, and params unlike initial ones."""
    recipe = config.load("configs/digits_matching.py")
    model = dataclasses.replace(recipe.model, channels=8, multipliers=(1,), attention=(), dtype=dtype)
    matching = dataclasses.replace(recipe.matching, adversarial=0.1, classification=0.1, classifier_channels=8)
    recipe = dataclasses.replace(recipe, model=model, matching=matching)
    teacher = dataclasses.replace(config.load("configs/digits.py"), model=model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype),
        build.state_shapes(recipe, {"teacher": teacher}).params,
    )
    rows = {"image": rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32), "label": np.arange(8, dtype=np.int32)}
    rows["index"] = rows["label"]
    objective = build.objective(recipe, {"teacher": teacher})

    def loss(params, frozen):
        return objective(params, training.TrainState(jnp.int32(0), {}, {}, (), frozen), rows, jax.random.key(0))

    return loss, params, {"teacher": params["generator"]}


@pytest.mark.slow
def test_the_critic_of_a_config_trains_in_both_dtypes():
    """The head by the fake denoiser's middle; in bfloat16 the losses are those of float32 but for its rounding."""
    loss, params, frozen = whole("float32")
    _, terms = jax.jit(loss)(params, frozen)
    with jax.numpy_dtype_promotion("standard"):  # in which JAX lowers attention of bfloat16
        (_, rounded), gradient = jax.jit(jax.value_and_grad(whole("bfloat16")[0], has_aux=True))(params, frozen)
    assert set(terms) == {"generator", "fake", "critic"}
    for name in terms:
        np.testing.assert_allclose(rounded[name], terms[name], rtol=0.05)
    assert all(leaf.dtype == np.float32 and bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient["head"]))


def test_the_middle_of_a_unet_is_seen_without_changing_what_it_returns():
    """Of half the size; its output is as before, and depends on it."""
    module = unet.UNet(8, (1, 2), 1, attention=(), head_channels=8, num_classes=3)
    x, logsnr, given = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.zeros((2,)), {"label": jnp.array([0, 2])}
    variables = module.init(jax.random.key(1), x, logsnr, **given)
    assert set(variables) == {"params"}
    assert discriminator.middle(module)(variables["params"], x, logsnr, given).shape == (2, 4, 4, 16)
    silent = jax.make_jaxpr(lambda params: unet.network(module)(params, x, logsnr, given))(variables["params"])
    assert len(silent.out_avals) == 1
