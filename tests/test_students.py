"""Runs of students: how they start, what teaches them, their levels in the checkpoint, and what is refused."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import process
from jaxdiff.app import build, cli
from jaxdiff.app.build import networks
from jaxdiff.app.config import (
    Autoencoder,
    Data,
    Diffusion,
    Experiment,
    Model,
    Optimizer,
    Sampling,
    from_dict,
    load,
    to_dict,
    validated,
)
from jaxdiff.app.runs import storage
from jaxdiff.app.runs import train as run
from jaxdiff.app.runs.sources import record_sources, source_configs, source_params
from jaxdiff.app.runs.trained import image_sampler
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import unet
from jaxdiff.training import TrainState, checkpoint

TEACHER = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=8),
    model=Model(channels=16, multipliers=(1,), blocks=1, head_channels=8, num_classes=10),
    diffusion=Diffusion(),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
    ema={"ema": 0.5},
    steps=2,
    log_every=1,
    keep=1,
    sampling=Sampling(steps=2, num=10, guidance=2.0),
)
AUTOENCODER = Experiment(
    objective="autoencoder",
    data=TEACHER.data,
    model=Model(channels=8, multipliers=(1,), blocks=1, head_channels=8),
    autoencoder=Autoencoder(latent_channels=2),
)
GUIDED = {"objective": "guided", "sources.teacher": "teacher", "distillation.guidance": (1.0, 4.0)}
PROGRESSIVE = {
    **{"objective": "progressive", "sources.teacher": "guided", "distillation.guidance": (1.0, 4.0)},
    **{"distillation.steps": 8, "steps": 9, "checkpoint_every": 2, "sampling.steps": 1},
}
CONSISTENCY = {
    **{"objective": "consistency", "sources.teacher": "teacher", "distillation.guidance": (2.0, 2.0)},
    **{"distillation.steps": 4, "sampling.sampler": "consistency"},
}
MATCHING = {
    **{"objective": "distribution_matching", "sources.teacher": "teacher", "distillation.guidance": (2.0, 2.0)},
    **{
        "distillation.steps": 2,
        "sampling.sampler": "consistency",
        "matching.generator_every": 2,
        "steps": 5,
        "checkpoint_every": 2,
    },
}
LATENT = {"sources.autoencoder": "kl", "sampling.clip": False}
STUDENTS = {
    "teacher": {},
    "guided": GUIDED,
    "progressive": PROGRESSIVE,
    "everywhere": {**PROGRESSIVE, "distillation.final_steps": 4, "distillation.every_level": True, "steps": 2, "sampling.steps": 4},
    "consistency": CONSISTENCY,
    "matching": MATCHING,
    "adapted": {**CONSISTENCY, "distillation.lora_rank": 2},
    "latent_teacher": LATENT,
    "latent": {**CONSISTENCY, **LATENT, "sources.teacher": "latent_teacher", "distillation.clip": False},
}


def changed(config, changes):
    """The config with fields set by their dotted names."""
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        owner = {section: dataclasses.replace(getattr(config, section), **{field: value})} if section else {field: value}
        config = dataclasses.replace(config, **owner)
    return config


def untrained(workdir, config, seed=0):
    """A run of random params, at its last step, with latents of another mean and scale than 0 and 1."""
    shapes, rng = build.state_shapes(config, source_configs(config)), np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes.params)
    if "latent" in params:
        params["latent"] = {"shift": np.array([0.5, -1.0], np.float32), "scale": np.array([2.0, 0.5], np.float32)}
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    record_sources(config, workdir)
    with checkpoint.manager(workdir) as to:
        last = np.full((), config.steps, np.int32)
        checkpoint.save(to, dataclasses.replace(state, step=last, params=params, ema={"ema": params}), to_dict(config))
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    return workdir


LAYOUT = build.layout


@pytest.fixture(autouse=True, scope="module")
def quick(small_unet, small_autoencoder):
    """Runs of small networks, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "layout", functools.partial(LAYOUT, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With teachers of random params, of images and of an autoencoder's latents."""
    folder = tmp_path_factory.mktemp("students")
    untrained(folder / "kl", AUTOENCODER)
    for name in ("teacher", "latent_teacher"):
        untrained(folder / name, made(folder, name))
    return folder


def made(folder, name, **changes):
    """The config of a student, whose sources are in the folder."""
    config = changed(TEACHER, {**STUDENTS[name], **changes})
    sources = {place: str(folder / source) for place, source in dataclasses.asdict(config.sources).items() if source}
    return validated(dataclasses.replace(config, sources=type(config.sources)(**sources)))


@pytest.fixture(scope="module")
def trained(folder, tfds_dir):
    """A function from a student's name to its run, trained once, after its teacher."""

    def train(name):
        if not (folder / name).exists():
            config = made(folder, name)
            train(pathlib.Path(config.sources.teacher).name)
            assert run.train_run(config, folder / name, tfds_dir) is None
        return folder / name

    return train


@pytest.fixture
def drawn(tmp_path, capsys):
    """The pixels that `jaxdiff sample` draws."""

    def draw(workdir, *flags):
        out = tmp_path / "drawn.npz"
        assert cli.main(["sample", str(workdir), "--num", "10", "--out", str(out), *flags]) == 0, capsys.readouterr().err
        return np.load(out)["image"]

    return draw


@pytest.fixture
def refused(capsys):
    """The one line of a command that is refused."""

    def ask(*words):
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return ask


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def begun(config, workdir):
    """Layout and state with which training begins or goes on."""
    sources, frozen = source_configs(config, workdir), source_params(config, workdir, build.FROZEN)
    layout = build.layout(config, frozen, sources)
    return layout, run.initial_or_restored_state(config, workdir, layout, frozen, sources)


def average(config, workdir, step):
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore_ema(workdir, "ema", storage.with_sharding(build.state_shapes(config).params, single), step)[1]


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def relabelled(workdir, target, **changes):
    """A copy of a run whose config.json says something else."""
    shutil.copytree(workdir, target)
    config = changed(storage.read_config(workdir), changes)
    (target / "config.json").write_text(json.dumps(to_dict(config)))
    return target


def scored(folder, config, jit=jax.jit):
    """`(step, params) -> loss` of random params, another average and the teacher, at fixed noise; compiled once."""
    sources, frozen = source_configs(config), source_params(config, places=build.FROZEN)
    shapes, rng = build.state_shapes(config, sources), np.random.default_rng(1)
    state = jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    state = dataclasses.replace(state, frozen=frozen)
    rows = {
        "image": rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
        "label": np.arange(8, dtype=np.int32),
        "index": np.arange(8),
    }
    objective = build.objective(config, sources)
    loss = jit(lambda params, state: objective(params, state, rows, jax.random.key(0)))
    state = jax.tree.map(jnp.asarray, state)
    return lambda step=0, params=None: float(loss(params or state.params, dataclasses.replace(state, step=jnp.int32(step))))


# Guided students.


def test_a_guided_student_starts_as_its_teacher(folder, tmp_path):
    """At any scale, and with all of its teacher's params."""
    config = made(folder, "guided")
    _, state = begun(config, tmp_path)
    teacher = state.frozen["teacher"]
    assert set(state.params) - set(teacher) == {name for name in state.params if "uidance" in name} != set()
    assert_equal({name: state.params[name] for name in teacher}, teacher)
    assert_equal(state.ema["ema"], state.params)
    x, level = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32), process.cosine()(np.float32(0.5))
    label = np.arange(4)
    teach = jax.jit(lambda params: build.conditional_denoiser(storage.read_config(folder / "teacher"), params, label)(x, level))
    expected = teach(teacher)
    assert np.abs(expected).max() > 0.1
    imitate = jax.jit(lambda params, given: build.conditional_denoiser(config, params, {"label": label, **given})(x, level))
    for scale in (1.0, 4.0):
        np.testing.assert_array_equal(imitate(state.params, {"guidance": np.full(4, scale, np.float32)}), expected)


def test_a_teacher_is_guided_by_the_scale(folder):
    """A student that is its teacher lacks (scale - 1) times the difference that a label makes."""
    teacher = source_params(made(folder, "guided"))["teacher"]
    change = {"distillation.clip": False, "sampling.guidance": 1.0}
    found = []
    for scale in (1.0, 2.0, 3.0):
        how = {**change, "distillation.guidance": (scale, scale), "sampling.guidance": scale}
        found.append(scored(folder, made(folder, "guided", **how))(params=teacher))
    assert found[1] > 1e-2
    np.testing.assert_allclose(found, np.array([0, 1, 4]) * found[1], rtol=1e-4, atol=1e-7)


def test_a_guided_student_learns_its_scale(trained, drawn, refused):
    workdir = trained("guided")
    low, high, same = (drawn(workdir, "--guidance", scale) for scale in ("1", "4", "4"))
    np.testing.assert_array_equal(high, same)
    assert (low != high).any()
    assert np.isfinite(losses(workdir)).all()
    for scale in ("0.5", "4.5"):
        line = refused("sample", workdir, "--guidance", scale)
        assert f"sampling.guidance must be between 1 and 4, the guidance that the student was trained with, got {scale}" in line


# Progressive distillation.


def signalled(config, workdir, data_dir, step, monkeypatch):
    """Trains until Ctrl-C, which comes while the checkpoint of a step is saved; the last step taken."""
    save = checkpoint.save

    def saving(to, state, *rest):
        save(to, state, *rest)
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", saving)
        assert run.train_run(config, workdir, data_dir) == "SIGINT"
    return checkpoint.steps(workdir)[-1]


def test_each_round_ends_with_a_student_that_is_kept(trained, tmp_path, capsys):
    workdir = trained("progressive")
    assert checkpoint.steps(workdir) == [3, 6, 9]  # though keep is 1
    assert {path.name for path in (workdir / "samples").iterdir()} == {"steps_4.png", "steps_2.png", "steps_1.png"}
    config, whole = storage.read_config(workdir), process.grid(process.cosine(), 8)
    for step, steps in ((3, 4), (6, 2), (9, 1)):
        assert cli.main(["sample", str(workdir), "--steps", str(steps), "--num", "10", "--out", str(tmp_path / "x.png")]) == 0
        assert f"10 samples of step {step}: " in capsys.readouterr().out
        asked = changed(config, {"sampling.steps": steps})
        found, params = storage.read_params(asked, workdir)
        assert found == step
        assert_equal(params, average(config, workdir, step))
        trained_on = storage.read_levels(asked, workdir)
        np.testing.assert_array_equal(trained_on.sigma, whole[:: 8 // steps].sigma)
        np.testing.assert_array_equal(trained_on.alpha, whole[:: 8 // steps].alpha)


def test_each_round_begins_anew(trained, tmp_path):
    """With the average of the round before as its teacher, params and average, and an optimizer that has seen no step."""
    workdir = trained("progressive")
    config = storage.read_config(workdir)
    _, last = begun(config, workdir)
    assert [int(leaf) for path, leaf in jax.tree.leaves_with_path(last.opt_state) if ".count" in jax.tree_util.keystr(path)] == [
        3,
        3,
    ]
    ended = tmp_path / "ended"
    shutil.copytree(workdir, ended)
    for step in (6, 9):
        shutil.rmtree(ended / "checkpoints" / str(step))
    layout, state = begun(config, ended)
    assert int(state.step) == 3
    student, ended_with = jax.device_get((average(config, workdir, 3), state.params))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(ended_with), jax.tree.leaves(student), strict=True))
    turned = run.start_next_round(config, layout, state)
    for tree in (turned.params, turned.ema["ema"], turned.frozen["teacher"]):
        assert_equal(tree, student)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(turned.opt_state))
    assert int(turned.step) == 3
    line = f"{ended} has no student of 1 step yet, but of 4; train it on, or choose --steps"
    with pytest.raises(ConfigError, match=line):
        storage.read_params(config, ended)


def test_a_round_begins_from_the_first_average_that_the_config_names(folder):
    """Though jit sorts names."""
    config = dataclasses.replace(made(folder, "progressive"), ema={"z": 0.9, "a": 0.5})
    params = {"kernel": jnp.zeros((2,))}
    averages = {"a": {"kernel": jnp.full((2,), 1.0)}, "z": {"kernel": jnp.full((2,), 2.0)}}
    state = TrainState(jnp.int32(3), params, averages, build.optimizer(config).init(params), {"teacher": params})
    turned = jax.jit(functools.partial(build.next_round_state, config))(state)
    for tree in (turned.params, turned.frozen["teacher"], *turned.ema.values()):
        np.testing.assert_array_equal(tree["kernel"], 2.0)


def test_rounds_go_on_bit_for_bit(folder, trained, tmp_path, tfds_dir, monkeypatch):
    """Stopped between two rounds, and within one."""
    unbroken, config = trained("progressive"), made(folder, "progressive")
    workdir = tmp_path / "stopped"
    assert signalled(config, workdir, tfds_dir, 2, monkeypatch) == 3
    assert signalled(config, workdir, tfds_dir, 4, monkeypatch) == 5
    _, state = begun(config, workdir)
    assert_equal(state.frozen["teacher"], average(config, unbroken, 3))
    assert run.train_run(config, workdir, tfds_dir) is None
    assert checkpoint.steps(workdir) == [3, 6, 9]
    (_, one), (_, other) = (begun(config, each) for each in (unbroken, workdir))
    assert_equal((one.params, one.ema, one.opt_state), (other.params, other.ema, other.opt_state))
    assert losses(unbroken) == losses(workdir)
    assert {path.name for path in (workdir / "samples").iterdir()} == {"steps_4.png", "steps_2.png", "steps_1.png"}


def test_rounds_halve_the_levels(folder):
    config = made(folder, "progressive")
    for every_level, expected in ((False, [4, 4, 4, 2, 2, 2, 1, 1, 1]), (True, [8, 8, 8, 4, 4, 4, 2, 2, 2])):
        each = changed(config, {"distillation.every_level": every_level})
        assert [build.student_levels(each, step).sigma.size - 1 for step in range(1, 10)] == expected


def test_a_round_is_taught_by_steps_of_its_own_length(folder, trained):
    trained("guided")
    loss = scored(folder, made(folder, "progressive"))
    found = [loss(step) for step in range(9)]
    assert found == [loss(step // 3 * 3) for step in range(9)]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "5"), "sampling.steps must be one of 4, 2, 1: the student was trained on levels of these numbers"),
        (("--steps", "8"), "sampling.steps must be one of 4, 2, 1: "),
        (("--spacing", "logsnr"), "sampling.spacing must be time, of the levels that the student was trained on, got 'logsnr'"),
        (("--sampler", "heun"), "sampling.sampler must be ddim (or overshoot) for a progressive student, got 'heun'"),
        (("--sampler", "overshoot"), "sampling.sampler must be another: overshoot samples progressive students trained with"),
        (("--eta", "0.5"), "sampling.eta must be 0 for a student of a list of levels, got 0.5"),
        (("--guidance", "9"), "sampling.guidance must be between 1 and 4"),
    ],
)
def test_what_a_progressive_student_does_not_know(trained, refused, flags, message):
    assert message in refused("sample", trained("progressive"), *flags)


def test_rounds_are_as_long_as_they_were(folder, trained, tfds_dir):
    workdir = trained("progressive")
    with pytest.raises(ConfigError, match="was made by another config: steps was 9, now 12; choose another --workdir"):
        run.train_run(made(folder, "progressive", steps=12), workdir, tfds_dir)


def test_a_student_of_every_level_overshoots(trained, drawn, refused):
    """Twice as many steps, each with fresh noise."""
    workdir = trained("everywhere")
    plain, *noisy = (drawn(workdir, *flags) for flags in ((), *[("--sampler", "overshoot", "--steps", "8")] * 2))
    np.testing.assert_array_equal(*noisy)
    assert (noisy[0] != plain).any()
    assert storage.read_levels(storage.read_config(workdir), workdir).sigma.size == 9
    assert "sampling.steps must be one of 8: " in refused("sample", workdir, "--sampler", "overshoot")


# Consistency.

VARIANTS = {
    "constant": {"distillation.solver": "heun", "distillation.target_ema": "ema", "distillation.weight": "inverse_gap"},
    "doubling": {
        **{"distillation.target": "data", "sources.teacher": "", "distillation.guidance": (1.0, 1.0), "sampling.guidance": 1.0},
        **{"distillation.draw": "lognormal", "distillation.distance": "pseudo_huber", "distillation.huber": 0.03},
        "model.dropout": 0.1,
    },
    "square_root": {"distillation.skip": 2, "distillation.guidance": (1.0, 3.0), "distillation.spacing": "karras"},
    "shrinking": {"distillation.target": "data", "distillation.guidance": (1.0, 1.0), "sampling.guidance": 1.0},
    "continuous": {"diffusion.weight": "v", "distillation.warmup_steps": 2},
}


@pytest.mark.parametrize("curriculum", VARIANTS)
def test_every_way_to_consistency_trains(folder, tmp_path, tfds_dir, drawn, curriculum):
    change = {"distillation.curriculum": curriculum, **VARIANTS[curriculum]}
    change |= {"sampling.spacing": change.get("distillation.spacing", "time")}
    config, workdir = made(folder, "consistency", **change), tmp_path / "run"
    assert run.train_run(config, workdir, tfds_dir) is None
    assert np.isfinite(losses(workdir)).all()
    assert len(losses(workdir)) == 2
    assert drawn(workdir, "--steps", "2").std() > 0
    if curriculum in ("shrinking", "continuous"):
        assert storage.read_levels(config, workdir) is None
        with pytest.raises(Exception, match="holds no levels"):
            checkpoint.read_levels(workdir)
        return
    (step, found), levels = checkpoint.read_levels(workdir), build.student_levels(config)
    assert step == 2
    np.testing.assert_array_equal(np.float32(found["alpha"]), levels.alpha)
    np.testing.assert_array_equal(np.float32(found["sigma"]), levels.sigma)
    assert len(found["sigma"]) == 5


def test_grids_of_a_resumed_run_ask_for_no_levels_of_its_checkpoint(folder, tmp_path, tfds_dir, monkeypatch):
    """Which was trained on fewer levels than the sampler takes steps."""
    change = {"distillation.curriculum": "doubling", "distillation.first_steps": 2, "sampling.steps": 4, "steps": 4}
    config = made(folder, "consistency", **VARIANTS["doubling"], **change, **{"checkpoint_every": 1, "sampling.every": 3})
    workdir = tmp_path / "run"
    stopped = signalled(config, workdir, tfds_dir, 1, monkeypatch)
    assert build.student_levels(config, stopped).sigma.size == 3
    assert run.train_run(config, workdir, tfds_dir) is None
    assert (workdir / "samples" / "step_0000003.png").exists()


COUNTED = [
    {},
    {"distillation.steps": 8},
    {"distillation.spacing": "karras", "sampling.spacing": "karras"},
    {"distillation.guidance": (3.0, 3.0), "sampling.guidance": 3.0},
    {"distillation.clip": False},
    {"distillation.target": "data", "distillation.guidance": (1.0, 1.0), "sampling.guidance": 1.0},
    {"distillation.curriculum": "doubling"},
    {"distillation.curriculum": "square_root", "distillation.first_steps": 3},
    {"distillation.curriculum": "shrinking"},
    {"distillation.curriculum": "shrinking", "distillation.shrink_every": 1},
    {"distillation.curriculum": "continuous"},
    {"distillation.curriculum": "continuous", "distillation.warmup_steps": 10},
    {"distillation.skip": 2},
    {"distillation.draw": "lognormal"},
    {"distillation.solver": "heun"},
    {"distillation.weight": "inverse_gap"},
    {"diffusion.weight": "x0"},
    {"distillation.distance": "pseudo_huber"},
    {"distillation.distance": "pseudo_huber", "distillation.huber": 1.0},
    {"distillation.target_ema": "ema"},
]


@pytest.mark.slow
def test_every_field_of_consistency_counts(folder, monkeypatch):
    """No two of these configs have the same loss. Without jit but for the networks: what they share is compiled once for all."""
    monkeypatch.setattr(networks, "network", functools.cache(lambda module: jax.jit(unet.network(module))))
    configs = [made(folder, "consistency", **change, steps=4) for change in COUNTED]
    found = [scored(folder, config, jit=lambda loss: loss)(step=1) for config in configs]
    assert np.isfinite(found).all()
    gaps = np.diff(np.sort(found)) / np.sort(found)[1:]
    assert gaps.min() > 1e-4, list(zip(found, COUNTED, strict=True))


# Distribution matching.


def test_generator_and_fake_denoiser_begin_as_the_teacher(folder, tmp_path):
    config = made(folder, "matching")
    _, state = begun(config, tmp_path)
    for name in ("generator", "fake"):
        assert_equal(state.params[name], state.frozen["teacher"])
    assert set(state.params) == {"generator", "fake"}


def test_a_generator_is_sampled_by_its_own_params(trained, drawn, tmp_path):
    """In two steps and in one, whatever the fake denoiser says."""
    workdir = trained("matching")
    one, two = (drawn(workdir, "--steps", steps) for steps in ("1", "2"))
    assert (one != two).any()
    assert np.isfinite(losses(workdir)).all()
    config = storage.read_config(workdir)
    _, params = storage.read_params(config, workdir)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (params["generator"], params["fake"])), strict=True))
    other = {**params, "fake": jax.tree.map(jnp.zeros_like, params["fake"])}
    draw = image_sampler(config, workdir=workdir)
    np.testing.assert_array_equal(draw(params, np.arange(10), 0), draw(other, np.arange(10), 0))


def test_distribution_matching_goes_on_bit_for_bit(folder, trained, tmp_path, tfds_dir, monkeypatch):
    """Stopped after a step in which the generator moved; the step after it does not move it."""
    unbroken, config = trained("matching"), made(folder, "matching")
    workdir = tmp_path / "stopped"
    assert signalled(config, workdir, tfds_dir, 2, monkeypatch) == 3
    assert run.train_run(config, workdir, tfds_dir) is None
    (_, one), (_, other) = (begun(config, each) for each in (unbroken, workdir))
    assert_equal((one.params, one.ema, one.opt_state), (other.params, other.ema, other.opt_state))
    assert losses(unbroken) == losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"mesh.fsdp": 2, "optimizer.accumulate": 2}, {"mesh.mapping": "pmap"}])
def test_distribution_matching_trains_alike_however_it_is_spread(folder, trained, tmp_path, tfds_dir, monkeypatch, change):
    plain = trained("matching")
    monkeypatch.setattr(build, "layout", functools.partial(LAYOUT, devices=jax.devices()[:2]))
    assert run.train_run(made(folder, "matching", **change), tmp_path / "run", tfds_dir) is None
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(plain), rtol=1e-4)


# The levels of a checkpoint.


def test_a_student_refuses_other_levels_than_its_own(trained, tmp_path, refused):
    workdir = trained("consistency")
    for number, (change, flags) in enumerate(
        (
            ({"diffusion.schedule": "linear"}, ("--steps", "1")),
            ({"diffusion.schedule": "linear"}, ("--steps", "2")),
            ({"distillation.steps": 6}, ("--steps", "3")),
            ({"distillation.steps": 8}, ("--steps", "8")),
            ({"distillation.spacing": "karras", "sampling.spacing": "karras"}, ("--steps", "2")),
        )
    ):
        other = relabelled(workdir, tmp_path / str(number), **change)
        line = refused("sample", other, *flags)
        assert f"{other} was at step 2 trained on 4 steps of levels from logsnr -15.00 to 1." in line
        assert "by the config that it was trained with and --steps that divide 4" in line


def test_samples_walk_along_the_levels_of_the_checkpoint(trained, tmp_path):
    """Which are a little noisier here than those that the config would make."""
    workdir = tmp_path / "moved"
    shutil.copytree(trained("consistency"), workdir)
    config = storage.read_config(workdir)
    _, params = storage.read_params(config, workdir)
    labels = np.arange(10)
    before = image_sampler(config, workdir=workdir)(params, labels, 0)
    (path,) = (workdir / "checkpoints" / "2" / "meta").glob("metadata")
    meta = json.loads(path.read_text())
    meta["levels"]["alpha"][0] *= 0.99
    path.write_text(json.dumps(meta))
    moved = image_sampler(config, workdir=workdir)(params, labels, 0)
    assert (before != moved).any()
    given = storage.read_levels(config, workdir)
    np.testing.assert_array_equal(build.sampling_levels(config, None, given).alpha, given[::2].alpha)


def test_a_doubling_list_is_coarse_early_and_whole_late():
    """N = 4, 8 and 16 in thirds of the 400 steps (Song & Dhariwal 2023, section 3.4)."""
    config = load("configs/digits_consistency.py")
    found = {step: build.student_levels(config, step) for step in (10, 200, 390, None)}
    assert [len(levels.alpha) for levels in found.values()] == [5, 9, 17, 17]
    for levels in found.values():
        np.testing.assert_array_equal(levels.sigma, found[None].sigma[:: 16 // (len(levels.sigma) - 1)])


# Teachers.

OTHERS = [
    ("guided", {"model.channels": 32}, r"teacher has model.channels 32, this run needs 16;"),
    ("guided", {"model.fourier": (2,)}, r"teacher has model.fourier \(2,\), this run needs \(\);"),
    ("guided", {"diffusion.prediction": "noise"}, r"teacher has diffusion.prediction 'noise', this run needs 'v';"),
    ("guided", {"data.image_shape": (16, 16, 1)}, r"teacher has data.image_shape \(16, 16, 1\), this run needs \(8, 8, 1\)"),
    ("consistency", LATENT, "teacher works in latents; so must the student"),
    ("latent", {}, "teacher works in pixels; so must the student"),
    ("guided", CONSISTENCY, "teacher is a consistency student, no teacher; name what it was distilled from"),
    ("consistency", PROGRESSIVE, "teacher is a progressive student, no teacher; name what it was distilled from"),
    ("guided", {"objective": "classifier"}, "teacher is a classifier run, here a diffusion run is wanted"),
    ("guided", {"diffusion.schedule": "learned", "diffusion.weight": "elbo"}, "teacher has a learned schedule, adapters or a base"),
    ("guided", {**GUIDED, "distillation.guidance": (1.0, 3.0)}, r"distillation.guidance \(1.0, 4.0\) must lie within 1 and 3, th"),
    (
        "progressive",
        {**GUIDED, "distillation.guidance": (0.0, 4.0)},
        r"must be its teacher's \(.*\), \(0.0, 4.0\), got \(1.0, 4.0\)$",
    ),
    ("progressive", {}, r"must be its teacher's .*, got \(1.0, 4.0\); distil the guidance first \(objective guided\)"),
]


@pytest.mark.parametrize(("student", "change", "message"), OTHERS)
def test_a_teacher_must_be_of_the_same_kind(folder, tmp_path, student, change, message):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(to_dict(validated(changed(TEACHER, change)))))
    config = changed(made(folder, student), {"sources.teacher": str(tmp_path / "teacher")})
    with pytest.raises(ConfigError, match=message) as caught:
        source_configs(config)
    assert "\n" not in str(caught.value)


def test_a_student_is_sampled_without_its_teacher(trained, tmp_path, tfds_dir, drawn):
    workdir = trained("consistency")
    alone = relabelled(workdir, tmp_path / "alone", **{"sources.teacher": "gone/teacher"})
    np.testing.assert_array_equal(drawn(alone), drawn(workdir))
    with pytest.raises(ConfigError, match="no run in gone/teacher; train one: jaxdiff train CONFIG --workdir gone/teacher"):
        run.train_run(changed(storage.read_config(alone), {"steps": 3}), alone, tfds_dir)


def test_a_student_goes_on_with_its_own_teacher(folder, trained, tmp_path, tfds_dir):
    other = untrained(tmp_path / "other", made(folder, "teacher"), seed=1)
    alone = relabelled(trained("consistency"), tmp_path / "alone", **{"sources.teacher": str(other)})
    with pytest.raises(ConfigError, match=r"was trained with the teacher .* as it was then .* is another .*; name that one"):
        run.train_run(changed(storage.read_config(alone), {"steps": 3}), alone, tfds_dir)


def test_adapters_are_trained_and_kept_alone(folder, trained, tmp_path, drawn, refused):
    workdir = trained("adapted")
    config = storage.read_config(workdir)
    _, params = storage.read_params(config, workdir)
    _, teacher = storage.read_params(storage.read_config(folder / "teacher"), folder / "teacher")
    assert {jax.tree_util.keystr(path[-1:]) for path, _ in jax.tree.leaves_with_path(params)} == {"['down']", "['up']"}
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, teacher)]
    assert sizes[0] < sizes[1] / 3
    assert any(np.any(leaf) for path, leaf in jax.tree.leaves_with_path(params) if "up" in jax.tree_util.keystr(path))
    assert drawn(workdir).std() > 0
    other = untrained(tmp_path / "other", made(folder, "teacher"), seed=1)
    alone = relabelled(workdir, tmp_path / "alone", **{"sources.teacher": str(other)})
    assert "was trained with the teacher" in refused("sample", alone)
    (alone / "config.json").write_text(json.dumps(to_dict(changed(config, {"sources.teacher": "gone/teacher"}))))
    assert "no run in gone/teacher; train one" in refused("sample", alone)


def test_adapters_start_as_their_teacher(folder, tmp_path):
    config = made(folder, "adapted")
    sources = source_configs(config)
    _, state = begun(config, tmp_path)
    key, given = jax.random.key(0), {"index": np.arange(4), "label": np.arange(4)}
    adapted = jax.jit(build.image_generator(config, sources))(state.params, key, given, state.frozen)
    whole = changed(config, {"distillation.lora_rank": 0})
    np.testing.assert_array_equal(jax.jit(build.image_generator(whole))(state.frozen["teacher"], key, given, {}), adapted)


def test_a_student_in_latents(folder, trained, tmp_path, drawn):
    workdir = trained("latent")
    assert drawn(workdir).shape == (10, 8, 8, 1)
    assert set(json.loads((workdir / "sources.json").read_text())) == {"autoencoder", "teacher"}
    other = untrained(tmp_path / "other", AUTOENCODER, seed=1)
    config = changed(storage.read_config(workdir), {"sources.autoencoder": str(other)})
    with pytest.raises(ConfigError, match=f"sources.autoencoder {other} is not that of the teacher .*latent_teacher, .*kl; name"):
        source_configs(config, tmp_path / "run")


@pytest.mark.slow
def test_a_student_trains_alike_however_it_is_spread(folder, trained, tmp_path, tfds_dir, monkeypatch):
    """Over the devices of a mesh, its params and its teacher too, and by pmap, as on one device."""
    plain = trained("progressive")
    monkeypatch.setattr(build, "layout", functools.partial(LAYOUT, devices=jax.devices()[:2]))
    for change in ({"mesh.fsdp": 2}, {"mesh.mapping": "pmap"}):
        config = made(folder, "progressive", checkpoint_every=9, **change)
        if "mesh.fsdp" in change:
            _, state = begun(config, tmp_path / "none")
            for tree in (state.params, state.frozen["teacher"]):
                assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))
        workdir = tmp_path / "_".join(map(str, change.values()))
        assert run.train_run(config, workdir, tfds_dir) is None
        assert len(losses(workdir)) == config.steps
        np.testing.assert_allclose(losses(workdir), losses(plain), rtol=1e-4)


def test_a_student_has_no_likelihood(trained, refused):
    for name in ("guided", "consistency", "adapted"):
        line = refused("evaluate", trained(name), "--likelihood")
        assert f"--likelihood: a {'guided' if name == 'guided' else 'consistency'} student has none" in line


# What a config may not say.

DATA = {"distillation.target": "data", "distillation.guidance": (1.0, 1.0), "sampling.guidance": 1.0}
RULES = [
    ("progressive", {"distillation.steps": 6}, "distillation.steps must be a power of two, at least 2, got 6"),
    ("progressive", {"distillation.final_steps": 8}, "final_steps must be a power of two below distillation.steps, 8, got 8"),
    ("progressive", {"steps": 10}, "steps must be divisible by the 3 rounds from 8 steps to 1, got 10"),
    ("progressive", {"sampling.every": 1}, "sampling.every must be 0 for a progressive student, whose rounds are sampled at"),
    (
        "progressive",
        {"distillation.lora_rank": 2, "distillation.guidance": (2.0, 2.0)},
        "lora_rank must be left as it is: the objective progressive",
    ),
    ("progressive", {"distillation.guidance": (4.0, 1.0)}, "distillation.guidance must be two scales, the lower first"),
    ("progressive", {"distillation.final_steps": 4, "steps": 2}, "sampling.steps must be one of 4: "),
    ("guided", {"sources.teacher": ""}, "sources.teacher must be a run or a recipe to distil: guided learns from it"),
    ("guided", {"distillation.target": "data"}, "distillation.target must be left as it is: the objective guided does not read it"),
    ("guided", {"diffusion.schedule": "learned", "diffusion.weight": "elbo"}, "diffusion.schedule must be a fixed one for a"),
    ("guided", {"sampling.sampler": "consistency"}, "sampling.sampler must be another: consistency samples consistency students"),
    ("consistency", {"distillation.target": "data"}, "distillation.guidance must be 1 1 without a teacher to guide"),
    ("consistency", {**DATA, "sources.teacher": "", "distillation.lora_rank": 2}, "lora_rank must be 0 without sources.teacher"),
    ("consistency", {"sampling.guidance": 3.0}, "sampling.guidance must be 2, the guidance that the student was trained with"),
    ("consistency", {"sampling.classifier": "classifier"}, "sampling.classifier must be empty for a consistency student"),
    ("teacher", {"distillation.lora_rank": 2}, "lora_rank must be 0 without sources.init, which it adapts"),
    ("consistency", {"sampling.sampler": "ddim"}, "sampling.sampler must be consistency for a consistency student, got 'ddim'"),
    ("consistency", {"sampling.steps": 3}, "sampling.steps must be one of 4, 2, 1: "),
    ("consistency", {"distillation.target_ema": "slow"}, "target_ema must be empty or the name of an EMA: ema, got 'slow'"),
    (
        "consistency",
        {"distillation.curriculum": "doubling", "distillation.first_steps": 3, "distillation.steps": 8},
        "distillation.steps must be first_steps, 3, times a power of two, got 8",
    ),
    ("consistency", {"distillation.curriculum": "square_root", "distillation.first_steps": 5}, "between 1 and distillation.steps"),
    (
        "consistency",
        {"distillation.curriculum": "continuous", "distillation.target_ema": "ema"},
        "continuous consistency does not read",
    ),
    (
        "consistency",
        {"distillation.curriculum": "continuous", "diffusion.schedule": "rectified_flow"},
        "diffusion.schedule must be variance preserving",
    ),
    ("matching", {"sampling.sampler": "ddim"}, "sampling.sampler must be consistency for a generator that matches distributions"),
    ("matching", {"distillation.guidance": (1.0, 3.0)}, "distillation.guidance must be one scale twice for a generator"),
    ("matching", {"sampling.steps": 3}, "sampling.steps must be one of 2, 1: "),
    ("matching", {"sources.teacher": ""}, "sources.teacher must be a run or a recipe to distil: distribution_matching learns"),
    ("matching", {"distillation.lora_rank": 2}, "lora_rank must be left as it is: the objective distribution_matching does not"),
    ("consistency", {"matching.generator_every": 2}, "generator_every must be left as it is: the objective consistency does not"),
    ("matching", {"sampling.classifier": "classifier"}, "sampling.classifier must be empty for a generator"),
    ("latent", {"distillation.clip": True}, "distillation.clip must be False in latent space, whose values have no bounds"),
    ("teacher", {"sources.teacher": "teacher"}, "sources.teacher must be empty without an objective that distils"),
    ("teacher", {"sampling.sampler": "overshoot"}, "sampling.sampler must be another: overshoot samples progressive"),
]


@pytest.mark.parametrize(("name", "change", "message"), RULES)
def test_rules_of_students(tmp_path, name, change, message):
    made(tmp_path, name)  # is right without the change
    with pytest.raises(ConfigError, match="must be") as caught:
        made(tmp_path, name, **change)
    assert message in str(caught.value)


def test_an_older_config_has_no_distillation():
    values = to_dict(TEACHER)
    del values["distillation"], values["sources"]["teacher"]
    assert from_dict(values) == TEACHER
