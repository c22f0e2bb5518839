"""Cascades of exact denoisers over the pyramid of a mixture: every stage's conditional is a posterior, and all of it is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import losses, objectives, oracles
from jaxdiff.cascade import Stage

NUM = 2_000
SCHEDULE = jd.cosine()
PATH = jd.grid(jd.uniform_logsnr(jd.cosine(-10.0, 12.0)), 40, t_min=0)


@functools.cache
def components():
    """Weights, means and covariances of three clouds of 4x4 images, smooth and rough ones, each correlated in its own way."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(16, 2)
    distance = ((place[:, None] - place[None]) ** 2).sum(-1)
    means = 0.5 * rng.normal(size=(3, 1)) + 0.4 * rng.normal(size=(3, 16))
    smooth = [0.12 * np.exp(-distance / width) for width in (1.0, 4.0, 16.0)]
    rough = [root @ root.T / 16 for root in 0.15 * rng.normal(size=(3, 16, 16))]
    return np.array([0.5, 0.3, 0.2]), means, np.array(smooth) + np.array(rough)


def means_of_squares(size, coarse):
    """The matrix that takes images of a size, row by row, to coarse ones."""
    row = np.repeat(np.eye(coarse), size // coarse, axis=1) * coarse / size
    return np.kron(row, row)


def upsampling(coarse, size):
    """The matrix of bilinear upsampling by 2: between two pixels at 1/4 and 3/4, beyond the outer ones constant."""
    row = np.array([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]) if coarse == 2 else np.ones((2, 1))
    return np.kron(row, row)


def law(size, shift=0.0, noise=0.0, blur=0.0):
    """The law of the images' means over squares, `size` a side, or a wrong one: noisy, blurred (of less contrast), shifted."""
    weights, means, covariances = components()
    matrix = means_of_squares(4, size)
    pixels = len(matrix)
    matrix = ((1 - blur) * np.eye(pixels) + blur / pixels) @ matrix
    spread = matrix @ covariances @ matrix.T + noise**2 * np.eye(pixels)
    return oracles.correlated(*(jnp.asarray(array, jnp.float32) for array in (weights, means @ matrix.T + shift, spread)))


def exact(size, alike=False):
    """The exact denoiser of images given what the network would be given: noised images of half the size.

    Where all of them are noised `alike`, to one level, the posteriors share their covariances.
    """
    matrix = jnp.asarray(means_of_squares(size, size // 2), jnp.float32)
    inverse = jnp.asarray(np.linalg.pinv(upsampling(size // 2, size)), jnp.float32)
    stds = None if alike else 0
    axes = oracles.Mixture(weights=0, means=0, stds=stds, axes=stds)

    def denoiser(given):
        level = jd.from_logsnr(given["augmentation"])
        observed = given["spatial"].reshape(len(level.sigma), -1) @ inverse.T / level.alpha[:, None]
        std = level.sigma / level.alpha
        posterior = functools.partial(oracles.posterior, law(size), matrix)
        data = jax.vmap(posterior, (0, stds), axes)(observed, std[0] if alike else std)
        alone = jax.vmap(lambda data, x, level: oracles.denoiser(data)(x[None], level)[0], (axes, 0, stds))
        if alike:
            return lambda x, level: alone(data, x, level)
        return lambda x, level: alone(data, x, jax.tree.map(lambda part: jnp.broadcast_to(part.ravel(), len(x)), level))

    return denoiser


def base(data):
    size = round(data.means.shape[1] ** 0.5)
    return Stage(lambda given: oracles.denoiser(data), jd.dpmpp_2m(), PATH, (size, size, 1))


def twice(size, logsnr, told):
    """The stage to images of a size, whose condition is noised to a logsnr; its denoiser is told of that or of another."""

    def denoiser(given):
        return exact(size, alike=True)(given | {"augmentation": given["augmentation"] - logsnr + told})

    return Stage(denoiser, jd.dpmpp_2m(), PATH, (size, size, 1), 2, jd.from_logsnr(logsnr))


@jax.jit
def ends(data, logsnr, told):
    """The images of every stage, from a base of that law to stages with these augmentations."""
    stages = [base(data)]
    for arguments in zip(logsnr, told, strict=True):
        stages.append(twice(2 * stages[-1].shape[0], *arguments))
    return jd.cascade.pyramid(stages, jax.random.key(0), NUM)


def sampled(data, logsnr=(), told=None):
    return ends(data, jnp.array(logsnr, jnp.float32), jnp.array(logsnr if told is None else told, jnp.float32))


def failures(images):
    checks = oracles.compare(images.reshape(len(images), -1), law(images.shape[1]), jax.random.key(1))
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize(("size", "logsnr"), [(4, ()), (2, (3.0,)), (1, (2.0, 0.0)), (1, (14.0, 14.0)), (1, (14.0, -9.0))])
def test_every_stage_of_a_cascade_of_exact_denoisers_samples_the_exact_law(size, logsnr):
    """With some augmentation, with next to none, and with nothing but noise to go by."""
    for images in sampled(law(size), logsnr):
        assert failures(images) == []


WRONG = {
    "told of less augmentation": (lambda: sampled(law(1), (2.0, 0.0), told=(2.0, 3.0))),
    "told of more augmentation": (lambda: sampled(law(1), (4.0, 4.0), told=(1.0, 1.0))),
    "told of noise that is not added": (lambda: sampled(law(1), (14.0, 14.0), told=(2.0, 2.0))),
    "a shifted base": (lambda: sampled(law(1, shift=0.3), (4.0, 4.0))),
    "a noisy base": (lambda: sampled(law(1, noise=0.5), (4.0, 4.0))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_cascade_that_is_wrong_is_found_out(name):
    assert failures(WRONG[name]()[-1]) != []


def test_the_more_augmentation_the_less_is_kept_of_the_image_before():
    """All at next to none, nothing where there is little but noise; but then neither does the next image say what came before."""
    kept = []
    for logsnr in (14.0, 3.0, 0.0, -9.0):
        low, images = sampled(law(2), (logsnr,))
        pixels = [np.asarray(x - jnp.mean(x, axis=0, keepdims=True)).ravel() for x in (low, objectives.downsampled(images, 2))]
        kept.append(np.corrcoef(*pixels)[0, 1])
    assert kept[0] > 0.999 > kept[1] > kept[2] > kept[3] + 0.1
    assert abs(kept[3]) < 0.05


def test_the_denoiser_of_a_stage_is_the_posterior_mean():
    """Of x0 given both its own noised image and the smaller one, by conditioning in numpy."""
    weights, means, covariances = components()
    matrix, level, augmentation = means_of_squares(4, 2), jd.from_logsnr(jnp.array(0.5)), jd.from_logsnr(jnp.array(1.5))
    x, low = np.random.default_rng(1).normal(size=(5, 16)), np.random.default_rng(2).normal(size=(5, 4))
    spatial = jnp.asarray(low @ upsampling(2, 4).T, jnp.float32).reshape(5, 4, 4, 1)
    given = {"spatial": spatial, "augmentation": jnp.full((5,), 1.5)}
    found = jax.jit(lambda given, x: exact(4)(given)(x, level))(given, jnp.asarray(x, jnp.float32).reshape(5, 4, 4, 1))

    seen = np.concatenate([augmentation.alpha * matrix, level.alpha * np.eye(16)])
    noise = np.diag(np.repeat([augmentation.sigma**2, level.sigma**2], [4, 16]))
    observed, log_joint, mean = np.concatenate([low, x], axis=1), [], []
    for weight, center, covariance in zip(weights, means, covariances, strict=True):
        spread = seen @ covariance @ seen.T + noise
        log_joint.append(np.log(weight) + scipy.stats.multivariate_normal(seen @ center, spread).logpdf(observed))
        mean.append(center + (observed - seen @ center) @ np.linalg.solve(spread, seen @ covariance))
    expected = np.einsum("kb,kbd->bd", scipy.special.softmax(log_joint, axis=0), mean)
    np.testing.assert_allclose(found.reshape(5, 16), expected, atol=1e-4)


def sliced_wasserstein(images):
    """To draws of the exact law, in its mean standard deviation."""
    normals = np.random.default_rng(1).normal(size=(16, 64))
    normals /= np.linalg.norm(normals, axis=0)
    wanted = oracles.draw(law(4), jax.random.key(3), len(images))
    found, wanted = (np.sort(np.asarray(x).reshape(-1, 16) @ normals, axis=0) for x in (images, wanted))
    return np.sqrt(np.mean((found - wanted) ** 2) / (np.trace(oracles.moments(law(4))[1]) / 16))


def test_augmentation_mends_what_the_base_gets_wrong():
    """With a right base none is needed, and an exact stage is not harmed by it."""

    def errors(**wrong):
        return [sliced_wasserstein(sampled(law(2, **wrong), (logsnr,))[-1]) for logsnr in (15.0, 2.0, 0.0)]

    sampling = max(errors())
    assert sampling < 0.08
    for kind, weak, strong in (("shift", 0.15, 0.3), ("noise", 0.2, 0.4), ("blur", 0.4, 0.7)):
        for none, some, more in (little := errors(**{kind: weak}), much := errors(**{kind: strong})):
            assert none > 1.2 * sampling
            assert some < 0.8 * none
            assert more < max(0.6 * none, 1.1 * sampling)
        assert little[0] < 0.8 * much[0]


def toys(params, label):
    """Three stages of functions that hear their condition and a label `[B]`, in place of networks."""
    shift = label.astype(jnp.float32)[:, None, None, None]

    def denoiser(number, given):
        hint = jnp.tanh(given["spatial"] + given["augmentation"][:, None, None, None] / 10) if given else 0.0
        return lambda x, level: jnp.tanh(params[number] * x + hint + shift)

    shapes = [((2, 2, 3), 1, None), ((4, 4, 3), 2, SCHEDULE(0.2)), ((16, 16, 3), 4, SCHEDULE(0.1))]
    return [
        Stage(functools.partial(denoiser, number), jd.ddpm(), jd.grid(SCHEDULE, 6), *rest) for number, rest in enumerate(shapes)
    ]


def test_a_cascade_compiles_once_and_repeats_itself():
    traces = []

    @jax.jit
    def sample(params, label, key):
        traces.append(None)
        return jd.cascade.sample(toys(params, label), key, 4)

    label = jnp.arange(4)
    first = sample(jnp.array([0.5, 1.0, 0.2]), label, jax.random.key(0))
    assert first.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(first, sample(jnp.array([0.5, 1.0, 0.2]), label, jax.random.key(0)))
    for scale, shift, seed in ((0.6, 0, 0), (0.5, 1, 0), (0.5, 0, 1)):
        other = sample(jnp.array([scale, 1.0, 0.2]), label + shift, jax.random.key(seed))
        assert float(jnp.max(jnp.abs(first - other))) > 1e-3
    assert len(traces) == 1


def test_stages_are_independent_of_later_ones_and_of_each_others_noise():
    stages = toys(jnp.array([0.5, 1.0, 0.2]), jnp.zeros(20))
    whole, part = (jax.jit(lambda key, last=last: jd.cascade.pyramid(stages[:last], key, 20))(jax.random.key(0)) for last in (3, 2))
    for images, alone in zip(whole, part, strict=False):
        np.testing.assert_allclose(images, alone, atol=1e-6)

    still = jd.Sampler(lambda x: (), lambda denoise, x, memory, t, s, key: (x, memory))
    stages = [stage._replace(sampler=still) for stage in toys(jnp.zeros(3), jnp.zeros(500))]
    starts = jax.jit(lambda key: jd.cascade.pyramid(stages, key, 500))(jax.random.key(0))
    for small, large in itertools.combinations(starts, 2):
        both = np.concatenate([x.reshape(500, -1)[:, :12] for x in (small, large)], axis=1)
        assert np.abs(np.corrcoef(both.T)[:12, 12:]).max() < 0.25


def test_a_sharded_batch_gives_the_same_cascade():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    params, label = jnp.array([0.5, 1.0, 0.2]), jnp.arange(16) % 3
    sample = jax.jit(lambda label: jd.cascade.sample(toys(params, label), jax.random.key(0), 16))
    spread = sample(jax.device_put(label, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(spread.sharding.device_set) == 2
    np.testing.assert_allclose(spread, sample(label), atol=1e-5)


def test_the_gradient_reaches_every_stage():
    def end(params):
        return jnp.mean(jd.cascade.sample(toys(params, jnp.arange(4)), jax.random.key(0), 4) ** 2)

    steps = 0.02 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    params = jnp.asarray(np.array([[0.5, 1.0, 0.2]]) + steps, jnp.float32)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(end)))(params)
    assert np.all(np.isfinite(gradients[0]) & (gradients[0] != 0))
    np.testing.assert_allclose(gradients[0], (values[1:4] - values[4:]) / 0.04, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stages: stages[1:], "the first stage must be a base model"),
        (lambda stages: [], "the first stage must be a base model"),
        (lambda stages: stages[::2], r"factor 4 after images \(2, 2, 3\) must have shape \(8, 8, 3\), got \(16, 16, 3\)"),
        (lambda stages: [stages[0], stages[1]._replace(shape=(4, 4, 1))], r"must have shape \(4, 4, 3\)"),
        (lambda stages: [stages[0], stages[1]._replace(augmentation=None)], r"stage of shape \(4, 4, 3\) has no augmentation"),
    ],
)
def test_a_cascade_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        jd.cascade.sample(change(toys(jnp.zeros(3), jnp.zeros(2))), jax.random.key(0), 2)


@functools.cache
def drawn():
    return np.asarray(oracles.draw(law(4), jax.random.key(5), 2000)).reshape(2000, 4, 4, 1)


def batch(num):
    return {"image": drawn()[:num], "label": np.arange(num, dtype=np.int32) % 10, "index": np.arange(num, dtype=np.int32)}


def uniform(found, low=0.0, high=1.0):
    return scipy.stats.kstest(np.asarray(found), scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01


@functools.partial(jax.jit, static_argnums=0)
def times_of(schedule, logsnr):
    return jd.process.time_of(schedule, lambda level: level.logsnr, logsnr)


def noise_in(given, low):
    """The noise in what a network is given of small images, by its logsnr alone: `[B, pixels]`, in numpy."""
    alpha2 = scipy.special.expit(np.asarray(given["augmentation"], np.float64))[:, None]
    noised = np.asarray(given["spatial"], np.float64).reshape(len(low), -1) @ np.linalg.pinv(upsampling(2, 4)).T
    return (noised - np.sqrt(alpha2) * np.asarray(low).reshape(len(low), -1)) / np.sqrt(1 - alpha2)


@pytest.mark.parametrize("schedule", [jd.cosine(-10.0, 10.0), jd.karras(0.02)])
def test_low_resolution_noises_small_images_to_uniform_times(schedule):
    data = batch(2000)
    given = jax.jit(objectives.low_resolution(schedule, 2, 0.6))(data, jax.random.key(0))
    low = np.asarray(data["image"]).reshape(-1, 16) @ means_of_squares(4, 2).T
    noise = noise_in(given, low)
    assert given["spatial"].shape == (2000, 4, 4, 1)
    assert uniform(times_of(schedule, given["augmentation"]), high=0.6)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(np.concatenate([noise, low], axis=1).T)[:4] - np.eye(4, 8)).max() < 0.1
    assert abs(np.corrcoef(noise[:, 0], given["augmentation"])[0, 1]) < 0.1


def test_low_resolution_of_a_cut_batch_has_the_same_rows():
    data, condition = batch(12), jax.jit(objectives.low_resolution(SCHEDULE, 2, 0.6))
    whole, part = (condition(rows, jax.random.key(1)) for rows in (data, jax.tree.map(lambda leaf: leaf[5:9], data)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[5:9], b, rtol=1e-6), whole, part)
    other = condition(data, jax.random.key(2))
    assert float(jnp.min(jnp.abs(whole["augmentation"] - other["augmentation"]))) > 0


def test_low_resolution_without_augmentation_is_the_small_image():
    data = batch(50)
    for schedule in (SCHEDULE, jd.karras(0.001)):
        given = jax.jit(objectives.low_resolution(schedule, 2, 0.0))(data, jax.random.key(0))
        expected = np.asarray(data["image"]).reshape(50, 16) @ means_of_squares(4, 2).T @ upsampling(2, 4).T
        np.testing.assert_allclose(given["spatial"].reshape(50, 16), expected, atol=5e-3)
        np.testing.assert_allclose(given["augmentation"], jnp.full(50, schedule(0.0).logsnr))


def test_an_objective_draws_its_own_noise_times_and_labels():
    """Not those of the condition, though all come of one key."""
    data = batch(2000)
    condition = objectives.joint(objectives.low_resolution(SCHEDULE, 2, 1.0), label=objectives.labels(10, dropout=0.5))

    @jax.jit
    def network_inputs(key):
        seen = []

        def network(params, x, logsnr, given, key):
            seen.append((x, logsnr, given))
            return x

        objectives.diffusion(network, SCHEDULE, jd.predict_x0, losses.x0_weight, condition=condition)(None, None, data, key)
        return seen

    ((x, logsnr, given),) = network_inputs(jax.random.key(0))
    assert set(given) == {"spatial", "augmentation", "label"}

    own, other = times_of(SCHEDULE, logsnr), times_of(SCHEDULE, given["augmentation"])
    assert uniform((own - other) % 1)
    for dropped in (True, False):
        assert uniform(other[(given["label"] == 10) == dropped])
    level = jd.from_logsnr(logsnr).expand(4)
    noise = np.asarray((x - level.alpha * data["image"]) / level.sigma).reshape(2000, 16)
    low = objectives.downsampled(data["image"], 2)
    assert np.abs(np.corrcoef(noise.T, noise_in(given, low).T)[:16, 16:]).max() < 0.1


def test_the_exact_conditional_minimises_the_loss():
    """What is trained is what a cascade samples from: another augmentation than the one told costs, as hearing nothing does."""
    data = batch(1000)

    def network(offset, x, logsnr, given, key):
        return exact(4)(given | {"augmentation": given["augmentation"] + offset})(x, jd.from_logsnr(logsnr))

    def deaf(params, x, logsnr, given, key):
        return oracles.denoiser(law(4))(x, jd.from_logsnr(logsnr).expand(4))

    def loss(network):
        condition = objectives.low_resolution(SCHEDULE, 2, 0.6)
        objective = objectives.diffusion(network, SCHEDULE, jd.predict_x0, losses.x0_weight, condition=condition)
        return jax.jit(lambda offset: objective(offset, None, data, jax.random.key(0)))

    best, *others = map(loss(network), (0.0, -2.0, 2.0))
    assert best < 0.98 * min(others)
    assert best < 0.8 * loss(deaf)(0.0)


def test_pyramids_are_means_over_squares_and_bilinear():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    rows = np.asarray(x).reshape(3, 16)
    np.testing.assert_allclose(objectives.downsampled(x, 2).reshape(3, 4), rows @ means_of_squares(4, 2).T, atol=1e-6)
    np.testing.assert_allclose(objectives.downsampled(x, 4).reshape(3, 1), rows @ means_of_squares(4, 1).T, atol=1e-6)
    low = objectives.downsampled(x, 2)
    np.testing.assert_allclose(objectives.upsampled(low, 2).reshape(3, 16), low.reshape(3, 4) @ upsampling(2, 4).T, atol=1e-6)
    wide = jnp.arange(2 * 6 * 9 * 2.0).reshape(2, 6, 9, 2)
    np.testing.assert_allclose(objectives.downsampled(wide, 3)[0, 1, 2, 1], wide[0, 3:, 6:, 1].mean(), rtol=1e-6)
    assert objectives.upsampled(wide, 3).shape == (2, 18, 27, 2)


def test_low_resolution_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"low_resolution: must have 0 <= max_time <= 1, got max_time = 1.5"):
        objectives.low_resolution(SCHEDULE, 2, 1.5)
    for factor in (3, 0):
        with pytest.raises(ValueError, match=f"factor must divide the images' 4x4, got {factor}"):
            objectives.low_resolution(SCHEDULE, factor, 0.5)(batch(2), jax.random.key(0))
