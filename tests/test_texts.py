"""Text and image encoders, against transformers and OpenCLIP (`make_encoders.py`)."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import published_configs
import published_weights
import pytest
from PIL import Image
from published_weights import TEXTS, write_tokenizer

from jaxdiff import interop
from jaxdiff.app.runs import imported
from jaxdiff.interop import loading, params, parts, text_configs, texts
from jaxdiff.interop.texts import Encoded
from jaxdiff.interop.tokens import tokenizer
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.models.vision import MEAN, STD, normalised

PLACES = (0, 1, 2, 8, 9, 40, 76)
STRINGS = json.loads((TEXTS / "texts.json").read_text())
SD1, FIRST = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."


@functools.cache
def family(name):
    return published_weights.family(name)


def write_encoder(folder, name, without=""):
    """A family in a folder, without the beginning of its names; what is drawn for a tensor follows from its whole name."""
    folder.mkdir(parents=True)
    ((shapes),) = family(name).tensors.values()
    arrays = {key: published_weights.draw(key, tuple(shape)).astype(np.float16) for key, shape in shapes.items()}
    interop.save_tensors(folder / "model.safetensors", {key.removeprefix(without): array for key, array in arrays.items()})
    (folder / "config.json").write_text(json.dumps(family(name).config))
    return folder


def write_pipeline(folder, kind, **encoders):
    """A UNet with text encoders: names of families, and the padding of their tokenizers."""
    shutil.copytree(published_weights.write(folder / "draft", "sd1", "float16") / "unet", folder / "unet")
    shutil.rmtree(folder / "draft")
    index = {**published_configs.STABLE_DIFFUSION, "_class_name": kind, "vae": [None, None]}
    for name, (encoder, without, padding) in encoders.items():
        write_encoder(folder / name, encoder, without)
        write_tokenizer(folder / f"tokenizer{name.removeprefix('text_encoder')}", padding)
        index |= {name: ["transformers", family(encoder).config["architectures"][0]]}
        index |= {f"tokenizer{name.removeprefix('text_encoder')}": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    encoders = {"text_encoder": ("clip_sd1", SD1, "sd1")}
    return write_pipeline(tmp_path_factory.mktemp("stable"), "StableDiffusionPipeline", **encoders)


@pytest.fixture(scope="module")
def stable_xl(tmp_path_factory):
    encoders = {"text_encoder": ("clip_sd1", SD1, "sd1"), "text_encoder_2": ("clip_projection", "", "sdxl")}
    return write_pipeline(tmp_path_factory.mktemp("stable_xl"), "StableDiffusionXLPipeline", **encoders)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function: CompVis' checkpoint of a UNet, which holds nothing, and text encoders."""

    @functools.cache
    def path(*names):
        file = tmp_path_factory.mktemp("checkpoint") / "sd.safetensors"
        network = {k: v for k, v in family("ldm").tensors["ldm.safetensors"].items() if k.startswith("model.diffusion_model.")}
        shapes = {k: v for name in names for each in family(name).tensors.values() for k, v in each.items()}
        arrays = {k: np.zeros(shape, np.float16) for k, shape in network.items()}
        arrays |= {k: published_weights.draw(k, tuple(shape)).astype(np.float16) for k, shape in shapes.items()}
        interop.save_tensors(file, arrays)
        return file

    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("clip") / "clip", "clip")


def assert_equal(mine, theirs, tolerance=1e-5):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def encoded(encoders, name):
    """Context, at the recorded places, and pooled vector of a family's tokens."""
    trees = tuple(jax.tree.map(np.asarray, texts.text_params(part)) for part in encoders)
    tokens = (jnp.asarray(family(name).inputs["tokens"], jnp.int32),) * len(encoders)
    context, pooled = jax.jit(texts.encoder(encoders))(trees, tokens)
    return context[:, jnp.array(PLACES)], pooled


def test_a_text_encoder_computes_what_transformers_does(stable, stable_xl):
    outputs, found = family("clip_sd1").outputs, parts.find(stable)
    context, pooled = encoded(found.texts, "clip_sd1")
    assert_equal(context, outputs["states"])
    assert_equal(pooled, outputs["pooled"])
    assert found.skipped == ()
    alone = parts.find(stable / "text_encoder")
    assert alone.texts[0].options == found.texts[0].options
    assert (alone.unet, alone.autoencoder, alone.chain, alone.image) == (None, None, None, None)
    second = family("clip_projection").outputs
    xl = parts.find(stable_xl).texts
    assert_equal(encoded(xl[:1], "clip_sd1")[0], outputs["penultimate"])
    context, pooled = encoded(xl[1:], "clip_projection")
    assert_equal(context, second["penultimate"])
    assert_equal(pooled, second["projected"])
    assert parts.find(stable_xl / "text_encoder_2").texts[0].options == xl[1].options  # by the pipeline that it is in
    plain = xl[1]._replace(options=xl[1].options | {"skip": 0, "final_norm": True})
    assert_equal(encoded([plain], "clip_projection")[0], second["states"])


def test_a_checkpoint_has_the_text_encoder_of_stable_diffusion_1(checkpoint):
    found = parts.find(checkpoint("clip_sd1"))
    context, pooled = encoded(found.texts, "clip_sd1")
    assert_equal(context, family("clip_sd1").outputs["states"])
    assert_equal(pooled, family("clip_sd1").outputs["pooled"])
    assert found.skipped == ()
    assert found.unet is not None


def test_a_checkpoint_has_the_text_encoder_of_stable_diffusion_2(checkpoint):
    (part,) = parts.find(checkpoint("clip_sd2")).texts
    context, pooled = encoded([part], "clip_sd2")
    assert_equal(context, family("clip_sd2").outputs["normed"])
    assert_equal(pooled, family("clip_sd2").outputs["projected"])
    whole = params.Renamed(part.arrays, {name: name for name in part.arrays if name != "text_projection.weight"})
    shapes = {name: whole[name].shape for name in whole}
    assert text_configs.inferred(shapes, part.column)["skip"] == 0  # converted from diffusers, whose last layer is the last used


def test_a_checkpoint_has_the_text_encoders_of_stable_diffusion_xl(checkpoint):
    found = parts.find(checkpoint("clip_sdxl"))
    context, pooled = encoded(found.texts, "clip_sdxl")
    assert_equal(context, family("clip_sdxl").outputs["context"])
    assert_equal(pooled, family("clip_sdxl").outputs["pooled"])
    assert found.skipped == ()


def test_a_clip_sees_texts_and_images(clip):
    outputs, found = family("clip").outputs, parts.find(clip)
    states, pooled = encoded(found.texts, "clip")
    assert_equal(states, outputs["states"])
    assert_equal(pooled, outputs["text"])
    pixels = jnp.moveaxis(jnp.asarray(family("clip").inputs["images"]), 1, -1) / 4  # within [-1, 1] of ours
    module = texts.image_module(found.image.options)
    tree = jax.tree.map(np.asarray, texts.image_params(found.image))
    apply = jax.jit(module.apply)
    assert_equal(apply({"params": tree}, 4 * pixels), outputs["image"])
    images = 2 * (pixels * jnp.asarray(STD)[None, None, None] + jnp.asarray(MEAN)[None, None, None]) - 1
    encode = interop.image_encoder(clip)
    assert_equal(encode(images), apply({"params": tree}, pixels))
    wide = jnp.concatenate([jnp.ones((2, 12, 4, 3)), images, -jnp.ones((2, 12, 3, 3))], axis=2)
    assert_equal(encode(wide), encode(images))  # the middle square alone


@pytest.mark.parametrize("shape", [(50, 31), (24, 24), (36, 71), (12, 12)])
def test_images_are_resized_as_for_clip(shape):
    """By Pillow, as in its published code, whose pixels are whole numbers."""
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    height, width = (12 * size // min(shape) for size in shape)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - 12) / 2), round((width - 12) / 2)
    published = (np.asarray(resized)[top : top + 12, left : left + 12] / 255 - MEAN) / STD
    ours = normalised(jnp.asarray(pixels[None] / 127.5 - 1, jnp.float32), 12)[0]
    np.testing.assert_allclose(ours, published, atol=1.01 / 255 / min(STD))


def test_a_text_encoder_is_a_function_of_texts(stable, stable_xl, checkpoint):
    prompts = ["a photo of an astronaut", ""]
    encode = interop.text_encoder(stable)
    context = encode(prompts)
    assert context.shape == (2, 77, 128)
    (part,) = parts.find(stable).texts
    tree = jax.tree.map(np.asarray, texts.text_params(part))
    states, _ = jax.jit(texts.text_module(part.options).apply)({"params": tree}, jnp.asarray(tokenizer(TEXTS)(prompts)))
    assert_equal(context, states)
    assert_equal(jax.jit(lambda encode: encode(prompts))(encode), context)  # params are arguments
    assert len(jax.tree.leaves(encode)) == len(jax.tree.leaves(tree))
    xl = interop.pooled_text_encoder(stable_xl)(prompts)
    assert isinstance(xl, Encoded)
    assert (xl.context.shape, xl.pooled.shape) == ((2, 77, 128 + 32), (2, 24))
    zero_padded = tokenizer(write_tokenizer(stable_xl / "zeros", "sdxl"))(prompts)
    second = parts.find(stable_xl).texts[1]
    tree = jax.tree.map(np.asarray, texts.text_params(second))
    states, pooled = jax.jit(texts.text_module(second.options).apply)({"params": tree}, jnp.asarray(zero_padded))
    assert_equal(xl.context[..., 128:], states)
    assert_equal(xl.pooled, pooled)
    assert_equal(interop.text_encoder(stable_xl)(prompts), xl.context)
    file = checkpoint("clip_sd1")
    assert_equal(interop.text_encoder(file, TEXTS)(prompts), context)
    with pytest.raises(ConfigError, match=rf"no tokenizer beside {file}: cond_stage_model\.transformer; give"):
        interop.text_encoder(file)
    with pytest.raises(ConfigError, match="2 tokenizers are wanted, one a text encoder, and 1 were given"):
        interop.text_encoder(stable_xl, TEXTS)


def test_bfloat16_is_computed_in_and_params_stay_float32(stable):
    (part,) = parts.find(stable).texts
    tree = jax.tree.map(np.asarray, texts.text_params(part))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}
    tokens = jnp.asarray(family("clip_sd1").inputs["tokens"], jnp.int32)
    states, pooled = jax.jit(texts.text_module(part.options, jnp.bfloat16).apply)({"params": tree}, tokens)
    assert states.dtype == pooled.dtype == jnp.bfloat16
    assert_equal(states[:, jnp.array(PLACES)].astype(jnp.float32), family("clip_sd1").outputs["states"], 0.05)


def test_params_go_back_to_the_published_tensors(stable_xl, checkpoint, clip):
    whole = parts.find(clip)
    files = [parts.find(checkpoint(name)) for name in ("clip_sd1", "clip_sd2", "clip_sdxl")]
    for part in (*parts.find(stable_xl).texts, *(part for file in files for part in file.texts), *whole.texts, whole.image):
        tree = (texts.image_params if part is whole.image else texts.text_params)(part)
        stored = dict(params.store(loading.rows(part), tree))
        assert stored.keys() == part.arrays.keys()
        for name, array in stored.items():
            np.testing.assert_array_equal(array, part.arrays[name].astype(np.float32), strict=True, err_msg=name)


def test_names_of_transformers_5_are_known(tmp_path):
    """Which has no `text_model.` in front of those of a text encoder without a projection."""
    new = parts.find(write_encoder(tmp_path / "new", "clip_sd1", f"{SD1}text_model.")).texts[0]
    assert new.arrays.keys() == parts.find(write_encoder(tmp_path / "old", "clip_sd1", SD1)).texts[0].arrays.keys()


LARGE = {
    "Stable Diffusion 1": (123_060_480, {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
    "Stable Diffusion 2": (340_387_840, {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}),
    "Stable Diffusion XL, second": (
        694_659_840,
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280, "hidden_act": "gelu"},
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_published_text_encoders_have_their_number_of_params(name):
    number, config = LARGE[name]
    kind = "CLIPTextModelWithProjection" if "projection_dim" in config else "CLIPTextModel"
    (found,) = text_configs.options({**config, "architectures": [kind]}, name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(texts.text_shapes(found))) == number


def test_the_image_encoder_of_vit_l_has_its_number_of_params():
    config = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}
    (found,) = text_configs.options({**config, "projection_dim": 768, "architectures": ["CLIPVisionModelWithProjection"]}, "")
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(texts.image_shapes(found))) == 303_966_208


# Out again


@pytest.fixture
def save(stable, tmp_path):
    """A function that writes text encoders beside a UNet, and says where; pooled texts make it one of Stable Diffusion XL."""

    def write(encoders, *tokenizers, **options):
        found = parts.find(stable)
        networks = [
            interop.TextNetwork(texts.text_params(part), part.options, tokenizer(each))
            for part, each in zip(encoders, tokenizers, strict=True)
        ]
        unet = interop.Network(loading.unet_params(found.unet), found.unet.options | options, (8, 8))
        interop.save_pipeline(tmp_path / "out", unet, found.chain, None, "float32", networks)
        return tmp_path / "out"

    return write


XL = {"pooled_channels": 24, "size_features": 8}


@pytest.mark.parametrize("name", ["stable", "stable_xl"])
def test_text_encoders_are_written_beside_a_unet(name, save, request):
    path = request.getfixturevalue(name)
    before = parts.find(path).texts
    after = parts.find(save(before, *(part.tokenizer for part in before), **(XL if name == "stable_xl" else {})))
    assert after.skipped == ()
    for old, new in zip(before, after.texts, strict=True):
        assert new.options == old.options
        trees = (texts.text_params(part) for part in (new, old))
        jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(np.asarray, tree) for tree in trees))
        published, ours = tokenizer(old.tokenizer), tokenizer(new.tokenizer)
        np.testing.assert_array_equal(ours(STRINGS), published(STRINGS))
        (new.tokenizer / "tokenizer.json").unlink()  # as transformers 4 reads it
        np.testing.assert_array_equal(tokenizer(new.tokenizer)(STRINGS), published(STRINGS))


def test_layers_that_states_leave_out_are_not_written(save, checkpoint):
    (again,) = parts.find(save(parts.find(checkpoint("clip_sd2")).texts, TEXTS)).texts
    assert (again.options["layers"], again.options["skip"], again.options["projection"]) == (2, 0, 0)
    assert_equal(encoded([again], "clip_sd2")[0], family("clip_sd2").outputs["normed"])


def test_text_encoders_whose_states_a_pipeline_cannot_have(stable, stable_xl, save, tmp_path):
    with pytest.raises(DataError, match="after its final norm"):
        save(parts.find(stable_xl).texts[:1], TEXTS)
    with pytest.raises(DataError, match="before the last layer"):
        save(parts.find(stable).texts, TEXTS, **XL)
    assert not (tmp_path / "out").exists()


# Wrong files


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' must be quick_gelu or gelu"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000 must be a positive whole number"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000 must be a whole number from 1 to 256"),
        ({"num_attention_heads": 3}, "hidden_size 128 cannot be shared by num_attention_heads 3"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan must be a positive number"),
        ({"eos_token_id": [2]}, "eos_token_id [2] must be a token, or null"),
        ({"vocab_size": "many"}, "vocab_size 'many' must be a positive whole number"),
        ({"architectures": ["CLIPModel"]}, "lacks text_config or vision_config"),
        ({"architectures": ["T5EncoderModel"]}, "is of ['T5EncoderModel']; jaxdiff opens"),
        ({"architectures": None}, "is of None; jaxdiff opens"),
        ({"intermediate_size": 95}, "encoder.layers.0.mlp.fc1.weight is [96, 128], not [95, 128]"),
        ({"num_hidden_layers": 4}, "encoder.layers.3.mlp.fc1.weight"),
        ({"num_hidden_layers": 2}, "has no place for encoder.layers.2.layer_norm1.bias"),
    ],
)
def test_a_config_that_is_wrong(changed, words, stable, tmp_path):
    folder = shutil.copytree(stable / "text_encoder", tmp_path / "text_encoder")
    (folder / "config.json").write_text(json.dumps({**family("clip_sd1").config, **changed}))
    with pytest.raises(DataError) as error:
        interop.text_encoder(folder, TEXTS)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_vocabulary(clip, stable, tmp_path):
    with pytest.raises(DataError, match=f"{TEXTS} has tokens up to 49407, and {clip} knows 100; give its own tokenizer"):
        interop.text_encoder(clip, TEXTS)
    long = write_tokenizer(tmp_path / "long", "sd1", model_max_length=78)
    with pytest.raises(DataError, match=f"makes 78 tokens of a text, and {stable / 'text_encoder'} takes 77"):
        interop.text_encoder(stable, long)


def test_paths_without_what_is_wanted(stable, clip, tmp_path):
    with pytest.raises(ConfigError, match="holds no text encoder; write the folder of a pipeline or of its text encoder"):
        interop.text_encoder(stable / "unet")
    with pytest.raises(ConfigError, match="holds no image encoder; write the folder of a CLIP"):
        interop.image_encoder(stable / "text_encoder")
    with pytest.raises(ConfigError, match=r"holds no UNet; jaxdiff\.interop\.text_encoder opens it"):
        interop.load(clip)
    assert parts.find(stable / "unet").texts == ()
    with pytest.raises(ConfigError, match="holds an encoder of texts or images alone; import the pipeline that it is of"):
        imported.import_weights(str(clip), tmp_path / "run", imported.Wanted())


def test_a_text_encoder_that_is_not_there_is_listed(stable, tmp_path):
    shutil.copytree(stable, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "text_encoder")
    found = parts.find(tmp_path / "copy")
    assert found.texts == ()
    assert found.skipped == ("text_encoder (CLIPTextModel, not there)", "tokenizer (CLIPTokenizer)")
