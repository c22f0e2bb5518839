"""Networks of published families, opened by jaxdiff, against what the published code computed (`make_published.py`)."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest

from jaxdiff import interop, process
from jaxdiff.interop import configs, loading, params, parts
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.models import autoencoder as autoencoders

UNETS = ("sd1", "sd2", "sdxl", "ddpm", "ddpm_old", "consistency_diffusers", "adm", "adm_new", "consistency", "ldm", "ldm2")
OPTIONS = {  # that names and shapes do not say, where they are not the most frequent ones
    "adm": {"head_channels": 16, "new_order": False},  # of the size at which the published one has the new order
    "adm_new": {"head_channels": 16},
    "consistency": {"head_channels": 16},
    "ldm": {"heads": 2},
    "ldm2": {"head_channels": 16},
}
AUTOENCODERS = ("kl", "kl_old", "vq", "ldm", "ldm2")
SCHEDULES = json.loads((published_weights.RECORDED / "schedules.json").read_text())
NAMES = {"text_embeds": "pooled", "time_ids": "sizes", "labels": "label", "context": "context"}


@functools.cache
def family(name):
    return published_weights.family(name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Published files by family, written once."""

    @functools.cache
    def path(name):
        folder = published_weights.write(tmp_path_factory.mktemp(name), name, "float16")
        single = [file for file in family(name).tensors if "/" not in file and not family(name).documents]
        if single or (folder / "model_index.json").exists() or (folder / "config.json").exists():
            return folder / single[0] if single else folder
        return next(folder.iterdir())

    return path


def channels_last(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def assert_equal(mine, theirs, tolerance=1e-5):
    theirs = np.moveaxis(theirs, 1, -1)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def given(name):
    return {NAMES[key]: jnp.asarray(value) for key, value in family(name).inputs.items() if key in NAMES}


def logsnr_at(name, path, steps):
    """Of the published time steps; consistency models are told 250 log sigma."""
    if name == "consistency_diffusers":
        return jnp.asarray(-2 * steps / 250, jnp.float32)
    alpha2 = np.cumprod(1 - parts.find(path).chain.values())[steps.astype(int)]
    return jnp.asarray(np.log(alpha2 / (1 - alpha2)), jnp.float32)


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_computes_what_the_published_code_does(name, opened):
    loaded, inputs = interop.load(opened(name), **OPTIONS.get(name, {})), family(name).inputs
    if "sigmas" in inputs:
        logsnr = -2 * jnp.log(jnp.asarray(inputs["sigmas"]))
        scale = 1 / jnp.sqrt(jnp.asarray(inputs["sigmas"]) ** 2 + 0.25)[:, None, None, None]
    else:
        logsnr, scale = logsnr_at(name, opened(name), inputs["timesteps"]), 1.0
    apply = jax.jit(loaded.network)
    output = "output" if "output" in family(name).outputs else "sample"
    mine = apply(loaded.params, scale * channels_last(inputs["x"]), logsnr, given(name))
    assert_equal(mine, family(name).outputs[output])
    if "wide" in inputs:
        assert_equal(apply(loaded.params, channels_last(inputs["wide"]), logsnr, given(name)), family(name).outputs["wide"])


def test_a_consistency_model_gives_the_published_x0(opened):
    """At the published sigmas, `x = x0 + sigma * noise`, and where x has the variance of the data instead."""
    inputs, outputs = family("consistency").inputs, family("consistency").outputs
    x, sigma = channels_last(inputs["x"]), jnp.asarray(inputs["sigmas"])[:, None, None, None]
    more = {"label": inputs["labels"], "head_channels": 16}
    denoise = jax.jit(interop.denoiser(opened("consistency"), **more))
    told = interop.load(opened("consistency"), head_channels=16).config
    assert (told["told"], told["told_scale"]) == ("log_sigma", 250)
    assert_equal(denoise(x, process.Level(jnp.ones_like(sigma), sigma)), outputs["x0"])
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    assert_equal(denoise(alpha * x, process.Level(alpha, alpha * sigma)), outputs["x0"])
    other = jax.jit(
        interop.denoiser(opened("consistency"), **more, new_order=False)
    )  # with heads split before queries, keys and values
    assert_equal(other(x, process.Level(jnp.ones_like(sigma), sigma)), outputs["legacy"])


def test_a_denoiser_wants_labels_and_options_that_there_are(opened):
    with pytest.raises(ConfigError, match="give labels"):
        interop.denoiser(opened("consistency"), head_channels=16)
    with pytest.raises(ConfigError, match="no option 'heds'"):
        interop.denoiser(opened("consistency"), heds=16)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_computes_what_the_published_code_does(name, opened):
    recorded, part = family(name), parts.find(opened(name)).autoencoder
    encode, decode = map(jax.jit, interop.autoencoder(opened(name)))
    images = channels_last(recorded.inputs["image" if "image" in recorded.inputs else "x"])
    latents, scale = channels_last(recorded.inputs["latents"]), 0.18215
    assert_equal(decode(scale * latents), recorded.outputs["decoded"])
    encoder, decoder = loading.autoencoder_modules(part.options)
    tree = jax.tree.map(np.asarray, loading.autoencoder_params(part))
    if name == "vq":
        assert_equal(encode(images), scale * recorded.outputs["latents"])
        codes = interop.open_tensors(opened(name))["quantize.embedding.weight"].astype(np.float32)
        chosen = jnp.asarray(codes[recorded.outputs["indices"]])
        assert_equal(decode(scale * chosen), recorded.outputs["decoded"])
        assert_equal(jax.jit(autoencoders.decode(decoder))(tree, latents), recorded.outputs["decoded_unquantized"])
        return
    mean, log_variance = np.split(recorded.outputs["moments"], 2, axis=1)
    latent, (_, std) = jax.jit(lambda x: (encode(x), autoencoders.encode(encoder)(tree, x)))(images)
    assert_equal(latent, scale * mean)
    assert_equal(2 * jnp.log(std), log_variance)


# Tables of names


@pytest.mark.parametrize("name", [*UNETS, "kl", "kl_old", "vq"])
def test_params_go_back_to_the_published_tensors(name, opened):
    found = parts.find(opened(name))
    for part in filter(None, (found.unet, found.autoencoder)):
        if part is found.unet:
            part = loading.with_options(part, OPTIONS.get(name, {}))
        kind, rows = part.options["kind"], loading.rows(part)
        tree = jax.tree.map(np.asarray, (loading.unet_params if kind == "unet" else loading.autoencoder_params)(part))
        shapes = (loading.unet_shapes if kind == "unet" else loading.autoencoder_shapes)(part.options)
        codes = ["quantize.embedding.weight"] if name == "vq" else []
        assert params.unknown(rows, shapes, [*part.arrays, "betas", "conv_in.weight.1"]) == [*codes, "betas", "conv_in.weight.1"]
        stored = dict(params.store(rows, tree))
        assert stored.keys() == part.arrays.keys() - set(codes)
        for each, array in stored.items():
            published = part.arrays[each]
            assert published.dtype == np.float16
            np.testing.assert_array_equal(array, published.astype(np.float32), strict=True, err_msg=each)
        if "Embed_0" in tree:
            assert not tree["Embed_0"]["embedding"][-1].any()


def test_old_names_of_attention_are_those_of_today(opened):
    old, new = (parts.find(opened(name)).unet for name in ("ddpm_old", "ddpm"))
    stored = family("ddpm_old").tensors["diffusion_pytorch_model.safetensors"]
    assert old.arrays.keys() == new.arrays.keys() != stored.keys()
    query = "mid_block.attentions.0.{}.weight"
    drawn = published_weights.draw(query.format("query"), tuple(stored[query.format("query")]))
    np.testing.assert_array_equal(old.arrays[query.format("to_q")], drawn)


def test_averages_of_a_checkpoint_are_used_where_all_are_there(tmp_path):
    """As in a checkpoint of latent diffusion with EMA; that of `ldm` has the average of one tensor alone."""
    prefix, names = "model.diffusion_model.", family("ldm").tensors["ldm.safetensors"]
    ema = {k: "model_ema.diffusion_model" + k.removeprefix(prefix).replace(".", "") for k in names if k.startswith(prefix)}
    published_weights.write_tensors(
        tmp_path / "a.safetensors", names | {average: names[k] for k, average in ema.items()}, "float16"
    )
    arrays = parts.find(tmp_path / "a.safetensors").unet.arrays
    for name, average in ema.items():
        np.testing.assert_array_equal(arrays[name.removeprefix(prefix)], published_weights.draw(average, tuple(names[name])))


def test_a_checkpoint_says_the_scale_of_its_latents(tmp_path):
    arrays = {k: published_weights.draw(k, tuple(shape)) for k, shape in family("ldm").tensors["ldm.safetensors"].items()}
    interop.save_tensors(tmp_path / "a.safetensors", arrays | {"scale_factor": np.array(0.25, np.float32)})
    assert parts.find(tmp_path / "a.safetensors").autoencoder.options["scaling_factor"] == 0.25


# Noise schedules


@pytest.fixture(scope="module")
def with_schedule(tmp_path_factory):
    """A published pipeline whose scheduler_config.json is another."""
    folder = published_weights.write(tmp_path_factory.mktemp("scheduler"), "ddpm", "float16")

    def write(config):
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("consistency", "sigmoid")])
def test_a_schedule_is_the_published_one(name, with_schedule):
    entry, path = SCHEDULES[name], with_schedule(SCHEDULES[name]["config"])
    chain = parts.find(path).chain
    total = entry["config"]["num_train_timesteps"]
    published = np.asarray(entry["alphas_cumprod"])
    times = (np.asarray(entry["indices"]) + 1) / total
    level = interop.schedule(path)(jnp.asarray(times, jnp.float32))
    clipped = published > 1e-6  # logsnr ends at -15, where zero_snr is clipped
    np.testing.assert_allclose((level.alpha**2)[clipped], published[clipped], rtol=2e-5)
    np.testing.assert_allclose(level.alpha**2, published, atol=1e-6)
    steps = np.unique(entry["timesteps"]).astype(int)[::-1]  # PNDM takes one of them twice
    spaced = process.from_timesteps(chain.values(), 10, chain.spacing, chain.steps_offset)
    alpha2 = np.cumprod(1 - chain.values())[steps]
    np.testing.assert_allclose(spaced.alpha[:-1] ** 2, alpha2, rtol=1e-5, atol=1e-12)
    if "sigmas" in entry:
        np.testing.assert_allclose(spaced.sigma / spaced.alpha, entry["sigmas"], rtol=2e-5)
    predicted = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}[entry["config"].get("prediction_type", "epsilon")]
    assert chain.prediction == predicted
    assert chain.clip == entry["config"].get("clip_sample", False)


def test_the_schedule_of_consistency_models_is_the_published_one(with_schedule):
    entry = SCHEDULES["consistency"]
    path = with_schedule(entry["config"])
    level = interop.schedule(path)(jnp.append(1 - 4 * jnp.arange(10) / 39, 0.0))  # ten of the forty, from the noisiest on
    np.testing.assert_allclose(level.sigma / level.alpha, entry["sigmas"], rtol=2e-5)
    assert parts.find(path).chain.clip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SCHEDULES["sigmoid"]["config"], "beta_schedule 'sigmoid' must be one of linear"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is of FlowMatchEulerDiscreteScheduler"),
        (SCHEDULES["consistency"]["config"] | {"sigma_data": 1.0}, "sigma_data 1.0 is not 0.5"),
        (SCHEDULES["ddpm"]["config"] | {"prediction_type": "flow"}, "prediction_type 'flow' must be"),
    ],
)
def test_a_schedule_without_betas_of_ours_is_refused(config, words, with_schedule):
    with pytest.raises(DataError, match=words):
        interop.schedule(with_schedule(config))


# Published networks in full size


CROSS, DOWN, ATTEND, RESNET, ENCODER = (
    f"{kind}2D" for kind in ("CrossAttnDownBlock", "DownBlock", "AttnDownBlock", "ResnetDownsampleBlock", "DownEncoderBlock")
)
CONDITIONAL = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4}
UNCONDITIONAL = {"_class_name": "UNet2DModel", "attention_head_dim": None, "downsample_padding": 0, "freq_shift": 1}
LARGE = {
    "Stable Diffusion 1.5": (
        859_520_964,
        [CROSS, CROSS, CROSS, DOWN],
        [320, 640, 1280, 1280],
        CONDITIONAL | {"attention_head_dim": 8, "cross_attention_dim": 768},
    ),
    "Stable Diffusion 2.1": (
        865_910_724,
        [CROSS, CROSS, CROSS, DOWN],
        [320, 640, 1280, 1280],
        CONDITIONAL | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    ),
    "Stable Diffusion XL": (
        2_567_463_684,
        [DOWN, CROSS, CROSS],
        [320, 640, 1280],
        CONDITIONAL
        | {"attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True}
        | {"transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        | {"projection_class_embeddings_input_dim": 2816},
    ),
    "KL-f8": (83_653_863, [ENCODER] * 4, [128, 256, 512, 512], {"_class_name": "AutoencoderKL", "latent_channels": 4}),
    "VQ-f4": (
        55_322_782 - 8192 * 3,  # codes
        [ENCODER] * 3,
        [128, 256, 512],
        {"_class_name": "VQModel", "latent_channels": 3, "num_vq_embeddings": 8192},
    ),
    "ddpm-cifar10-32": (35_746_307, [DOWN, ATTEND, DOWN, DOWN], [128, 256, 256, 256], UNCONDITIONAL),
    "ddpm-celebahq-256": (113_673_219, [DOWN, DOWN, DOWN, DOWN, ATTEND, DOWN], [128, 128, 256, 256, 512, 512], UNCONDITIONAL),
    "ADM ImageNet-64": (
        295_899_267 + 4 * 192,  # our null label
        [RESNET, ATTEND, ATTEND, ATTEND],
        [192, 384, 576, 768],
        {"_class_name": "UNet2DModel", "downsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
        | {"attention_head_dim": 64, "num_class_embeds": 1000, "layers_per_block": 3},
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_published_networks_have_their_number_of_params(name):
    count, down, widths, config = LARGE[name]
    up = [
        kind.replace("Downsample", "Upsample").replace("Encoder", "Decoder").replace("DownBlock", "UpBlock") for kind in down[::-1]
    ]
    up = [kind.replace("DownDecoder", "UpDecoder") for kind in up]
    found = configs.options(config | {"down_block_types": down, "up_block_types": up, "block_out_channels": widths}, name)
    shapes = loading.autoencoder_shapes(found) if found["kind"] == "autoencoder" else loading.unet_shapes(found)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
