"""LoRA files of the world as our adapters: against what diffusers computes with them, and against sums of published kernels."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff import interop
from jaxdiff.interop import parts, texts
from jaxdiff.io.errors import DataError
from jaxdiff.models import lora

RECORDED = ("lora_peft", "lora_diffusers", "lora_diffusers_old", "lora_kohya")
OPTIONS = {"adm": {"head_channels": 16}, "ldm": {"heads": 2}}
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Published networks by family, opened once, with the path of their files."""

    @functools.cache
    def load(name):
        folder = published_weights.write(tmp_path_factory.mktemp(name), name)
        path = folder / "ldm.safetensors" if name == "ldm" else folder / "adm.safetensors" if name == "adm" else folder
        return interop.load(path, **OPTIONS.get(name, {})), path

    return load


@pytest.fixture(scope="module")
def computed(base):
    """What the UNet of `sd1` computes with adapters of its own."""
    inputs, (network, path) = published_weights.family("sd1").inputs, base("sd1")
    alpha2 = np.cumprod(1 - parts.find(path).chain.values())[inputs["timesteps"]]
    x, context = jnp.moveaxis(inputs["x"], 1, -1), jnp.asarray(inputs["context"])
    logsnr = jnp.asarray(np.log(alpha2 / (1 - alpha2)), jnp.float32)
    apply = jax.jit(network.network)
    return lambda adapters: apply(lora.merged(network.params, adapters), x, logsnr, {"context": context})


def write(path, tensors, metadata=None):
    """A safetensors file of tensors, of zeros where a shape is given."""
    arrays = {k: np.zeros(v, np.float32) if isinstance(v, tuple | list) else v for k, v in tensors.items()}
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


def pair(layer, down, up, style="unet.{}.lora_{}.weight", kinds="AB"):
    return {style.format(layer, kind): matrix for kind, matrix in zip(kinds, (down, up), strict=True)}


def refusal(path, options):
    with pytest.raises(DataError) as caught:
        interop.load_lora(path, options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("name", RECORDED)
def test_a_network_with_a_lora_computes_what_diffusers_does(name, base, computed, tmp_path):
    recorded = published_weights.family(name)
    opened = interop.load_lora(published_weights.write(tmp_path, name, "float16"), base("sd1")[0].config)
    expected = np.moveaxis(recorded.outputs["sample"], 1, -1)
    np.testing.assert_allclose(computed(opened.params), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    (names,) = recorded.tensors.values()
    text = {each for each in names if each.startswith("lora_te_")}
    assert set(opened.skipped) == text
    assert bool(text) == (name == "lora_kohya")
    adapted = len(jax.tree.leaves(opened.params))
    assert adapted == sum(not each.endswith(".alpha") for each in set(names) - text)


# The same difference, added to the published kernels


def peft(modules, folder):
    """One alpha for all layers but those of a pattern, in the header."""
    settings = {"unet.lora_alpha": 6, "unet.r": 2, "unet.alpha_pattern": {"conv1": 5, r"mid_block\..*": 3}}
    alpha = {each: 5 if each.endswith("conv1") else 3 if each.startswith("mid_block.") else 6 for each in modules}
    tensors = {k: v for each, matrices in modules.items() for k, v in pair(each, *matrices).items()}
    write(folder / "lora.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})
    return {each: alpha[each] / len(modules[each][0]) for each in modules}


def peft_folder(modules, folder):
    """As `save_pretrained` of peft writes it, by rsLoRA."""
    style = "base_model.model.{}.lora_{}.weight"
    write(folder / "adapter_model.safetensors", {k: v for each, m in modules.items() for k, v in pair(each, *m, style).items()})
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "use_rslora": True, "alpha_pattern": {}}))
    return {each: 3 / np.sqrt(len(down)) for each, (down, _) in modules.items()}


def kohya(modules, folder):
    tensors, scales = {}, {}
    for number, (each, matrices) in enumerate(modules.items()):
        layer = each.replace(".", "_")
        tensors |= pair(layer, *matrices, "lora_unet_{}.lora_{}.weight", ("down", "up"))
        tensors[f"lora_unet_{layer}.alpha"] = np.array(1 + number % 3, np.float32)
        scales[each] = (1 + number % 3) / len(matrices[0])
    write(folder / "lora.safetensors", tensors)
    return scales


def dotted(modules, folder):
    """Names of the network itself, without alphas: each is the rank."""
    style = "diffusion_model.{}.lora.{}.weight", ("down", "up")
    write(folder / "lora.safetensors", {k: v for each, m in modules.items() for k, v in pair(each, *m, *style).items()})
    return dict.fromkeys(modules, 1.0)


def differences(shapes):
    """Down and up, of ranks 1 to 3, for two of three layers: also for some of queries, keys and values."""
    random, modules = np.random.RandomState(0), {}
    for number, (name, shape) in enumerate(shapes.items()):
        if name.endswith(".weight") and len(shape) > 1 and "label_emb.weight" not in name and number % 3:
            rank, (out, fan_in, *kernel) = 1 + number % 3, shape
            down, up = (rank, fan_in, *kernel), (out, rank, *(1 for _ in kernel))
            modules[name.removesuffix(".weight")] = tuple(random.standard_normal(each).astype(np.float32) for each in (down, up))
    return modules


@pytest.mark.parametrize(
    ("name", "style"),
    [("sd2", peft), ("sdxl", peft_folder), ("ddpm", dotted), ("ldm", kohya), ("adm", dotted)],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_adapters_are_the_difference_of_published_kernels(name, style, base, tmp_path):
    network, _ = base(name)
    prefix = "model.diffusion_model." if name == "ldm" else ""
    (file, shapes), *_ = published_weights.family(name).tensors.items()
    own = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
    modules = differences(own)
    (tmp_path / "lora").mkdir()
    scales = style(modules, tmp_path / "lora")
    tensors = {k: published_weights.draw(k, tuple(shape)) for k, shape in shapes.items()}
    for each, (down, up) in modules.items():
        matrix = up.reshape(len(up), -1).astype(np.float64) @ down.reshape(len(down), -1)
        tensors[f"{prefix}{each}.weight"] += (scales[each] * matrix).reshape(own[f"{each}.weight"]).astype(np.float32)
    folder = published_weights.write(tmp_path / "merged", name)
    write(folder / file, tensors)
    expected = interop.load(folder / file if name in OPTIONS else folder, **OPTIONS.get(name, {})).params
    adapters = interop.load_lora(tmp_path / "lora", network.config).params
    mine = flatten_dict(lora.merged(network.params, adapters))
    for path, kernel in flatten_dict(expected).items():
        np.testing.assert_allclose(mine[path], kernel, rtol=0, atol=2e-5, err_msg="/".join(path))


# What is saved


def adapters_of(params):
    """Of rank 3 in dense layers and 2 in convolutions, wherever that is smaller; up is not zero."""
    dense = lora.init(jax.random.key(0), params, 3, lora.projections)
    convolutions = lora.init(jax.random.key(1), params, 2, lambda path, kernel: path[-1] == "kernel" and kernel.ndim == 4)
    random = np.random.RandomState(0)
    return unflatten_dict(
        {
            path: random.standard_normal(leaf.shape).astype(np.float32) if path[-1] == "up" else np.asarray(leaf)
            for path, leaf in (flatten_dict(dense) | flatten_dict(convolutions)).items()
        }
    )


@pytest.mark.parametrize("name", ["sd1", "ddpm"])
def test_saved_adapters_come_back_bit_for_bit_and_fit_published_kernels(name, base, tmp_path):
    network, _ = base(name)
    adapters = adapters_of(network.params)
    interop.save_lora(tmp_path / "lora.safetensors", adapters, network.config)
    opened = interop.load_lora(tmp_path / "lora.safetensors", network.config)
    jax.tree.map(np.testing.assert_array_equal, opened.params, adapters)
    assert opened.skipped == ()
    (shapes,) = published_weights.family(name).tensors.values()
    saved = interop.open_tensors(tmp_path / "lora.safetensors")
    ranks = {}
    for file in saved:
        layer, which = re.fullmatch(r"unet\.(.+)\.lora_([AB])\.weight", file).groups()
        out, fan_in, *kernel = shapes[f"{layer}.weight"]
        ranks[layer] = saved[file].shape[which == "B"]
        assert saved[file].shape == ((ranks[layer], fan_in, *kernel) if which == "A" else (out, ranks[layer], *(1 for _ in kernel)))
    settings = json.loads(saved.metadata["lora_adapter_metadata"])  # without it, some versions of diffusers take one alpha for all
    alphas = {each: settings["unet.alpha_pattern"].get(each, settings["unet.lora_alpha"]) for each in ranks}
    assert alphas == ranks == {each: settings["unet.rank_pattern"].get(each, settings["unet.r"]) for each in ranks}
    assert set(settings["unet.target_modules"]) == set(ranks)


def test_adapters_that_do_not_fit_are_not_saved(base, tmp_path):
    network, _ = base("sd1")
    other = {"Conv_0": {"kernel": {"down": np.ones((5, 1), np.float32), "up": np.ones((1, 32), np.float32)}}}
    with pytest.raises(ValueError, match="Conv_0/kernel"):
        interop.save_lora(tmp_path / "lora.safetensors", other, network.config)
    assert not list(tmp_path.iterdir())


# What is refused


def test_a_lora_of_another_base_is_named_with_its_shapes(base, tmp_path):
    options = base("sd1")[0].config
    path = write(tmp_path / "one.safetensors", pair(QUERY, (4, 64), (64, 4)) | pair(KEY, (4, 768), (64, 4)))
    message = refusal(path, options)
    assert f"unet.{KEY}.lora_A.weight is [4, 768], not [4, 12]" in message
    assert "a context 768 wide (Stable Diffusion 1), and this network's is 12" in message
    wide = write(tmp_path / "two.safetensors", pair(QUERY, (4, 64), (320, 4)))
    assert f"unet.{QUERY}.lora_B.weight is [320, 4], not [64, 4]" in (message := refusal(wide, options))
    assert "context" not in message
    ranks = write(tmp_path / "three.safetensors", pair(QUERY, (4, 64), (64, 8)))
    assert "lora_B.weight is [64, 8], not [64, 4]" in refusal(ranks, options)
    square = write(tmp_path / "four.safetensors", pair("conv_in", (4, 4, 1, 1), (32, 4, 1, 1)))
    assert "lora_A.weight is [4, 4, 1, 1], not [4, 4, 3, 3]" in refusal(square, options)
    flat = write(tmp_path / "five.safetensors", pair("conv_in", (4,), (32, 4)))
    assert "lora_A.weight is [4], not [4, 4, 3, 3]" in refusal(flat, options)
    path = write(
        tmp_path / "six.safetensors", pair("transformer_blocks.0.attn.to_q", (4, 64), (64, 4), "transformer.{}.lora_{}.weight")
    )
    assert "no place for transformer.transformer_blocks.0.attn.to_q.lora_A.weight [4, 64]" in refusal(path, options)
    published_weights.write(tmp_path / "peft", "lora_peft")
    assert "no place for unet." in refusal(tmp_path / "peft", base("ddpm")[0].config)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "Tucker"),
        ("oft_blocks", "OFT"),
        ("diff", "differences of whole weights"),
        ("lora_B.bias", "a LoRA with biases"),
        ("lora_C.weight", "which is no part of a LoRA"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(ending, words, base, tmp_path):
    whole = pair(QUERY, (4, 64), (64, 4))
    options = base("sd1")[0].config
    interop.load_lora(write(tmp_path / "plain.safetensors", whole), options)
    message = refusal(write(tmp_path / "other.safetensors", whole | {f"unet.{QUERY}.{ending}": (4,)}), options)
    assert words in message
    assert f"unet.{QUERY}.{ending}" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"unet.conv_in.lora_A.weight": (4, 4, 3, 3)}, "unet.conv_in needs down and up"),
        ({f"unet.{QUERY}.alpha": (2,)}, f"unet.{QUERY}.alpha must be one number"),
        ({f"unet.{QUERY}.alpha": np.array(np.nan, np.float32)}, f"unet.{QUERY}.alpha must be one number"),
        (pair(QUERY, (4, 64), (64, 4), "{}.lora_{}.weight"), "another LoRA of the same layer"),
        ({f"unet.{QUERY}.lora_A.other.weight": (4, 64)}, "of two LoRAs"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)}, "looks like diffusers' UNet"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(more, words, base, tmp_path):
    path = write(tmp_path / "lora.safetensors", pair(QUERY, (4, 64), (64, 4)) | more)
    if "looks like" in words:
        path = write(tmp_path / "unet.safetensors", more)
    assert words in refusal(path, base("sd1")[0].config)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"unet.lora_alpha": "8"}',
        '{"unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 1}}',
        '{"unet.alpha_pattern": [1]}',
    ],
)
def test_settings_that_cannot_be_read_are_refused(text, base, tmp_path):
    path = write(tmp_path / "lora.safetensors", pair(QUERY, (4, 64), (64, 4)), {"lora_adapter_metadata": text})
    assert "lora_adapter_metadata cannot be read" in refusal(path, base("sd1")[0].config)


def test_dora_is_also_known_by_its_settings(base, tmp_path):
    path = write(tmp_path / "lora.safetensors", pair(QUERY, (4, 64), (64, 4)), {"lora_adapter_metadata": '{"unet.use_dora": true}'})
    assert "DoRA" in refusal(path, base("sd1")[0].config)


def test_adapters_of_text_encoders_alone_are_refused(base, tmp_path):
    names = ("text_encoder.text_model.q_proj.lora_A.weight", "text_encoder_2.q_proj.lora_B.weight", "lora_te2_mlp_fc1.alpha")
    path = write(tmp_path / "lora.safetensors", dict.fromkeys(names, (4, 4)))
    assert "LoRA of text encoders alone" in refusal(path, base("sd1")[0].config)


# Text encoders

STYLES = {  # what layers and kinds are called, and whether layers have underscores for dots
    "peft": ("base_model.model.text_encoder{}.text_model.", "{}.lora_{}.weight", "AB"),
    "diffusers": ("text_encoder{}.text_model.", "{}.lora_linear_layer.{}.weight", ("down", "up")),
    "kohya": ("lora_te{}_text_model_", "{}.lora_{}.weight", ("down", "up")),
}
ADAPTED = {"encoder.layers.0.self_attn.q_proj": 3, "encoder.layers.0.self_attn.v_proj": 2, "encoder.layers.2.mlp.fc1": 4}
ADAPTED |= {"encoder.layers.1.self_attn.out_proj": 1}


def text_tensors(arrays, style, number):
    """Tensors of a LoRA of a text encoder, and the published kernels with it: `W + alpha / rank * up down`."""
    prefix, ending, kinds = STYLES[style]
    named = {"kohya": ("1", "2")}.get(style, ("", "_2"))[number]
    random, tensors, moved = np.random.RandomState(number), {}, dict(arrays)
    for layer, rank in ADAPTED.items():
        kernel = arrays[f"{layer}.weight"].astype(np.float32)
        up, down = (
            random.standard_normal(shape).astype(np.float32) / 8 for shape in ((len(kernel), rank), (rank, kernel.shape[1]))
        )
        ours = prefix.format(named) + (layer.replace(".", "_") if style == "kohya" else layer)
        tensors |= pair(ours, down, up, ending, kinds)
        strength = 1.0
        if style == "kohya":
            tensors[f"{ours}.alpha"], strength = np.array(8, np.float32), 8 / rank
        moved[f"{layer}.weight"] = kernel + strength * up @ down
    return tensors, moved


@pytest.fixture(scope="module")
def text_parts(tmp_path_factory):
    """Two text encoders, in the order of Stable Diffusion XL."""
    found = []
    for name in ("clip", "clip_projection"):
        folder = published_weights.write(tmp_path_factory.mktemp(name), name, "float16")
        found += parts.find(folder).texts
    return found


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_adapts_text_encoders(style, text_parts, base, tmp_path):
    (first, moved_first), (second, moved_second) = (
        text_tensors(part.arrays, style, number) for number, part in enumerate(text_parts)
    )
    path = write(tmp_path / "lora.safetensors", {**first, **second, **pair(QUERY, (4, 64), (64, 4))})
    options, given = base("sd1")[0].config, [part.options for part in text_parts]
    opened = interop.load_lora(path, options, given)
    assert opened.skipped == ()
    assert list(opened.params) != []
    for part, adapters, moved in zip(text_parts, opened.texts, (moved_first, moved_second), strict=True):
        params = jax.tree.map(np.asarray, texts.text_params(part))
        wanted = texts.text_params(part._replace(arrays=moved))
        for mine, theirs in zip(jax.tree.leaves(lora.merged(params, adapters)), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(mine, np.asarray(theirs), atol=1e-6)
    one = interop.load_lora(path, options, given[:1])
    assert one.skipped == tuple(sorted(second))
    assert jax.tree.structure(one.texts) == jax.tree.structure(opened.texts[:1])
    assert interop.load_lora(path, options).texts == ()


def test_a_lora_of_text_encoders_alone_is_opened_with_them(text_parts, base, tmp_path):
    tensors, _ = text_tensors(text_parts[1].arrays, "peft", 1)
    header = {"text_encoder_2.lora_alpha": 6, "unet.lora_alpha": 3}
    plain = write(tmp_path / "plain.safetensors", tensors)
    scaled = write(tmp_path / "scaled.safetensors", tensors, {"lora_adapter_metadata": json.dumps(header)})
    options, given = base("sd1")[0].config, [part.options for part in text_parts]
    first, second = (interop.load_lora(path, options, given) for path in (plain, scaled))
    assert first.params == first.texts[0] == {}
    up, twice = (each.texts[1]["layer_2"]["feed"]["in"]["kernel"]["up"] for each in (first, second))
    np.testing.assert_allclose(twice, up * 6 / 4, rtol=1e-6)
    assert "LoRA of text encoders alone" in refusal(plain, options)
    with pytest.raises(DataError, match=r"is not for this network: .*lora_A.weight is \[3, 32\], not \[3, 128\]"):
        interop.load_lora(plain, options, [given[0], {**given[1], "width": 128}])
