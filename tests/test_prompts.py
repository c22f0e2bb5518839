"""Text from captions to samples: a run where only the caption says what is in the image."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest
import told
from jax.tree_util import Partial
from PIL import Image
from told import CLASSES, TINY, WORDS

import jaxdiff as jd
from jaxdiff import data, evaluate, interop
from jaxdiff.app import build, cli, config
from jaxdiff.app.config import Autoencoder, Experiment, Model, Optimizer, Sampling, Sources, Text
from jaxdiff.app.report import quality, run_record
from jaxdiff.app.runs import exported, finish, latent_cache, prompts, sources, storage, train
from jaxdiff.app.runs.trained import load_run
from jaxdiff.io import terminal
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.models import lora
from jaxdiff.training import TrainState, checkpoint

pytestmark = pytest.mark.usefixtures("small_unet", "one_device")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set with captions: dark and bright images, without labels; and ten grey ones in a split of their own."""
    return told.write(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert train.train_run(config.validated(TINY), workdir, data_dir) is None
    return workdir


def greys(images):
    return images.mean(axis=(1, 2, 3)) / 255


def drawn(run, out, *flags):
    assert cli.main(["sample", str(run), "--out", str(out), "--num", "2", *flags]) == 0
    return np.load(out)["image"]


def test_samples_are_what_the_prompt_says(trained, tmp_path):
    dark, bright = (drawn(trained, tmp_path / "x.npz", "--prompt", caption) for _, caption in CLASSES)
    assert greys(dark).max() < 0.35 < 0.65 < greys(bright).min()


def test_the_same_seed_and_prompt_draw_the_same_image_in_any_company(trained, tmp_path):
    (tmp_path / "all.txt").write_text("a dark place\n\na bright place\n")
    both = drawn(trained, tmp_path / "x.npz", "--prompt", str(tmp_path / "all.txt"))
    alone = drawn(trained, tmp_path / "x.npz", "--prompt", "a dark place")
    np.testing.assert_array_equal(both[0], alone[0])
    assert greys(both)[0] < 0.35 < 0.65 < greys(both)[1]


def test_a_negative_prompt_is_what_guidance_goes_away_from(trained, tmp_path):
    away = drawn(trained, tmp_path / "x.npz", "--negative", "a dark place", "--guidance", "2")
    assert greys(away).min() > greys(drawn(trained, tmp_path / "x.npz")).min()
    same = drawn(trained, tmp_path / "x.npz", "--prompt", "a dark place", "--negative", "a dark place", "--guidance", "3")
    np.testing.assert_array_equal(same, drawn(trained, tmp_path / "x.npz", "--prompt", "a dark place", "--guidance", "1"))


def test_grids_of_prompts_are_drawn_while_training(trained):
    picture = np.asarray(Image.open(trained / "samples" / "step_0000150.png"))
    assert picture.ndim == 2
    assert (trained / "tokenizer.json").is_file()


def test_a_run_ends_with_samples_of_its_prompts(trained, data_dir):
    """Also where the data set has nothing held out, as ten images of one's own."""
    made = storage.read_config(trained)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, held_out="nowhere"))
    assert not finish.missing_measures(made, data_dir)
    assert finish.finish_run(made, trained, data_dir).startswith("4 samples of step 300")
    picture = np.asarray(Image.open(trained / "samples.png"))
    dark, bright = (picture[10:50, start : start + 40] for start in (10, 64))
    assert dark.mean() < bright.mean()


def test_a_loaded_run_denoises_by_prompts(trained, tmp_path):
    """In one compiled program whatever the prompts, the guidance and the seed, and as the command draws them."""
    run = load_run(trained)

    @jax.jit
    def draw(denoiser, decode, given, key):
        z = jax.random.normal(key, (2, *run.shape)) * run.levels.sigma[0]
        return decode(jd.sample(run.sampler, denoiser(given), z, run.levels, key))

    dark, bright = (
        np.asarray(draw(run.denoiser, run.decode, {**run.tokens([caption] * 2), "scale": np.full(2, scale)}, jax.random.key(seed)))
        for seed, (scale, (_, caption)) in enumerate(zip((1.5, 2.0), CLASSES, strict=True))
    )
    assert dark.mean() < -0.3 < 0.3 < bright.mean()
    assert draw._cache_size() == 1


@pytest.fixture(scope="module")
def encoder(data_dir, tmp_path_factory):
    """The run of a text encoder with random params, as an import leaves it."""
    workdir = tmp_path_factory.mktemp("encoder") / "text"
    made = config.validated(Experiment(objective="text", text=WORDS, ema={"ema": 0.9}, steps=1))
    params = build.init(made, jax.random.key(3)).params
    params = jax.tree.map(lambda leaf: 3 * leaf, params)  # so that texts differ
    storage.check_or_write_config(workdir, made)
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, TrainState(np.int32(1), {}, {"ema": params}, ()), config.to_dict(made))
    read = data.captions("told", "train", data_dir)
    interop.word_tokenizer(read(np.arange(40)), WORDS.vocabulary, WORDS.length).save(workdir)
    return workdir


@pytest.fixture(scope="module")
def frozen(encoder, data_dir, tmp_path_factory):
    """A run that reads captions by that encoder."""
    workdir = tmp_path_factory.mktemp("run") / "frozen"
    made = dataclasses.replace(TINY, text=Text(), sources=Sources(text=str(encoder)))
    assert train.train_run(config.validated(made), workdir, data_dir) is None
    return workdir


def test_a_frozen_encoder_is_read_and_not_trained(frozen, encoder, tmp_path):
    dark, bright = (drawn(frozen, tmp_path / "x.npz", "--prompt", caption) for _, caption in CLASSES)
    assert greys(dark).max() < 0.35 < 0.65 < greys(bright).min()
    assert json.loads((frozen / "sources.json").read_text())["text"]["fingerprint"] == storage.fingerprint(encoder)


def test_states_are_what_the_encoder_makes_of_tokens(encoder):
    made = dataclasses.replace(TINY, text=Text(), sources=Sources(text=str(encoder)))
    configs, params = prompts.encoders(made, None)
    given = prompts.prompted(made, None, ["a dark place"], "a bright place")
    encoded = build.encoded(made, configs, params, given)
    module = build.text_encoder(WORDS)
    np.testing.assert_allclose(encoded["context"], module.apply({"params": params["text"]}, given["text"])[0], atol=1e-6)
    np.testing.assert_allclose(
        encoded["null"]["context"], module.apply({"params": params["text"]}, given["null"]["text"])[0], atol=1e-6
    )
    assert np.abs(encoded["context"] - encoded["null"]["context"]).max() > 0.1
    zeros = dataclasses.replace(made, published=dataclasses.replace(made.published, zero_null=True))
    for negative, said in (("", False), ("a", True)):
        given = prompts.prompted(made, None, ["a dark place"], negative)
        assert np.any(build.encoded(zeros, configs, params, given)["null"]["context"]) == said


@pytest.fixture(scope="module")
def latent(encoder, data_dir, tmp_path_factory):
    """The run of an autoencoder, and one in its latents that reads captions."""
    folder = tmp_path_factory.mktemp("latent")
    codec = Experiment(
        objective="autoencoder",
        data=TINY.data,
        model=Model(channels=4, multipliers=(1, 1), blocks=1, head_channels=4, num_classes=0),
        autoencoder=Autoencoder(latent_channels=2, measured=16),
        ema={"ema": 0.9},
        steps=2,
    )
    assert train.train_run(config.validated(codec), folder / "kl", data_dir) is None
    made = dataclasses.replace(
        TINY,
        text=Text(),
        sources=Sources(text=str(encoder), autoencoder=str(folder / "kl")),
        sampling=Sampling(steps=2, num=2, clip=False),
        steps=2,
    )
    assert train.train_run(config.validated(made), folder / "run", data_dir) is None
    return folder / "kl", folder / "run"


def test_a_cache_holds_the_states_of_captions(latent, data_dir, tmp_path):
    """Training on it is training on the captions, but for the cache's half precision."""
    codec, run = latent
    latent_cache.write_latents(run, tmp_path / "cache", data_dir=data_dir, batch_size=40)
    made = storage.read_config(run)
    cached = dataclasses.replace(made, data=dataclasses.replace(made.data, latents=str(tmp_path / "cache")))
    assert train.train_run(config.validated(cached), tmp_path / "again", data_dir) is None
    assert losses(run)[-1] == pytest.approx(losses(tmp_path / "again")[-1], rel=1e-3)
    latent_cache.write_latents(codec, tmp_path / "plain", data_dir=data_dir)
    plain = dataclasses.replace(made, data=dataclasses.replace(made.data, latents=str(tmp_path / "plain")))
    with pytest.raises(ConfigError, match="are without captions; write them anew"):
        train.train_run(config.validated(plain), tmp_path / "other", data_dir)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--context", "x.npy"), "does not apply to a run with a text encoder; write --prompt"),
        (("--prompt", "none.txt"), "must be a file of text"),
        (("--prompt", "{}/empty.txt"), "holds no prompt; write one a line"),
        (("--mask", "m.png"), "say which image it is of, --init IMAGE"),
        (("--init", "no.png"), "--init no.png must be an image file"),
        (("--init", "{}/i.png", "--mask", "{}/m.png"), "m.png is 4x6, the image {}/i.png is 8x8; draw it at that size"),
        (("--strength", "1.5"), "--strength must be between 0 and 1, got 1.5"),
        (("--size", "many"), "--size many: write a number of pixels"),
        (("--lora", "style.safetensors:much"), "write FILE or FILE:SCALE, such as style.safetensors:0.8"),
        (("--lora", "style.safetensors:0.5"), "there is no file style.safetensors"),
        (("--lora", "{}/pytorch_lora_weights.safetensors"), "pytorch_lora_weights.safetensors is not for this network"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(trained, tmp_path, capsys, flags, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    published_weights.write(tmp_path, "lora_peft")  # of a small Stable Diffusion
    Image.new("L", (8, 8)).save(tmp_path / "i.png")
    Image.new("L", (6, 4)).save(tmp_path / "m.png")
    flags = [flag.replace("{}", str(tmp_path)) for flag in flags]
    assert cli.main(["sample", str(trained), "--num", "1", *flags]) == 1
    said = capsys.readouterr().err.strip()
    assert message.replace("{}", str(tmp_path)) in said
    assert "\n" not in said


def test_what_is_missing_for_text_is_said(trained, encoder, data_dir, tmp_path):
    with pytest.raises(ConfigError, match="must be text"):
        config.validated(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, context_channels=4)))
    with pytest.raises(ConfigError, match="one encoder is frozen, or trained"):
        config.validated(dataclasses.replace(TINY, sources=Sources(text="x")))
    other = dataclasses.replace(
        TINY, text=Text(), sources=Sources(text=str(encoder)), model=dataclasses.replace(TINY.model, context_channels=4)
    )
    with pytest.raises(ConfigError, match="its states are 8 wide, model"):
        train.train_run(config.validated(other), tmp_path / "run", data_dir)
    with pytest.raises(DataError, match="data set digits must have"):
        train.train_run(dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, name="digits")), tmp_path / "run", data_dir)
    with pytest.raises(ConfigError, match="imported, and trained only beside"):
        train.train_run(storage.read_config(encoder), tmp_path / "run", data_dir)


def test_inpainting_keeps_what_is_known(trained, tmp_path):
    Image.fromarray(np.full((8, 8), 40, np.uint8)).save(tmp_path / "i.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    flags = ("--init", str(tmp_path / "i.png"), "--prompt", "a bright place")
    painted = drawn(trained, tmp_path / "x.npz", *flags, "--mask", str(tmp_path / "m.png"))
    np.testing.assert_array_equal(painted[:, :, :4], 40)
    assert painted[:, :, 5:].mean() > 100
    kept = drawn(trained, tmp_path / "x.npz", *flags, "--strength", "0")
    assert np.abs(kept.astype(int) - 40).max() <= 1
    partly = drawn(trained, tmp_path / "x.npz", *flags, "--strength", "0.9")
    assert partly.mean() > 41


def test_images_of_a_latent_run_are_edited(latent, tmp_path):
    """What is known stays, by the pixel, though the network sees latents."""
    _, run = latent
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    flags = ("--init", str(tmp_path / "i.png"), "--mask", str(tmp_path / "m.png"), "--prompt", "a bright place")
    painted = drawn(run, tmp_path / "x.npz", *flags)[..., 0]
    np.testing.assert_array_equal(painted[:, mask == 0], np.broadcast_to(pixels[mask == 0], (2, 49)))
    assert np.abs(painted[:, mask > 0].astype(int) - pixels[mask > 0]).mean() > 10


def test_a_size_that_does_not_fit_is_said_with_the_nearest_that_does(latent, tmp_path, capsys):
    assert cli.main(["sample", str(latent[1]), "--size", "9x16", "--num", "1"]) == 1
    assert "--size 9x16: this run draws multiples of 2, write 8x16" in capsys.readouterr().err


def test_text_is_for_runs_that_read_it(latent, tmp_path, capsys):
    assert cli.main(["sample", str(latent[0]), "--prompt", "a place"]) == 1
    assert "is an autoencoder run" in capsys.readouterr().err
    made = dataclasses.replace(storage.read_config(latent[1]), sources=Sources(autoencoder=str(latent[0])))
    storage.check_or_write_config(tmp_path / "plain", made)
    state = TrainState(np.int32(2), {}, {"ema": storage.read_params(made, latent[1])[1]}, ())
    with checkpoint.manager(tmp_path / "plain") as to:
        checkpoint.save(to, state, config.to_dict(made))
    assert cli.main(["sample", str(tmp_path / "plain"), "--prompt", "a place", "--num", "1"]) == 1
    assert "--prompt does not apply: this run has no text encoder, but --context" in capsys.readouterr().err


def test_another_vocabulary_is_refused(encoder, tmp_path, data_dir):
    made = dataclasses.replace(TINY, text=Text(), sources=Sources(text=str(tmp_path / "text")))
    shutil.copytree(encoder, tmp_path / "text")
    interop.word_tokenizer([f"word{number}" for number in range(40)], 44, WORDS.length).save(tmp_path / "text")
    with pytest.raises(DataError, match="has tokens up to 43, and its encoder knows 16; give its own tokenizer"):
        prompts.prompted(made, None, ["a dark place"])
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="the tokenizer of this run; import the weights again"):
        prompts.prompted(made, None, ["a dark place"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path / "cache"))


def test_samples_are_judged_by_the_captions_that_drew_them(trained, data_dir, cache):
    """By a network whose features are how dark and how bright an image is, or a caption says."""

    def apply(_, images):
        grey = images.mean((1, 2)) / 2 + 0.5
        features = jnp.concatenate([1 - grey, grey], axis=1)
        return features, features[:, :0]

    def encode(captions):
        return np.array([[caption == CLASSES[0][1], caption == CLASSES[1][1]] for caption in captions], np.float32)

    judge = evaluate.Network("grey", "none", apply, jnp.zeros(()), False, classes=False, encode_captions=encode)
    made = storage.read_config(trained)
    drawn = finish.draw_samples(made, trained, 50, data_dir)  # more than there are captions
    assert drawn.captions == [CLASSES[number % 2][1] for number in range(50)]
    judged = finish.run_evaluator(made, 50, data_dir, network=judge, names=["clip_score"])
    found = judged.measure(drawn.samples, drawn.labels, drawn.captions)
    assert found.metrics["clip_score"].low > 90
    assert found.held_out["clip_score"].value == pytest.approx(100 / np.hypot(1, 40 / 215), abs=3)
    assert judged.measure(drawn.samples, drawn.labels, drawn.captions[::-1]).metrics["clip_score"].high < 50
    other = dataclasses.replace(made, data=dataclasses.replace(made.data, held_out="test[1:4]"))
    assert finish.draw_samples(other, trained, 4, data_dir).captions == [CLASSES[n][1] for n in (1, 0, 1, 1)]


def test_the_command_measures_how_well_samples_fit_their_captions(trained, data_dir, cache, tmp_path, capsys):
    clip = published_weights.write_clip(tmp_path / "clip")
    flags = ["--num", "50", "--data-dir", data_dir, "--features", "clip", "--weights", str(clip), "--metrics", "clip_score,kid"]
    assert cli.main(["evaluate", str(trained), *flags]) == 0
    said = capsys.readouterr().out
    assert "\nCLIP score: " in said
    assert "by clip image encoder, " in said
    (path,) = (trained / "evaluations").glob("*_clip.json")
    saved = json.loads(path.read_text())
    assert saved["metrics"].keys() == saved["held_out"].keys() == {"kid", "clip_score"}
    assert 0 <= saved["metrics"]["clip_score"]["low"] < saved["metrics"]["clip_score"]["value"] < 100
    assert cli.main(["evaluate", str(trained), "--stored"]) == 0
    assert "| KID | CLIP score |" in capsys.readouterr().out
    (group,) = quality.groups(run_record.read_runs([trained]))
    assert group.columns == ["kid", "clip_score"]


def test_a_terminal_that_shows_pictures_shows_samples_in_place_of_the_bar(trained, tmp_path, monkeypatch):
    """After each batch those that there are; where it shows none, nothing of the kind is written."""
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("KITTY_WINDOW_ID", raising=False)
    written = {}
    for name in ("xterm-kitty", "dumb"):
        monkeypatch.setenv("TERM", name)
        leader, follower = os.openpty()
        os.set_blocking(leader, False)
        with open(follower, "w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            drawn(trained, tmp_path / "x.npz", "--batch-size", "1", "--prompt", "a dark place")
            stderr.write("done")
            stderr.flush()
            written[name] = os.read(leader, 1 << 16).decode()
        os.close(leader)
    found = re.findall(r"\x1b_Ga=T[^;]*;([^\x1b]*)\x1b", written["xterm-kitty"])
    assert [Image.open(io.BytesIO(base64.b64decode(content))).size for content in found] == [(60, 60), (60, 114)]
    assert written["dumb"].endswith("done")
    assert "\x1b_G" not in written["dumb"]


def test_pictures_reach_terminals_whole():
    """In as many parts as kitty takes, in one by iTerm2; not within tmux."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b", terminal.escaped(pixels, "kitty"))
    assert [keys.rsplit("m=", 1)[1] for keys, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
    (inline,) = re.findall(r"\x1b]1337;File=[^:]*:([^\a]*)\a", terminal.escaped(pixels, "iterm"))
    for content in ("".join(part for _, part in parts), inline):
        np.testing.assert_array_equal(Image.open(io.BytesIO(base64.b64decode(content))), pixels)
    assert max(len(part) for _, part in parts) == terminal.CHUNK
    spoken = [
        terminal.protocol(each) for each in ({"TERM_PROGRAM": "WezTerm"}, {"TERM": "xterm-kitty"}, {"TERM": "xterm-256color"})
    ]
    assert spoken == ["iterm", "kitty", ""]
    assert terminal.protocol({"TERM": "xterm-kitty", "TMUX": "1"}) == ""


def test_another_size_is_drawn(trained, tmp_path):
    assert drawn(trained, tmp_path / "x.npz", "--prompt", "a dark place", "--size", "8x16").shape == (2, 8, 16, 1)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_lora_learns_ten_images_and_leaves_its_base_as_it_is(frozen, data_dir, tmp_path):
    """The base's own loss on them is that of the first steps; what is merged draws what the run draws."""
    before = storage.fingerprint(frozen)
    made = dataclasses.replace(
        TINY,
        data=dataclasses.replace(TINY.data, split="grey", batch_size=32),
        text=Text(),
        distillation=config.Distillation(lora_rank=2),
        sources=Sources(init=str(frozen)),
        optimizer=Optimizer(learning_rate=3e-2),
        sampling=Sampling(steps=10, guidance=1.0, num=2),
        steps=60,
        log_every=10,
    )
    made, _ = sources.resolve_sources(made, tmp_path / "lora")
    assert made.sources.text == str(storage.source_directories(storage.read_config(frozen), frozen)["text"])  # as its base
    assert train.train_run(made, tmp_path / "lora", data_dir) is None
    assert losses(tmp_path / "lora")[-1] < 0.6 * losses(tmp_path / "lora")[0]
    assert storage.fingerprint(frozen) == before
    assert greys(drawn(tmp_path / "lora", tmp_path / "x.npz", "--prompt", "a dark place")).min() > 0.4
    base = storage.read_params(storage.read_config(frozen), frozen)[1]
    adapters = storage.read_params(made, tmp_path / "lora")[1]
    run, merged = load_run(tmp_path / "lora"), load_run(frozen, guidance=1.0)
    x = jnp.ones((2, 8, 8, 1))
    whole = Partial(merged.denoiser.func, lora.merged(base, adapters), merged.denoiser.args[1])
    given, level = run.tokens(["a dark place", "a bright place"]), jd.cosine()(0.5)
    np.testing.assert_allclose(whole(given)(x, level), run.denoiser(given)(x, level), atol=1e-5)


def test_a_latent_consistency_student_draws_in_four_steps(frozen, data_dir, tmp_path):
    """As adapters of its teacher, told the scale of guidance, with steps of the teacher that skip some (Luo et al. 2023)."""
    made = dataclasses.replace(
        TINY,
        objective="consistency",
        text=Text(),
        diffusion=dataclasses.replace(TINY.diffusion, label_dropout=0.0),
        distillation=config.Distillation(steps=40, skip=10, guidance=(1.0, 3.0), target_ema="ema", lora_rank=2, clip=False),
        sources=Sources(teacher=str(frozen)),
        sampling=Sampling(sampler="consistency", steps=4, guidance=2.0, num=2),
        steps=150,
    )
    made, _ = sources.resolve_sources(made, tmp_path / "lcm")
    assert train.train_run(made, tmp_path / "lcm", data_dir) is None
    adapters = storage.read_params(made, tmp_path / "lcm")[1]
    assert "guidance" in adapters
    dark, bright = (drawn(tmp_path / "lcm", tmp_path / "x.npz", "--prompt", caption) for _, caption in CLASSES)
    assert greys(dark).max() < 0.45 < 0.55 < greys(bright).min()
    with pytest.raises(ConfigError, match="which a LoRA file has no place for"):
        exported.export_run(tmp_path / "lcm", tmp_path / "out")
