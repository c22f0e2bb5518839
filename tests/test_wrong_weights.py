"""Wrong files of weights: each ends in one line that says what is wrong with which file, and in no other error."""

import json
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import published_configs
import published_weights
import pytest
import safetensors.numpy

from jaxdiff import interop
from jaxdiff.interop import chains, configs, parts
from jaxdiff.io.errors import ConfigError, DataError

WEIGHTS, CONFIG, SCHEDULER = "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler/scheduler_config.json"
MIDDLE = "mid_block.attentions.0.to_k.weight"
HOSTILE = [None, "x", -1, 0, 7, 0.5, 10**30, 1e308, float("nan"), True, [], {}, [1] * 1000, [-1] * 3, ["x"] * 3, [[1]], [64, 0, 1]]
KINDS = {"sd1": "unet", "sdxl": "unet", "ddpm": "unet", "consistency_diffusers": "unet", "kl": "vae", "vq": "vqvae"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A pipeline of diffusers, a UNet and its schedule."""
    return published_weights.write(tmp_path_factory.mktemp("published"), "ddpm", "float16")


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it, to be broken."""
    return pathlib.Path(shutil.copytree(published, tmp_path / "ddpm"))


def refusal(path, open_=interop.load, kind=DataError):
    with pytest.raises(kind) as caught:
        open_(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def edit(path, **settings):
    """Replaces settings of a JSON file; None takes them out."""
    document = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def replace(path, **tensors):
    """Replaces tensors of a file by others, or by none."""
    arrays = {**safetensors.numpy.load_file(path), **{k.replace("/", "."): v for k, v in tensors.items()}}
    safetensors.numpy.save_file({k: v for k, v in arrays.items() if v is not None}, path)


def single(path, *names, shape=(4, 4)):
    """A file of zeros by these names."""
    safetensors.numpy.save_file({name: np.zeros(shape, np.float16) for name in names}, path)
    return path


def test_the_pipeline_opens_before_it_is_broken(folder):
    assert interop.load(folder).config["channels"] == 32


# Files


def test_a_truncated_file(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert f"{folder / WEIGHTS} is not a whole safetensors file" in refusal(folder)
    (folder / WEIGHTS).write_bytes(b"")
    assert "is empty" in refusal(folder)


def test_paths_without_weights(tmp_path):
    assert f"there is no {tmp_path / 'nowhere'}" in refusal(tmp_path / "nowhere", kind=ConfigError)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no .safetensors" in refusal(tmp_path / "empty", kind=ConfigError)
    (tmp_path / "network-snapshot.pkl").write_bytes(b"\x80\x04}.")
    assert "network-snapshot.pkl is no file of weights by its name" in refusal(tmp_path / "network-snapshot.pkl", kind=ConfigError)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"state_dict": Code()}, protocol=2))
        archive.writestr("model/version", "3")
    message = refusal(tmp_path / "model.pt")
    assert "print'" in message
    assert "nothing of it was run" in message


def test_float8(folder):
    header = json.dumps({"conv_in.bias": {"dtype": "F8_E4M3", "shape": [32], "data_offsets": [0, 32]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    assert "'conv_in.bias' is F8_E4M3; convert its tensors to float16" in refusal(folder)


def test_an_index_that_names_a_missing_shard(folder):
    names = list(safetensors.numpy.load_file(folder / WEIGHTS))
    index = {"weight_map": dict.fromkeys(names, "diffusion_pytorch_model-00001-of-00002.safetensors")}
    (folder / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "names the shard 'diffusion_pytorch_model-00001-of-00002.safetensors', which is not beside it" in refusal(folder)


# Tensors


def test_tensors_that_do_not_fit(folder):
    original = (folder / WEIGHTS).read_bytes()
    replace(folder / WEIGHTS, **{MIDDLE: np.zeros((64, 32), np.float16)})
    assert f"{MIDDLE} is [64, 32], not [64, 64]" in refusal(folder)
    (folder / WEIGHTS).write_bytes(original)
    replace(folder / WEIGHTS, **{MIDDLE: None})
    assert f"does not fit its network: lacks {MIDDLE}" in refusal(folder)
    (folder / WEIGHTS).write_bytes(original)
    replace(folder / WEIGHTS, **{"mid_block.attentions.0.to_x.weight": np.zeros(3, np.float16)})
    assert "which has no place for mid_block.attentions.0.to_x.weight" in refusal(folder)
    (folder / WEIGHTS).write_bytes(original)
    replace(folder / WEIGHTS, **{"conv_in.weight": np.zeros((), np.float16), MIDDLE: np.zeros(0, np.float16)})
    message = refusal(folder)
    assert "conv_in.weight is [], not [32, 3, 3, 3]" in message
    assert f"{MIDDLE} is [0], not [64, 64]" in message


def test_weights_of_another_family(folder, tmp_path):
    published_weights.write(tmp_path, "kl", "float16")
    shutil.copy(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", folder / WEIGHTS)
    assert "its names look like diffusers' autoencoder" in refusal(folder)
    shutil.copy(tmp_path / "vae" / "config.json", folder / CONFIG)
    assert f"without a UNet; jaxdiff opens its parts {folder / 'unet'}" in refusal(folder)
    assert "holds no UNet; jaxdiff.interop.autoencoder opens it" in refusal(tmp_path / "vae", kind=ConfigError)
    assert "holds no autoencoder" in refusal(published_weights.write(tmp_path / "b", "ddpm"), interop.autoencoder, ConfigError)


def test_moments_of_another_shape(tmp_path):
    path = published_weights.write(tmp_path, "kl", "float16") / "vae" / "diffusion_pytorch_model.safetensors"
    replace(path, **{"quant_conv.weight": np.zeros((), np.float16)})
    assert "quant_conv.weight is [], not [8, 8, 1, 1]" in refusal(path.parent, interop.autoencoder)


def test_codes_of_another_shape(tmp_path):
    path = published_weights.write(tmp_path, "vq", "float16") / "vqvae" / "diffusion_pytorch_model.safetensors"
    replace(path, **{"quantize.embedding.weight": np.zeros((32, 4), np.float16)})
    assert "quantize.embedding.weight is [32, 4], not [32, 3]" in refusal(path.parent, interop.autoencoder)
    replace(path, **{"quantize.embedding.weight": None})
    assert "quantize.embedding.weight is [0, 0], not [32, 3]" in refusal(path.parent, interop.autoencoder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.enc.32x32_conv.weight", "EDM's SongUNet, which jaxdiff does not open yet"),
        ("module.all_modules.0.weight", "score_sde's NCSN++"),
        ("transformer_blocks.0.attn.to_q.weight", "a transformer, which jaxdiff does not open yet"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("down_blocks.0.resnets.0.conv1.weight", "its config.json is missing beside it"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "a LoRA; import it with"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("fc1.weight", "names that jaxdiff does not know"),
        ("input_blocks.0.0.weight", "is not OpenAI's or CompVis' UNet"),
        ("encoder.down.0.block.0.conv1.weight", "is not CompVis' autoencoder: it lacks 'encoder.conv_in.weight'"),
    ],
)
def test_a_single_file_of_something_else(name, words, tmp_path):
    assert words in refusal(single(tmp_path / "model.safetensors", name))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 0), (2, 2, 2, 2)])
def test_a_single_file_whose_shapes_say_nothing(shape, tmp_path):
    """All names of a network, and no shape of its own."""
    for family in ("adm", "ldm"):
        (names,) = published_weights.family(family).tensors.values()
        single(tmp_path / "unet.safetensors", *names, shape=shape)
        assert "unet.safetensors" in refusal(tmp_path / "unet.safetensors")
    names = [name.removeprefix("first_stage_model.") for name in names if name.startswith("first_stage_model.")]
    single(tmp_path / "vae.safetensors", *names, shape=shape)
    assert "vae.safetensors" in refusal(tmp_path / "vae.safetensors", interop.autoencoder)


def test_a_checkpoint_with_wrong_betas_or_scale(tmp_path):
    (shapes,) = published_weights.family("ldm").tensors.values()
    path = tmp_path / "ldm.safetensors"
    published_weights.write_tensors(path, shapes, "float16")
    replace(path, betas=np.array([0.1, np.nan], np.float16))
    assert "betas [2] must be a vector of values in (0, 1]" in refusal(path)
    replace(path, betas=None, scale_factor=np.zeros((2,), np.float16))
    assert "scale_factor [2] must be one positive number" in refusal(path)


# Configs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256 is not among what"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep' is not among what"),
        ({"addition_embed_type": "image"}, "addition_embed_type 'image' is not among what"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "down_block_types has SkipDownBlock2D, which"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "are not down_block_types"),
        ({"out_channels": 6}, "in_channels 3 and out_channels 6"),
        ({"block_out_channels": None}, "lacks block_out_channels"),
        ({"block_out_channels": "32"}, "block_out_channels '32' must be 1 to 12 positive whole numbers"),
        ({"block_out_channels": [32, -64, 64]}, "block_out_channels [32, -64, 64] must be"),
        ({"block_out_channels": [32] * 5000}, "must be 1 to 12 positive whole numbers"),
        ({"block_out_channels": [32, 48, 64]}, "widths must be multiples of the first one"),
        ({"block_out_channels": [32, 64]}, "must be as many as block_out_channels, 2"),
        ({"layers_per_block": 10**6}, "more than any published network has"),
        ({"norm_num_groups": 7}, "of which no network can be made"),
        ({"attention_head_dim": 7}, "of which no network can be made"),
        ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos 'yes' must be true or false"),
        ({"_class_name": "FluxTransformer2DModel"}, "is of 'FluxTransformer2DModel'; jaxdiff opens UNet2DConditionModel"),
        ({"_class_name": ["UNet2DModel"]}, "is of ['UNet2DModel']; jaxdiff opens"),
        ({"_class_name": None, "architectures": ["CLIPTextModel"]}, "is of ['CLIPTextModel']; jaxdiff opens"),
    ],
    ids=lambda each: "" if isinstance(each, str) else "-".join(each),
)
def test_settings_that_our_networks_lack(settings, words, folder):
    edit(folder / CONFIG, **settings)
    message = refusal(folder)
    assert words in message
    assert str(folder / "unet") in message


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_config_makes_options_or_one_line(name):
    """Each setting replaced by what it cannot be, or left out; what passes is checked against the tensors next."""
    config, lines = published_weights.family(name).config, []
    for setting in config:
        left = {k: v for k, v in config.items() if k != setting}
        for hostile in (left, *({**config, setting: value} for value in HOSTILE)):
            try:
                configs.options(hostile, "config.json")
            except DataError as error:
                lines.append(str(error))
    assert len(lines) > len(config)
    assert [line for line in lines if "\n" in line or len(line) > 400] == []


def test_a_hostile_scheduler_makes_a_schedule_or_one_line():
    lines, made = [], 0
    for config in published_configs.SCHEDULES.values():
        for hostile in ({**config, setting: value} for setting in config for value in HOSTILE):
            try:
                betas = chains.chain(hostile, "scheduler_config.json").values()
                made += bool(np.all((betas > 0) & (betas <= 1)))
            except DataError as error:
                lines.append(str(error))
    assert len(lines) + made == sum(map(len, published_configs.SCHEDULES.values())) * len(HOSTILE)
    assert [line for line in lines if "\n" in line or len(line) > 400] == []


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000, '{"a": 1} x'])
@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, "model_index.json"])
def test_json_that_is_none(name, text, folder):
    (folder / name).write_text(text)
    assert str(folder / name) in refusal(folder)


def test_a_network_without_its_config(folder):
    (folder / CONFIG).unlink()
    assert f"there is no {folder / CONFIG}" in refusal(folder)


def test_an_unknown_scheduler(folder):
    edit(folder / SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler")
    assert f"{folder / SCHEDULER} is of FlowMatchEulerDiscreteScheduler, which has no betas" in refusal(folder)


# Pipelines


def test_a_pipeline_without_a_unet_of_ours(tmp_path):
    """Like Flux's: a transformer, text encoders, and an autoencoder."""
    folder = published_weights.write(tmp_path, "kl", "float16")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    message = refusal(folder)
    assert "FluxPipeline of transformer (FluxTransformer2DModel), text_encoder (CLIPTextModel, not there), without" in message
    assert f"jaxdiff opens its parts {folder / 'vae'}" in message
    encode, _ = interop.autoencoder(folder / "vae")
    assert encode(np.zeros((1, 16, 16, 3), np.float32)).shape == (1, 4, 4, 4)
    index["vae"] = ["diffusers", "AutoencoderDC"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "jaxdiff opens none of its parts" in refusal(folder)


@pytest.mark.parametrize("value", [None, "x", 1, [], [1, 2], ["diffusers", ["UNet2DModel"]], ["diffusers", {}], ["diffusers", ""]])
def test_a_pipeline_whose_index_is_hostile(value, folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": value, "unet": value}))
    assert "without a UNet; jaxdiff opens none of its parts" in refusal(folder)


def test_a_text_encoder_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"], "d_model": 512}))
    single(tmp_path / "model.safetensors", "text_model.embeddings.position_ids")
    assert "config.json is of ['T5EncoderModel']; jaxdiff opens" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert f"looks like a text encoder; its config.json is missing beside it ({tmp_path / 'config.json'})" in refusal(
        tmp_path / "model.safetensors"
    )


def test_options_of_which_no_network_can_be_made(folder):
    edit(folder / CONFIG, attention_head_dim=8)
    assert parts.find(folder).unet.options["head_channels"] == 8
    assert "has no option 'heds'" in refusal(folder, lambda path: interop.load(path, heds=2), ConfigError)
    assert "no network can be made" in refusal(folder, lambda path: interop.load(path, head_channels="x"))
