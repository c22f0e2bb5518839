"""Trained runs as functions, held to what the command line draws from them."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.app import build, config
from jaxdiff.app.config import Autoencoder, Data, Distillation, Experiment, Model, Sampling, Sources
from jaxdiff.app.runs import storage, trained
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import checkpoint

PIXELS = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=8),
    model=Model(channels=8, multipliers=(1,), blocks=1, head_channels=8, num_classes=10),
    ema={"ema": 0.5, "slow": 0.9},
    sampling=Sampling(steps=2, guidance=2.0),
)
AUTOENCODER = dataclasses.replace(
    PIXELS,
    objective="autoencoder",
    model=Model(channels=8, multipliers=(1, 1), blocks=1, head_channels=8),
    autoencoder=Autoencoder(latent_channels=2),
)
LATENT = dataclasses.replace(PIXELS, sources=Sources(autoencoder="kl"), sampling=Sampling(steps=2, guidance=2.0, clip=False))
CONSISTENCY = dataclasses.replace(
    PIXELS,
    objective="consistency",
    sources=Sources(teacher="pixels"),
    diffusion=dataclasses.replace(PIXELS.diffusion, label_dropout=0.0),
    distillation=Distillation(steps=4, curriculum="constant"),
    sampling=Sampling(sampler="consistency", steps=1, guidance=1.0),
)
RUNS = {"kl": AUTOENCODER, "pixels": PIXELS, "latent": LATENT, "consistency": CONSISTENCY}


def untrained(workdir, made, seed):
    """A run of random params, in its EMAs other ones, at its last step."""
    sources = source_configs(made, workdir)
    shapes, rng = build.state_shapes(made, sources), np.random.default_rng(seed)
    draws = [jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes.params) for _ in range(3)]
    for params in draws if made.objective == "autoencoder" else ():
        params["latent"] = {"shift": np.array([0.5, -1.0], np.float32), "scale": np.array([2.0, 0.5], np.float32)}
    rest = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = dataclasses.replace(
        rest, step=np.full((), made.steps, np.int32), params=draws[0], ema={"ema": draws[1], "slow": draws[2]}
    )
    levels = build.student_levels(made) if config.uses_discrete_levels(made) else None
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state, config.to_dict(made), levels and vars(levels))
    (workdir / "config.json").write_text(json.dumps(config.to_dict(made)))


pytestmark = pytest.mark.usefixtures("small_unet", "one_device")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    for seed, (name, made) in enumerate(RUNS.items()):
        places = {place: str(directory / at) for place, at in dataclasses.asdict(made.sources).items() if at}
        untrained(directory / name, dataclasses.replace(made, sources=Sources(**places)), seed)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ema", "sampling"),
    [("pixels", None, {}), ("pixels", "slow", {"guidance": 1.0, "steps": 3}), ("latent", None, {}), ("consistency", None, {})],
)
def test_a_trained_run_draws_what_jaxdiff_sample_draws(runs, name, ema, sampling):
    made, labels = storage.read_config(runs / name), np.arange(4)
    made = dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, **sampling))
    drawn = trained.image_sampler(made, workdir=runs / name)(storage.read_params(made, runs / name, ema)[1], labels, 5)
    found = trained.load_run(runs / name, ema, **sampling)
    assert found.step == made.steps

    @jax.jit
    @partial(jax.vmap, in_axes=(None, None, 0, 0))
    def sample(decode, denoiser, index, label):  # the keys of cascade.sample
        noise_key, sampler_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), index), 0))
        noise = found.levels.sigma[0] * jax.random.normal(noise_key, (1, *found.shape))
        return decode(jd.sample(found.sampler, denoiser(label[None]), noise, found.levels, sampler_key))[0]

    np.testing.assert_allclose(sample(found.decode, found.denoiser, np.arange(4), labels), drawn, atol=2e-5)


def test_an_image_depends_on_its_number_and_label_and_not_on_devices(runs, one_device, monkeypatch):
    """Bit for bit; batches of another size round differently."""
    made = storage.read_config(runs / "latent")
    made = dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, sampler="ddpm"))
    _, params = storage.read_params(made, runs / "latent")

    def drawn(devices, batch_size, labels):
        monkeypatch.setattr(jax, "devices", lambda *backend: one_device[:devices])
        return trained.image_sampler(made, batch_size, runs / "latent")(params, labels, 5)

    labels = np.arange(20) % 10
    images = drawn(1, 5, labels)
    assert len({image.tobytes() for image in images}) == 20
    for devices in (2, 8):
        np.testing.assert_array_equal(drawn(devices, 5, labels), images)
    np.testing.assert_allclose(drawn(2, 6, labels), images, atol=1e-5)
    np.testing.assert_allclose(drawn(2, 5, labels[:7]), images[:7], atol=1e-5)
    labels[13] = 7
    assert np.flatnonzero(np.any(drawn(2, 5, labels) != images, axis=(1, 2, 3))).tolist() == [13]


def test_images_are_encoded_to_latents_of_the_run_and_decoded_by_its_autoencoder(runs):
    made, x0 = storage.read_config(runs / "kl"), np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
    params, networks, found = storage.read_params(made, runs / "kl")[1], build.codec(made), trained.load_run(runs / "latent")
    z = networks.encode(params, x0).mean
    assert found.shape == z.shape[1:] == (4, 4, 2)
    np.testing.assert_allclose(found.encode(x0), z, atol=1e-5)
    np.testing.assert_allclose(found.decode(z), networks.decode(params, z), atol=1e-5)
    pixels = trained.load_run(runs / "pixels")
    assert pixels.encode(x0) is x0
    assert pixels.decode(x0) is x0


def test_params_of_a_trained_run_are_arguments_of_what_it_is_an_argument_to(runs):
    found = trained.load_run(runs / "pixels")
    x, labels, level = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), jnp.int32), found.levels[0]
    program = jax.make_jaxpr(lambda denoiser, x: denoiser(labels)(x, level))(found.denoiser, x)
    assert len(program.in_avals) == len(jax.tree.leaves(found.denoiser)) + 1
    assert max(np.size(constant) for constant in program.consts) < 10


@pytest.mark.parametrize(
    ("name", "sampling", "message"),
    [
        ("kl", {}, "here a diffusion run is wanted"),
        ("missing", {}, "no run in"),
        ("pixels", {"steps": 0}, "sampling.steps"),
        ("consistency", {"steps": 3}, "sampling.steps"),
    ],
)
def test_what_a_trained_run_is_not_is_refused(runs, name, sampling, message):
    with pytest.raises(ConfigError, match=message):
        trained.load_run(runs / name, **sampling)
