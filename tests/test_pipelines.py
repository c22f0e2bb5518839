"""Pictures from prompts to pixels, against those that diffusers' pipelines drew with the same weights (`make_pipelines.py`)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pipeline_cases as cases
import pytest
from jax.tree_util import Partial
from published_weights import RECORDED
from test_samplers import with_noise

from jaxdiff import interop
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.trained import load_run

pytestmark = pytest.mark.usefixtures("one_device")
SAMPLERS = {"euler": "ddim", "lcm": "consistency"}  # which the others' names are ours


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The directory of an imported run by its family."""

    @functools.cache
    def run(family):
        published, workdir = (tmp_path_factory.mktemp(family) / name for name in ("published", "run"))
        cases.write(published, family)
        assert cli.main(["import", str(published), "--workdir", str(workdir), "--quiet"]) == 0
        return workdir

    return run


@pytest.fixture(scope="module")
def loaded(imported):
    """Run, denoiser `(params, given, x, level)` and decoder by family, each compiled once."""

    @functools.cache
    def run(family):
        whole = load_run(imported(family))

        @jax.jit
        def denoise(params, given, x, level):
            return Partial(whole.denoiser.func, params, whole.denoiser.args[1])(given)(x, level)

        return whole, denoise, jax.jit(whole.decode)

    return run


@pytest.mark.parametrize("name", cases.CASES)
def test_pictures_are_those_of_diffusers(name, imported, loaded, tmp_path):
    case, recorded = cases.CASES[name], np.load(RECORDED / "pipelines.npz")
    (run, denoise, decode), workdir = loaded(case.family), imported(case.family)
    params = run.denoiser.args[0]
    if case.lora:
        params = load_run(workdir, lora=f"{cases.write_lora(tmp_path) / cases.LORA}:{case.lora}").denoiser.args[0]
    given = run.tokens(list(cases.PROMPTS), case.negative or "") | {"scale": np.full(2, case.guidance, np.float32)}
    sampler, levels = sampling(storage.read_config(workdir), case)
    x = jnp.moveaxis(jnp.asarray(recorded[f"{case.family} latents"]), 1, -1)
    x = levels.sigma[0] * x if case.scheduler == "euler" else x  # the others begin with noise of standard deviation 1
    noises = np.moveaxis(recorded[f"{name} noises"], 2, -1) if f"{name} noises" in recorded else np.zeros((case.steps, *x.shape))
    z = walked(sampler, functools.partial(denoise, params, given), x, levels, noises)
    pictures = np.clip(decode(z), -1, 1)[:, ::2, ::2]
    assert np.abs(pictures - recorded[f"{name} pictures"]).max() < 1e-4


def sampling(made, case):
    """The sampler and the levels of a case: DDIM as Stable Diffusion is published, LCM as it is, the others trailing."""
    spacing = {"ddim": "leading", "lcm": "lcm"}.get(case.scheduler, "trailing")
    options = {"sampler": SAMPLERS.get(case.scheduler, case.scheduler), "spacing": spacing, "steps": case.steps}
    how = dataclasses.replace(made.sampling, **options, steps_offset=int(spacing == "leading"))
    levels = build.sampling_levels(dataclasses.replace(made, sampling=how))
    return build.SAMPLERS[how.sampler](0.0, levels), levels


def walked(sampler, denoise, x, levels, noises):
    """What the sampler reaches, with these noises in the place of its own, if it draws any."""
    memory, key = sampler.init(x), jax.random.key(0)
    for number in range(levels.sigma.size - 1):
        t, s = levels[number], levels[number + 1]
        if np.any(noises) and number < len(noises):
            x, memory = with_noise(sampler, denoise, x, memory, t, s, jnp.asarray(noises[number]))
        else:
            x, memory = sampler.step(denoise, x, memory, t, s, key)
    return x


def test_what_is_imported_is_exported_again(imported, tmp_path):
    """UNet, autoencoder and text encoders: the run of the export draws what the run drew."""
    out, again = tmp_path / "exported", tmp_path / "again"
    assert cli.main(["export", str(imported("xl")), "--out", str(out), "--quiet"]) == 0
    assert cli.main(["import", str(out), "--workdir", str(again), "--quiet"]) == 0
    for place in ("", "text", "text_2"):
        before, after = (storage.read_config(run / place) for run in (imported("xl"), again))
        params = [storage.read_params(before, run / place)[1] for run in (imported("xl"), again)]
        jax.tree.map(np.testing.assert_array_equal, *params)
        assert (before.text, before.published, before.betas) == (after.text, after.published, after.betas)
        if place:
            tokens = [interop.tokenizer(run / place)(cases.PROMPTS) for run in (imported("xl"), again)]
            np.testing.assert_array_equal(*tokens)


def test_kernels_in_half_precision_are_what_a_network_in_half_precision_computes_with():
    """To the bit: a UNet with labels, context and pooled text, a text encoder, an autoencoder with codes."""
    model = config.Model(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, num_classes=5, dtype="bfloat16")
    images = config.Data(image_shape=(8, 8, 1))
    unet = config.Experiment(
        data=images,
        model=dataclasses.replace(model, transformer=1, context_channels=8),
        published=config.Published(told="step", pooled_channels=8),
        sources=config.Sources(autoencoder="kl", text="clip"),
    )
    words = config.Text(layers=1, width=8, heads=2, length=6, vocabulary=16, begin=1, end=2, pad=0)
    text = config.Experiment(objective="text", text=words)
    options = config.Autoencoder(latent_channels=1, codebook=4)
    codes = config.Experiment(objective="autoencoder", data=images, model=model, autoencoder=options)
    sources = {"autoencoder": codes, "text": text}
    params, key = build.init(unet, jax.random.key(0), sources=sources).params, jax.random.key(1)
    frozen = {place: build.init(each, jax.random.key(2)).params for place, each in sources.items()}
    params, frozen = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), (params, frozen))
    generate = jax.jit(build.image_generator(dataclasses.replace(unet, sampling=config.Sampling(steps=1, clip=False)), sources))
    tokens = {"text": np.array([[1, 5, 2, 0, 0, 0]])}
    given = {"index": np.array([0]), "label": np.array([3]), "scale": np.array([2.0], np.float32), **tokens, "null": tokens}
    halves = build.rounded(unet, sources, params, frozen)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(halves)) < 0.6 * sum(
        leaf.nbytes for leaf in jax.tree.leaves((params, frozen))
    )
    np.testing.assert_array_equal(generate(halves[0], key, given, halves[1]), generate(params, key, given, frozen))
