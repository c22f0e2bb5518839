"""Power-function averages: their weights by hand, and any other reconstructed from snapshots, against one tracked directly."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from jaxdiff import training
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import storage, train
from jaxdiff.training import checkpoint, power_ema, snapshots
from jaxdiff.training.power_ema import Profile

KEPT, WANTED = (0.05, 0.1), (0.04, 0.08, 0.15)


def test_gamma_of_the_lengths_of_the_paper():
    """Karras et al. (2023), section 3.1: gamma = 6.94 at length 0.1 and 16.97 at 0.05; and by the definition of length."""
    assert [power_ema.gamma_of(length) for length in KEPT] == pytest.approx([16.97, 6.94], abs=5e-3)
    for length in (0.005, 0.05, 0.1, 0.2, 0.28):
        gamma = power_ema.gamma_of(length)
        mean, square = ((gamma + 1) / (gamma + 1 + power) for power in (1, 2))
        assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)
        assert power_ema.length_of(gamma) == pytest.approx(length, rel=1e-6)
    for length in (0.0, 0.2887, -1.0):
        with pytest.raises(ValueError, match=r"above 0 and below 0\.2887"):
            power_ema.gamma_of(length)


def test_inner_products_are_the_integrals():
    profiles = [Profile(t, g) for t in (3.0, 7.0) for g in (0.5, 6.94, 16.97)]

    def value(profile, t):
        return (profile.gamma + 1) * t**profile.gamma / profile.step ** (profile.gamma + 1) if t <= profile.step else 0

    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            exact, _ = integrate.quad(lambda t: value(a, t) * value(b, t), 0, min(a.step, b.step))  # noqa: B023
            assert power_ema.inner_products(profiles, profiles)[i, j] == pytest.approx(exact, rel=1e-7)


def test_a_profile_that_is_known_is_found_and_one_that_is_not_is_far():
    known = [Profile(t, power_ema.gamma_of(length)) for t in range(100, 1001, 100) for length in KEPT]
    weights, distance = power_ema.solve(known[-1], known)
    np.testing.assert_allclose(weights, np.eye(len(known))[-1], atol=1e-5)
    assert distance < 1e-5
    assert power_ema.solve(Profile(1000, power_ema.gamma_of(0.01)), known)[1] > 0.3


def walk(count, key):
    """Params on a random walk, their power averages tracked by the training step itself, after each step."""
    decays = {power_ema.name_of(length): power_ema.share(length) for length in (*KEPT, *WANTED)}
    steps = optax.chain(optax.add_noise(0.02, 0.0, 7), optax.scale(-1.0))
    step = training.train_step(lambda params, state, batch, key: 0 * jnp.sum(params["w"]), steps, decays)
    state = training.initial_state({"w": jax.random.normal(key, (300,))}, steps, decays)

    def body(state, _):
        state, _ = step(state, {"x": jnp.zeros((1,))}, key)
        return state, (state.params["w"], {name: ema["w"] for name, ema in state.ema.items()})

    return jax.jit(lambda state: jax.lax.scan(body, state, length=count)[1])(state)


def test_tracked_averages_weigh_params_by_the_power_function():
    params, ema = walk(200, jax.random.key(0))
    for length in WANTED:
        power, i = power_ema.gamma_of(length) + 1, np.arange(1, 201)
        weights = (i / 200) ** power - ((i - 1) / 200) ** power
        np.testing.assert_allclose(ema[power_ema.name_of(length)][-1], weights @ np.asarray(params), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("length", WANTED)
def test_an_average_from_snapshots_is_the_one_tracked(length):
    """To 1e-3 in relative norm, from snapshots at 20 of 2000 steps of a random walk; bfloat16 would not reach that."""
    _, ema = walk(2000, jax.random.key(1))
    at = [(step, each) for step in range(100, 2001, 100) for each in KEPT]
    known = [Profile(step, power_ema.gamma_of(each)) for step, each in at]
    weights, _ = power_ema.solve(Profile(2000, power_ema.gamma_of(length)), known)
    parts = [ema[power_ema.name_of(each)][step - 1] for step, each in at]
    tracked = ema[power_ema.name_of(length)][-1]
    assert relative(sum(w * np.asarray(part) for w, part in zip(weights, parts, strict=True)), tracked) < 3e-4
    half = [np.asarray(part.astype(jnp.bfloat16), np.float32) for part in parts]
    assert relative(sum(w * part for w, part in zip(weights, half, strict=True)), tracked) > 1e-3


def relative(tree, like):
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, tree, like))
    return float(difference / optax.tree.norm(like))


RUN = (
    *("--data.batch-size", "16", "--model.channels", "16", "--model.multipliers", "1", "--model.attention", "--steps", "100"),
    *("--optimizer.schedule", "constant", "--log-every", "50", "--checkpoint-every", "10", "--keep", "7", "--sampling.every", "0"),
    *("--sampling.num", "10", "--sampling.steps", "2", "--evaluation.num", "0"),
)
LENGTHS = ("--power-ema", *map(str, (*KEPT, *WANTED)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tfds_dir, small_unet, one_device):
    """A run that tracked five averages, as a truth for the ones that are reconstructed from snapshots of two."""
    folder = tmp_path_factory.mktemp("power_ema") / "run"
    words = ["train", "configs/digits.py", "--quiet", "--data-dir", tfds_dir, *RUN, *LENGTHS, "--workdir"]
    assert cli.main([*words, str(folder)]) == 0
    return folder, words


def of_two(run, folder):
    """The run with snapshots of two of its averages alone."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("samples", "tensorboard", "power_ema"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "power_ema": KEPT}))
    shapes = build.state_shapes(storage.read_config(folder))
    for step in snapshots.steps(run):
        averages = {name: snapshots.combined(run, {(step, name): 1.0}, shapes.params) for name in map(power_ema.name_of, KEPT)}
        snapshots.write(folder, step, jax.tree.map(jnp.asarray, averages))
    return folder


def final(run, name):
    shapes = build.state_shapes(storage.read_config(run)).ema[name]
    return checkpoint.restore_ema(run, name, storage.with_sharding(shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0])))[1]


def test_the_command_makes_a_run_of_the_average_that_training_tracked(trained, tmp_path, capsys):
    run, _ = trained
    two = of_two(run, tmp_path / "two")
    assert snapshots.steps(run) == list(range(10, 101, 10))  # though seven checkpoints are kept
    for length in WANTED:
        assert cli.main(["ema", str(two), "--length", str(length), "--quiet"]) == 0
        made = tmp_path / f"two_ema_{length:g}"
        assert relative(final(made, "ema"), final(run, power_ema.name_of(length))) < 1e-3
    assert relative(final(made, "ema"), final(run, power_ema.name_of(0.04))) > 1e-2  # which they would not all be
    assert cli.main(["sample", str(made), "--num", "2", "--out", str(tmp_path / "two.npz"), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["ema", str(two), "--length", "0.15", "--quiet"]) == 1
    assert "two_ema_0.15 exists already and stays as it is" in capsys.readouterr().err
    assert cli.main(["ema", str(two), "--length", "0.01", "--workdir", str(tmp_path / "short"), "--quiet"]) == 1
    assert "--length 0.01 cannot be made of the 10 snapshots" in capsys.readouterr().err
    (two / "power_ema" / "000000050.npz").write_bytes(b"cut")
    assert cli.main(["ema", str(two), "--length", "0.1", "--workdir", str(tmp_path / "cut"), "--quiet"]) == 1
    assert "000000050.npz is no snapshot of this run" in capsys.readouterr().err
    assert not list(tmp_path.glob("[sc]*"))


def test_a_run_that_resumes_has_the_same_snapshots(trained, tmp_path):
    """Killed between step 40 and 60, with snapshots of its future beside it, which are written anew or are gone."""
    run, words = trained
    broken = tmp_path / "run"
    shutil.copytree(
        run, broken, ignore=shutil.ignore_patterns("samples", "tensorboard", "[5-9]0", "100", "*00[6-9]0.npz", "*100.npz")
    )
    assert checkpoint.steps(broken) == [40]
    for step in (50, 55):
        (broken / "power_ema" / f"{step:09d}.npz").write_bytes(b"of a state that was lost")
    assert cli.main([*words, str(broken)]) == 0
    assert snapshots.steps(broken) == snapshots.steps(run)
    for step in snapshots.steps(run):
        name = f"power_ema/{step:09d}.npz"
        assert (broken / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(("every", "steps"), [(0, [4, 8, 10]), (8, [8, 10])])
def test_snapshots_are_written_at_checkpoints_and_at_the_end(every, steps, tmp_path):
    made = dataclasses.replace(config.Experiment(), power_ema=KEPT, checkpoint_every=4, snapshot_every=every, steps=10)
    state = training.initial_state({"w": jnp.ones(2)}, optax.sgd(0.1), {power_ema.name_of(length): 0.5 for length in KEPT})
    for number in (3, 4, 6, 8, 10):  # of which 3 and 6 are saved since the run was told to stop
        train._snapshot(made, tmp_path, number, state)
    assert snapshots.steps(tmp_path) == steps


def test_snapshots_of_sharded_averages_are_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("fsdp",))
    values = jnp.arange(64.0)
    spread = jax.device_put(values, jax.sharding.NamedSharding(mesh, jax.P("fsdp")))
    snapshots.write(tmp_path, 5, {"power_0.1": {"w": spread}})
    got = snapshots.combined(tmp_path, {(5, "power_0.1"): 2.0}, {"w": values})
    np.testing.assert_array_equal(got["w"], 2 * values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power_ema": (0.1,)}, "power_ema must be empty, or at least two different lengths between 0.005 and 0.28"),
        ({"power_ema": (0.1, 0.1)}, "power_ema must be empty, or at least two"),
        ({"power_ema": KEPT, "ema_dtype": "bfloat16"}, "ema_dtype must be float32 with power_ema"),
        ({"snapshot_every": 500}, "snapshot_every must be 0 without power_ema"),
        ({"power_ema": KEPT, "snapshot_every": 7}, "snapshot_every must be 0 or a multiple of checkpoint_every, 500"),
    ],
)
def test_rules_of_the_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        config.validated(dataclasses.replace(config.Experiment(), **changes))
