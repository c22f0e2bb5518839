"""The page of `jaxdiff demo`: what it draws and edits, what compiles, and that it is served and leaves nothing behind."""

import dataclasses
import importlib.util
import json
import socket

import jax
import numpy as np
import pytest

from jaxdiff.app import build, cli
from jaxdiff.app.config import Autoencoder, Data, Diffusion, Distillation, Experiment, Model, Sampling, Sources, to_dict
from jaxdiff.app.demo import canvas, drawing, programs, settings
from jaxdiff.app.demo.drawing import Asked
from jaxdiff.app.demo.programs import Edit
from jaxdiff.app.demo.settings import Setting
from jaxdiff.app.runs import storage, trained
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.training import checkpoint

pytestmark = pytest.mark.usefixtures("small_unet", "small_autoencoder", "one_device")

PLAIN = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1)),
    model=Model(channels=8, multipliers=(1,), blocks=1, head_channels=8, num_classes=10),
    sampling=Sampling(steps=4, guidance=2.0),
)
STUDENT = dataclasses.replace(
    PLAIN,
    objective="consistency",
    sources=Sources(teacher="plain"),
    diffusion=Diffusion(label_dropout=0.0),
    distillation=Distillation(steps=4, curriculum="constant"),
    sampling=Sampling(sampler="consistency", steps=1, guidance=1.0),
)
CODED = dataclasses.replace(
    PLAIN,
    objective="autoencoder",
    model=Model(channels=8, multipliers=(1, 1), blocks=1, head_channels=8),
    autoencoder=Autoencoder(latent_channels=2),
)
LATENT = dataclasses.replace(PLAIN, sources=Sources(autoencoder="coded"), sampling=Sampling(steps=4, guidance=2.0, clip=False))
UNLABELLED = dataclasses.replace(PLAIN, model=dataclasses.replace(PLAIN.model, num_classes=0))
RUNS = {"coded": CODED, "plain": PLAIN, "student": STUDENT, "latent": LATENT, "unlabelled": UNLABELLED}
IMAGE = np.random.default_rng(0).uniform(-1, 1, (8, 8, 1)).astype(np.float32)
THREE = {"label": np.array([3], np.int32)}


def write_run(workdir, made):
    """A run of random params, the same in its EMA, at its last step."""
    draw, shapes = np.random.default_rng(0), build.state_shapes(made, source_configs(made, workdir))
    params = jax.tree.map(lambda leaf: 0.2 * draw.normal(size=leaf.shape).astype(leaf.dtype), shapes.params)
    if made.objective == "autoencoder":
        params["latent"] = {"shift": np.array([0.5, -1.0], np.float32), "scale": np.array([2.0, 0.5], np.float32)}
    levels = build.student_levels(made) if made.objective == "consistency" else None
    rest = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = dataclasses.replace(rest, step=np.full((), made.steps, np.int32), params=params, ema={"ema": params})
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state, to_dict(made), levels and vars(levels))
    (workdir / "config.json").write_text(json.dumps(to_dict(made)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_unet, small_autoencoder, one_device):
    folder = tmp_path_factory.mktemp("runs")
    for name, made in RUNS.items():
        places = {place: str(folder / at) for place, at in dataclasses.asdict(made.sources).items() if at}
        write_run(folder / name, dataclasses.replace(made, sources=Sources(**places)))
    return {name: programs.open_run(folder / name) for name in RUNS if name != "coded"} | {"folder": folder}


def drawn(run, setting=None, given=THREE, seed=5, index=0, edit=None):
    return programs.draw(run, setting or settings.of_config(run.config), given, seed, index, edit)[0]


def test_it_draws_what_jaxdiff_sample_draws(runs):
    workdir = runs["folder"] / "latent"
    made = storage.read_config(workdir)
    expected = trained.image_sampler(made, workdir=workdir)(storage.read_params(made, workdir)[1], np.array([3, 3]), 5)
    np.testing.assert_allclose([drawn(runs["latent"], index=index) for index in (0, 1)], expected, atol=2e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_other_seeds_labels_scales_images_and_strengths_compile_nothing(runs, compilations):
    run, keep = runs["plain"], np.arange(64).reshape(8, 8) < 32
    for edit in (None, Edit(IMAGE, 0.5), Edit(IMAGE, 0.5, keep)):
        programs.draw(run, Setting("ddim", 4, 2.0), THREE, 0, 0, edit)[1]()
    compilations.clear()
    results = [
        programs.draw(run, Setting("ddim", 4, scale), {"label": np.array([label], np.int32)}, seed, index, edit)
        for scale, label, seed, index, edit in (
            (2.0, 3, 0, 0, None),
            (2.5, 3, 0, 0, None),
            (2.0, 10, 0, 0, None),
            (2.0, 3, 1, 0, None),
            (2.0, 3, 0, 1, None),
            (2.0, 3, 0, 0, Edit(-IMAGE, 0.75)),
            (2.0, 3, 0, 0, Edit(IMAGE, 1.0, ~keep)),
        )
    ]
    assert not compilations
    assert len({image.tobytes() for image, _ in results}) == len(results)
    assert [len(frames()) for _, frames in results] == [5, 5, 5, 5, 5, 4, 5]
    assert not compilations
    drawn(run, Setting("ddim", 3, 2.0))
    assert compilations


def test_frames_are_predictions_that_end_with_the_image(runs):
    image, frames = programs.draw(runs["plain"], Setting("ddim", 50, 2.0), THREE, 5)
    frames = frames()
    assert frames.shape == (programs.FRAMES, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], image)
    one_step = drawn(runs["plain"], Setting("ddim", 1, 2.0))  # from the same noise: the first prediction
    np.testing.assert_allclose(frames[0], one_step, atol=1e-5)


def test_two_runs_begin_with_the_same_noise(runs):
    """One step of DDIM and of a consistency student is one call of networks that here have the same params."""
    plain, student = (runs[name] for name in ("plain", "student"))
    asked = Asked([Setting("ddim", 1, 1.0), Setting("consistency", 1)], label="7", seed=2, num=2)
    *_, (one, two) = drawing.draw([plain, student], asked)
    np.testing.assert_allclose(one.images, two.images, atol=1e-5)
    drawing.check_together([plain, student])
    with pytest.raises(ConfigError, match=r"--versus: latent has x of shape \(4, 4, 2\), plain \(8, 8, 1\)"):
        drawing.check_together([plain, runs["latent"]])
    with pytest.raises(ConfigError, match=r"unlabelled has model\.num_classes 0, plain 10"):
        drawing.check_together([plain, runs["unlabelled"]])


def test_the_first_image_does_not_depend_on_their_number(runs):
    few, many = ([*drawing.draw([runs["plain"]], Asked([Setting("ddpm", 4, 2.0)], num=num))][-1][0].images for num in (1, 3))
    np.testing.assert_array_equal(few, many[:1])
    assert len(many) == 3


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "ddpm"])
def test_inpainting_keeps_what_is_not_painted(runs, sampler):
    keep = np.arange(64).reshape(8, 8) < 32
    image = drawn(runs["plain"], Setting(sampler, 4, 2.0), edit=Edit(IMAGE, 1.0, keep))
    np.testing.assert_array_equal(image[keep], IMAGE[keep])
    assert np.abs(image[~keep] - IMAGE[~keep]).max() > 0.1


def test_inpainting_latents_keeps_pixels(runs):
    keep = np.arange(64).reshape(8, 8) % 8 < 3  # half a latent is kept: it is drawn anew, and its pixels put back
    image = drawn(runs["latent"], edit=Edit(IMAGE, 1.0, keep))
    np.testing.assert_array_equal(image[keep], IMAGE[keep])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "heun", "ddpm"])
def test_strength_0_keeps_the_image_and_more_changes_it_more(runs, sampler):
    images = [drawn(runs["plain"], Setting(sampler, 4, 2.0), edit=Edit(IMAGE, strength)) for strength in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(images[0], IMAGE, atol=1e-6)
    assert 0.1 < np.abs(images[1] - IMAGE).mean() < np.abs(images[2] - IMAGE).mean()
    assert np.isfinite(images).all()


def test_what_a_run_offers(runs):
    plain, student, unlabelled = (runs[name] for name in ("plain", "student", "unlabelled"))
    assert settings.steps(student.config) == [1, 2, 4]
    assert settings.samplers(student.config) == ["consistency"]
    assert {"ddim", "heun", "unipc"} < set(settings.samplers(plain.config))
    assert not {*settings.OTHERS, "consistency"} & set(settings.samplers(plain.config))
    assert settings.scales(plain.config)
    assert settings.scales(student.config) is None
    assert settings.scales(unlabelled.config) is None
    assert drawing.labels([plain]) == ["all", *map(str, range(10)), "none"]
    assert drawing.labels([plain, student])[-1] == "9"
    assert drawing.labels([unlabelled]) == []
    assert drawing.first([unlabelled])[0].images[0].shape == (8, 8, 1)


def test_a_denoiser_is_given_the_tokens_of_the_prompts(runs):
    """A run with text is one whose `tokens` are there; these are labels, which this one knows."""
    told = runs["plain"]._replace(tokens=lambda prompts, negative: {"label": np.array([len(prompts[0] + negative)], np.int32)})
    asked = Asked([Setting("ddim", 4, 2.0)], label="0", prompt="to", negative="o", seed=5)
    (found,) = next(drawing.draw([told], asked))
    np.testing.assert_array_equal(found.images[0], drawn(runs["plain"], Setting("ddim", 4, 2.0)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"seed": -1}, "the seed must be"), ({"num": 0}, "between 1 and 32, got 0"), ({"label": "12"}, "no label '12'; write one of")],
)
def test_what_is_asked_wrongly(runs, asked, message):
    with pytest.raises(ConfigError, match=message):
        next(drawing.draw([runs["plain"]], Asked([Setting("ddim", 4, 2.0)], **asked)))


def test_nan_is_refused(runs):
    with pytest.raises(NonFiniteError, match="try more steps"):
        drawn(runs["plain"], Setting("ddim", 4, np.nan))


def test_a_picture_that_is_taken_back_is_the_image():
    pixels = canvas.picture(IMAGE)
    assert pixels.shape == (192, 192, 3)
    alpha = np.full((192, 192, 1), 255, np.uint8)
    painted = {"background": np.concatenate([pixels, alpha], -1), "layers": [np.zeros((192, 192, 4), np.uint8)]}
    edit = canvas.edit(painted, 0.5, (8, 8, 1))
    np.testing.assert_allclose(edit.image, IMAGE, atol=1 / 127)
    assert edit.keep is None
    painted["layers"][0][:96, :, 3] = 255
    np.testing.assert_array_equal(canvas.edit(painted, 0.5, (8, 8, 1)).keep, np.arange(64).reshape(8, 8) >= 32)
    assert canvas.edit(None, 0.5, (8, 8, 1)) is None
    with pytest.raises(ConfigError, match="choose an image first"):
        canvas.edit({**painted, "background": None}, 0.5, (8, 8, 1))


def test_photos_are_cropped_and_frames_shrunk():
    photo = np.zeros((60, 100, 4), np.uint8)
    photo[..., 3], photo[:, 20:80, :3] = 255, 200  # the middle, as wide as high
    edit = canvas.edit({"background": photo, "layers": []}, 0.5, (16, 16, 3))
    np.testing.assert_allclose(edit.image, 200 / 127.5 - 1, atol=1e-6)
    for size, shown in ((8, 64), (28, 84), (300, 100)):
        assert canvas.strip(np.zeros((2, size, size, 3)))[:, : 2 * shown + 8, 3].shape == (shown, 2 * shown + 8)


def test_without_gradio_one_line_says_what_to_install(runs, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo", str(runs["folder"] / "plain"), "--quiet"]) == 1
    assert capsys.readouterr().err == (
        'jaxdiff: demo: gradio, which makes the page, is not installed; run: pip install "jaxdiff[demo]"\n'
    )


def test_the_page_is_served_and_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    import gradio_client

    from jaxdiff.app.demo import server

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = [runs[name] for name in ("plain", "student")]
    port = server.free_port("127.0.0.1", 0)
    with server.serving(shown, drawing.first(shown), "127.0.0.1", port) as address:
        client = gradio_client.Client(address, verbose=False, download_files=False, analytics_enabled=False)
        asked = ["3", 0, 2, "ddim", 4, 2.0, "consistency", 1, None, 0.5]
        images, strip, others, _, line = client.predict(*asked, api_name="/draw")
        assert (len(images), len(others)) == (2, 2)
        assert strip["path"].startswith(str(tmp_path))
        assert line.startswith("2 images in ")
        with pytest.raises(Exception, match="seed is empty"):
            client.predict(*["3", None], *asked[2:], api_name="/draw")
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use; choose another --port"):
            server.free_port("127.0.0.1", port)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("gradio_client")] == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
