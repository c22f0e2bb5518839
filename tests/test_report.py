"""The page about runs: whole, harmless and offline; what it says of samples, of their ways and of their neighbours is true."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff import cascade, data, evaluate
from jaxdiff.app import build, cli, config
from jaxdiff.app.config import Autoencoder, Data, Diffusion, Experiment, Model, Optimizer, Sampling, Sources
from jaxdiff.app.report import curves, neighbours, quality, render, run_record
from jaxdiff.app.runs import storage
from jaxdiff.app.runs import train as run
from jaxdiff.app.runs.trained import image_sampler
from jaxdiff.io import pictures
from jaxdiff.training import checkpoint

VOID = {"meta", "img", "br", "link", "input", "hr"}
TINY = Model(channels=8, multipliers=(1,), blocks=1, head_channels=8, num_classes=10)
CONFIG = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=8),
    model=TINY,
    optimizer=Optimizer(learning_rate=1e-2),
    steps=2,
    log_every=1,
    sampling=Sampling(sampler="ddim", steps=3, num=10, every=1),
)
ODD = "a <i>&\"b'"


class Page(html.parser.HTMLParser):
    """Its images, the ids of its sections, its text, the values of its attributes, and whether its tags are closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.sections, self.tags, self.values, self.words = [], [], [], set(), [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.values += [(name, value) for name, value in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.values += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        if not self.open or self.open[-1] != "style":
            self.words.append(words)


def decoded(image):
    head, _, body = image["src"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body, validate=True))))


def assert_stands_alone(page, path):
    """Nothing is loaded, run or followed out of the page; every picture is one."""
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for name, value in page.values:
        assert name not in ("srcset", "background", "action")
        assert not name.startswith("on")
        assert name not in ("src", "href", "xlink:href") or value.startswith(("data:image/png;", "#"))
    assert re.findall("https?:|@import", path.read_text()) == []
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", path.read_text()))
    policy = [value for _, value in page.values if value and "default-src" in value]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert all(min(decoded(image).shape[:2]) >= 8 and image["alt"] for image in page.images)


pytestmark = pytest.mark.usefixtures("small_unet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tfds_dir):
    workdir = tmp_path_factory.mktemp("runs") / ODD
    run.train_run(CONFIG, workdir, tfds_dir)
    return workdir


@pytest.fixture(scope="module")
def written(trained, tfds_dir):
    """The page of that run, from the command line."""
    assert cli.main(["report", str(trained), "--num", "12", "--data-dir", tfds_dir]) == 0
    return trained / "report.html"


@pytest.mark.slow
def test_a_page_has_every_part_and_stands_alone(written):
    page = Page(written)
    assert_stands_alone(page, written)
    assert page.sections == ["summary", "curves", "results", "denoising", "neighbours", "config", "environment"]
    assert len(page.images) == 2 + 2 * 4 * 4 + 8 * 6  # grids, strips after 0, 1, 2, 3 steps, neighbours
    for said in ("step 2 of 2", "drawn for this page from step 2: ddim 3, guidance 2", f"jax {jax.__version__}", "0.01"):
        assert said in page.text
    assert "Left out" not in page.text
    assert not list(written.parent.glob("*draft*"))


@pytest.mark.slow
def test_odd_names_are_text(written):
    page = Page(written)
    assert "i" not in page.tags
    assert page.text.count(ODD) == 3  # the title twice, and the directory


@pytest.mark.slow
def test_pictures_go_to_tensorboard(written):
    """Read as TensorBoard reads them: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    shapes = {}
    for path in (written.parent / "tensorboard").iterdir():
        body = path.read_bytes()
        while body:
            (length,) = struct.unpack("<Q", body[:8])
            event = Event.FromString(body[12 : 12 + length])
            body = body[16 + length :]
            for value in event.summary.value:
                if value.HasField("image"):
                    shapes[value.tag, event.step] = Image.open(io.BytesIO(value.image.encoded_image_string)).size
    widths = {name: pictures.grid(np.zeros((columns, 8, 8, 1)), columns).shape[1] for name, columns in (("d", 4), ("n", 6))}
    assert shapes["report/denoising", 2][0] == widths["d"]
    assert shapes["report/nearest_training_images", 2][0] == widths["n"]
    assert ("report/samples", 2) in shapes


def untrained(folder, name, **changes):
    """A directory that holds a config alone."""
    (folder / name).mkdir()
    made = dataclasses.replace(CONFIG, **changes)
    (folder / name / "config.json").write_text(json.dumps(config.to_dict(made)))
    return folder / name


def saved(folder, name, **changes):
    """A run that has a checkpoint, of random params, at its last step."""
    workdir = untrained(folder, name, **changes)
    made = storage.read_config(workdir)
    shapes, rng = build.state_shapes(made), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes.params)
    rest = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = dataclasses.replace(rest, step=np.full((), made.steps, np.int32), params=params, ema={"ema": params})
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state, config.to_dict(made))
    return workdir


def test_what_a_run_lacks_is_left_out(tmp_path):
    """And strings of the config are text."""
    workdir = untrained(tmp_path, "new", data=dataclasses.replace(CONFIG.data, held_out=ODD))
    notes = tmp_path / "deep" / "a.draft"
    notes.parent.mkdir()
    notes.write_text("somebody's")
    assert cli.main(["report", str(workdir), "--out", str(tmp_path / "deep" / "a.html")]) == 0
    assert notes.read_text() == "somebody's"
    page = Page(tmp_path / "deep" / "a.html")
    assert_stands_alone(page, tmp_path / "deep" / "a.html")
    assert page.sections == ["summary", "config", "environment"]
    assert page.images == []
    assert "no checkpoint yet" in page.text
    assert ODD in page.text
    assert "i" not in page.tags
    assert not (workdir / "tensorboard").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_pictures_alone(trained, tmp_path, tfds_dir, caplog):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2" / "ema_ema")
    assert cli.main(["report", str(workdir), "--num", "4", "--data-dir", tfds_dir]) == 0
    page = Page(workdir / "report.html")
    assert page.sections == ["summary", "curves", "results", "config", "environment"]
    assert len(page.images) == 1
    assert "Left out" in page.text
    assert "cannot be read" in page.text
    assert "samples of damaged left out" in caplog.text


def test_two_runs_are_compared(tmp_path):
    one = untrained(tmp_path, "one")
    other = untrained(tmp_path, "other", seed=3, optimizer=Optimizer(learning_rate=0.5))
    for workdir, losses in ((one, (4.0, 2.0)), (other, (5.0, 0.25))):
        lines = [json.dumps({"step": 10 * number, "loss": loss}) + "\n" for number, loss in enumerate(losses)]
        (workdir / "metrics.jsonl").write_text("".join(lines) + '{"step": 20, "lo')
    assert cli.main(["report", str(one), str(other)]) == 0
    page = Page(tmp_path / "report.html")
    assert_stands_alone(page, tmp_path / "report.html")
    assert page.sections == ["summary", "curves", "config", "environment"]
    assert "last loss 2 0.25" in page.text
    assert "run one other seed 0 3 optimizer one other learning_rate 0.01 0.5 Set alike in all" in page.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "report needs a run: jaxdiff report runs/digits"),
        (("nothing",), "no run in nothing; train one: jaxdiff train CONFIG --workdir nothing"),
        (("RUN", "RUN"), "is given twice; name each run once"),
        (("RUN", "--out", "page.png"), "--out page.png: write a name that ends in .html"),
        (("RUN", "--out", "RUN/config.json/page.html"), "choose another --out"),
        (("RUN", "--num", "-1"), "--num must be at least 0, got -1"),
    ],
)
def test_wrong_reports_are_one_line(tmp_path, capsys, words, message):
    workdir = untrained(tmp_path, "run")
    assert cli.main(["report", *(word.replace("RUN", str(workdir)) for word in words)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


def of_pixels(pixels):
    return data.Images(lambda indices: (pixels[indices], np.zeros(len(indices), np.int32)), len(pixels), 1)


def brute_force(queries, images):
    return np.array([[np.sqrt(np.mean((query - image) ** 2)) for image in images] for query in queries])


@pytest.mark.parametrize("chunk", [1, 7 * 48, 2**24])
def test_nearest_images_are_those_of_brute_force(monkeypatch, chunk):
    """Over all images, mirrored ones too, in parts of any size; a query that is a training image is at 0."""
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
    images = np.concatenate([pixels, pixels[:, :, ::-1]]).astype(np.float64) / 127.5 - 1
    queries = np.concatenate([rng.uniform(-1, 1, (6, 4, 4, 3)), images[[3, 61]]]).astype(np.float32)
    every = brute_force(queries, images)
    distance, index = neighbours.nearest(queries, of_pixels(pixels), np.arange(80), 5)
    np.testing.assert_array_equal(index, np.argsort(every, axis=1)[:, :5])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :5], atol=1e-6)
    assert index[6:, 0].tolist() == [3, 61]
    _, few = neighbours.nearest(queries, of_pixels(pixels), np.array([5, 60]), 5)
    assert [sorted(row) for row in few.tolist()] == [[5, 60]] * 8


def test_copies_are_told_from_new_images():
    rng = np.random.default_rng(1)
    train, test = (rng.integers(0, 256, (200, 4, 4, 1), np.uint8) for _ in range(2))
    fresh = rng.uniform(-1, 1, (30, 4, 4, 1))
    honest = neighbours.compare(fresh, of_pixels(train), of_pixels(test), flip=False)
    assert honest.copies == (0, 0.0)
    assert not honest.memorises
    assert "0 of 30 samples are within a third of the latter" in str(honest)
    assert str(honest).endswith("nothing here is copied from training images.")
    expected = np.median(brute_force(data.normalize(test), data.normalize(train)).min(axis=1))
    assert f"{expected:.3f} from a held-out image" in str(honest)
    copied = fresh.copy()
    copied[:4] = data.normalize(train[:4, :, ::-1])  # mirrored, as training with flips has seen them
    assert not neighbours.compare(copied, of_pixels(train), of_pixels(test), flip=False).memorises
    found = neighbours.compare(copied, of_pixels(train), of_pixels(test), flip=True)
    assert found.copies == (4, 0.0)
    assert found.memorises
    np.testing.assert_allclose(found.images[:4, 0], copied[:4], atol=1e-6)


def test_near_images_that_are_as_usual_are_no_copies():
    """Where held-out images too have twins in training, samples may."""
    rng = np.random.default_rng(2)
    train = rng.integers(0, 256, (100, 4, 4, 1), np.uint8)
    test = np.concatenate([train[:40], rng.integers(0, 256, (60, 4, 4, 1), np.uint8)])
    samples = data.normalize(np.concatenate([train[60:80], rng.integers(0, 256, (30, 4, 4, 1), np.uint8)]))
    found = neighbours.compare(samples, of_pixels(train), of_pixels(test), flip=False)
    assert found.copies == (20, 0.4)
    assert not found.memorises


@pytest.mark.slow
def test_strips_end_with_the_samples(trained):
    """Those that `image_sampler` gives; and in between DDIM's own steps."""
    (found,) = run_record.read_runs([trained])
    ways = render.denoising_strips(found, num=3)
    _, params = storage.read_params(CONFIG, trained)
    images = image_sampler(CONFIG, workdir=trained)(params, np.arange(3), CONFIG.seed)
    assert ways.after == [0, 1, 2, 3]
    for each in (ways.noisy, ways.clean):
        assert each.shape == (4, 3, 8, 8, 1)
        np.testing.assert_allclose(each[-1], images, atol=1e-5)
    levels = build.sampling_levels(CONFIG)
    for number in range(3):
        t, s = levels[number], levels[number + 1]
        moved = jd.transfer(ways.noisy[number] * np.hypot(t.alpha, t.sigma), ways.clean[number], t, s)
        np.testing.assert_allclose(ways.noisy[number + 1], moved / np.hypot(s.alpha, s.sigma), atol=1e-5)
    assert ways.rows.shape == (6, 4, 8, 8, 1)
    np.testing.assert_array_equal(ways.rows[3], ways.clean[:, 1])


def test_the_trajectory_of_a_cascade_ends_with_its_sample():
    """Of a second stage too, whose denoiser sees the first; the clean images are its denoiser's."""
    levels = jd.grid(jd.cosine(), 6)

    def seeing(given):
        return lambda x, level: 0.3 * x + given.get("spatial", 0)

    base = cascade.Stage(seeing, jd.ddim(1.0), levels, (2, 2, 1))
    large = cascade.Stage(lambda given: lambda x, level: 0.3 * x, jd.heun(), levels, (4, 4, 1), 2, jd.cosine()(0.2))
    for stages in ([base], [base, large._replace(denoiser=seeing)]):
        x, x0 = cascade.trajectory(stages, jax.random.key(0), 3, [0, 2, 5, 6])
        sample = cascade.sample(stages, jax.random.key(0), 3)
        assert x.shape == x0.shape == (4, *sample.shape)
        np.testing.assert_allclose(x[-1], sample, atol=1e-6)
        np.testing.assert_allclose(x0[-1], sample, atol=1e-6)
    x, x0 = cascade.trajectory([base, large], jax.random.key(0), 3, [0, 2, 5, 6])
    np.testing.assert_allclose(x0[:-1], 0.3 * x[:-1], atol=1e-6)
    with pytest.raises(ValueError, match="after must end with the number of steps, 6"):
        cascade.trajectory([base], jax.random.key(0), 3, [0, 2])


@pytest.mark.parametrize(
    ("steps", "most", "numbers"),
    [(1, 9, [0, 1]), (3, 9, [0, 1, 2, 3]), (50, 3, [0, 25, 50]), (8, 9, list(range(9))), (1000, 5, [0, 250, 500, 750, 1000])],
)
def test_strips_are_of_even_distances(steps, most, numbers):
    assert build.evenly_spaced_steps(steps, most) == numbers


@pytest.mark.slow
def test_strips_of_latents_are_decoded():
    codec = Experiment(objective="autoencoder", data=CONFIG.data, model=dataclasses.replace(TINY, multipliers=(1, 1)))
    codec = dataclasses.replace(codec, autoencoder=Autoencoder(latent_channels=2), sampling=Sampling(every=0))
    sampling = Sampling(steps=2, guidance=1.0, clip=False)
    made = dataclasses.replace(CONFIG, sources=Sources(autoencoder="codec"), sampling=sampling)
    sources, rng = {"autoencoder": codec}, np.random.default_rng(0)
    shapes = [build.state_shapes(made, sources).params, build.state_shapes(codec).params]
    params, frozen = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    args = params, jax.random.key(0), dict.fromkeys(("index", "label"), np.arange(2)), {"autoencoder": frozen}
    x, x0 = jax.jit(build.denoising_trajectory(made, sources))(*args)
    images = jax.jit(build.image_generator(made, sources))(*args)
    assert x.shape == x0.shape == (3, 2, 8, 8, 1)
    np.testing.assert_allclose(x[-1], images, atol=1e-4)
    np.testing.assert_allclose(x0[-1], images, atol=1e-4)
    assert np.abs(x[0] - x[-1]).max() > 1e-2


@pytest.mark.slow
def test_noise_of_any_schedule_is_shown_in_unit_size():
    """That of EDM begins at 80."""
    diffusion, sampling = Diffusion(schedule="karras", prediction="edm", weight="edm"), Sampling(steps=1, guidance=1.0)
    made = dataclasses.replace(CONFIG, diffusion=diffusion, sampling=sampling)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), build.state_shapes(made).params)
    given = {"index": np.arange(20), "label": np.zeros(20, np.int32)}
    x, _ = jax.jit(build.denoising_trajectory(made))(params, jax.random.key(0), given, {})
    assert float(build.sampling_levels(made)[0].sigma) > 50
    assert float(x[0].std()) == pytest.approx(1, abs=0.1)


def test_settings_say_what_differs_and_what_is_set():
    records = [
        run_record.RunRecord("one", None, CONFIG, "", 0, []),
        run_record.RunRecord("two", None, dataclasses.replace(CONFIG, steps=7, diffusion=Diffusion(prediction="x0")), "", 0, []),
    ]
    found = run_record.settings(records)
    differ = {part: [(each.name, each.values, each.set) for each in rows] for part, rows in found["differ"].items()}
    assert differ == {
        "run": [("steps", ["2", "7"], [True, True])],
        "diffusion": [("prediction", ["v", "x0"], [False, True])],
    }
    alike = {(part, each.name): (each.values[0], each.default) for part, rows in found["set"].items() for each in rows}
    assert alike["model", "multipliers"] == ("1", "1, 2, 2, 2")
    assert alike["optimizer", "learning_rate"] == ("0.01", "0.0002")
    names = [(part, each.name) for parts in found.values() for part, rows in parts.items() for each in rows]
    assert len(set(names)) == len(names)
    assert {name for part, name in names if part == "model"} == config.to_dict(CONFIG)["model"].keys()


SAMPLING = vars(Sampling(sampler="ddim", steps=10, guidance=2.0))
SPEC = evaluate.Spec("classifier", "none", "float32", 100, "digits")


def evaluation(workdir, name, spec, calls, fid, sampling=SAMPLING):
    metrics = {"fid": evaluate.Interval(fid, fid - 1, fid + 1), "label_agreement": evaluate.Interval(0.9, 0.8, 1.0)}
    result = evaluate.Result(spec, metrics, {"fid": evaluate.Interval(1.5, 1.0, 2.0)}, 100)
    evaluate.write_record(workdir / "evaluations" / f"{name}.json", evaluate.Record(2, sampling, calls, 0, "ema", result))


def test_quality_is_grouped_by_how_it_was_measured(tmp_path):
    """Results of another spec stand apart, rows of ladders too, without intervals; what is no result is passed over."""
    workdir = saved(tmp_path, "run")
    evaluation(workdir, "a", SPEC, 20, 12.0)
    evaluation(workdir, "b", SPEC, 38, 9.0, {**SAMPLING, "sampler": "heun"})
    evaluation(workdir, "c", dataclasses.replace(SPEC, features="inception"), 20, 50.0)
    (workdir / "evaluations" / "d.json").write_text("{")
    row = {"calls": 20, "agreement": 0.98, "accuracy": 0.97, "frechet": 7.0, "frechet_real": 3.0, "num_real": 300}
    rows = [{**row, "settings": {**SAMPLING, "run": run}} for run in (storage.fingerprint(workdir), "another")]
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "ladder.json").write_text(json.dumps({"rows": rows}))
    groups = quality.groups(run_record.read_runs([workdir]))
    found = [[(row.how, row.calls, *(each.value for each in row.measures.values())) for row in group.rows] for group in groups]
    assert found == [
        [("ddim 10, guidance 2", 20, 12.0, 0.9), ("heun 10, guidance 2", 38, 9.0, 0.9)],
        [("ddim 10, guidance 2", 20, 50.0, 0.9)],
        [("ddim 10, guidance 2", 20, 0.98, 7.0)],
    ]
    assert groups[0].held_out == {"fid": (1.5, 1.0, 2.0)}
    assert [group.chart is not None for group in groups] == [True, False, False]
    assert cli.main(["report", str(workdir), "--num", "0"]) == 0
    page = Page(workdir / "report.html")
    assert page.sections == ["summary", "quality", "config", "environment"]
    assert "ddim 10, guidance 2 20 12.00 11.00 to 13.00 90.0% 80.0% to 100.0%" in page.text
    assert "ddim 10, guidance 2 20 98.0% 7.00 held-out images" in page.text
    assert "best FID 9.00 with 38 calls" in page.text


def test_calls_are_those_of_the_network():
    student = dataclasses.replace(CONFIG, objective="guided")
    for made, changes, number in (
        (CONFIG, {}, 20),
        (CONFIG, {"guidance": 1.0}, 10),
        (CONFIG, {"guidance": 0.0}, 10),
        (CONFIG, {"sampler": "heun"}, 38),
        (student, {}, 10),
    ):
        assert config.network_calls(dataclasses.replace(made, sampling=Sampling(**{**SAMPLING, **changes}))) == number


def test_curves_are_logarithmic_where_values_are_far_apart(monkeypatch):
    monkeypatch.setattr(curves, "inline", lambda figure, name: figure)
    rows = [{"step": step, "loss": 10.0 ** (-step / 10), "rate": 5.0 + step, "gap": float("nan")} for step in range(21)]
    plots = curves.metrics([run_record.RunRecord("run", None, CONFIG, "", 0, rows)])
    assert list(plots) == ["loss", "rate"]
    assert [figure.axes[0].get_yscale() for figure in plots.values()] == ["log", "linear"]
    x, y = plots["rate"].axes[0].get_lines()[0].get_data()
    assert list(zip(x, y, strict=True)) == [(row["step"], row["rate"]) for row in rows]


def test_long_curves_are_means_of_neighbours(monkeypatch):
    monkeypatch.setattr(curves, "inline", lambda figure, name: figure)
    monkeypatch.setattr(curves, "MOST", 5)
    rows = [{"step": step, "loss": float(step % 2)} for step in range(20)]
    (figure,) = curves.metrics([run_record.RunRecord("run", None, CONFIG, "", 0, rows)]).values()
    x, y = figure.axes[0].get_lines()[0].get_data()
    assert x.tolist() == [1.5, 5.5, 9.5, 13.5, 17.5]
    assert y.tolist() == [0.5] * 5


def test_a_recipe_is_known_by_name_and_content(tmp_path):
    made = config.load("configs/digits.py")
    for name, changed, about in (
        ("digits", made, "Digits of 8x8 pixels, class-conditional: the first run."),
        ("other", made, ""),
        ("digits", dataclasses.replace(made, seed=1), ""),
    ):
        workdir = tmp_path / about[:3] / name if about else tmp_path / f"{changed.seed}" / name
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict(changed)))
        assert run_record.read_runs([workdir])[0].about == about


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "images", "said"),
    [("vae", 4 + 2 * 6, "decoded from the prior"), ("autoencoder", 1, "PSNR"), ("classifier", 0, "Accuracy on held-out images")],
)
def test_runs_that_denoise_nothing_have_the_parts_that_apply(tmp_path, tfds_dir, objective, images, said):
    workdir = saved(tmp_path, objective, objective=objective, sampling=Sampling(every=0, num=10), steps=1)
    assert cli.main(["report", str(workdir), "--num", "2", "--data-dir", tfds_dir]) == 0
    page = Page(workdir / "report.html")
    assert_stands_alone(page, workdir / "report.html")
    near = ["neighbours"] if objective == "vae" else []
    assert page.sections == ["summary", "results", *near, "config", "environment"]
    assert len(page.images) == images
    assert said in page.text
