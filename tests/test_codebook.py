"""Vector quantisation held to its recursions in numpy, and whole runs of both kinds of autoencoder against a discriminator."""

import dataclasses
import itertools
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdiff import data, objectives, training
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import storage
from jaxdiff.objectives import codebook
from jaxdiff.training import checkpoint, mesh

pytestmark = pytest.mark.usefixtures("small_autoencoder")

RNG = np.random.default_rng(0)
DECAY = 0.9


def book(share, codes):
    share = jnp.asarray(share, jnp.float32)
    return {"share": share, "sum": share[:, None] * jnp.asarray(codes, jnp.float32)}


@partial(jax.jit, static_argnames="revive")
def followed(before, z, key, revive=False):
    """The codebook after a step, the codes chosen, and the value of the loss."""
    chosen = codebook.quantized(before, z).chosen
    value, gradient = jax.value_and_grad(codebook.following)(before, z, chosen, key, DECAY, revive)
    optimizer = optax.sgd(1 - DECAY)
    updates, _ = optimizer.update(gradient, optimizer.init(before))
    return optax.apply_updates(before, updates), chosen, value


def test_the_codebook_is_the_running_mean_of_its_recursion():
    share, codes = np.array([0.1, 0.3, 0.2, 0.4]), RNG.normal(size=(4, 3))
    total, found = share[:, None] * codes, book(share, codes)
    for number in range(6):
        z = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
        nearest = ((z[..., None, :] - total / share[:, None]) ** 2).sum(-1).argmin(-1)
        chosen = np.eye(4)[nearest].reshape(-1, 4)
        share = DECAY * share + (1 - DECAY) * chosen.mean(0)
        total = DECAY * total + (1 - DECAY) * chosen.T @ z.reshape(-1, 3) / len(chosen)
        found, numbers, value = followed(found, z, jax.random.key(number))
        np.testing.assert_array_equal(numbers, nearest)
        np.testing.assert_allclose(found["share"], share, rtol=1e-5)
        np.testing.assert_allclose(found["sum"], total, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(codebook.codes(found), total / share[:, None], rtol=1e-4, atol=1e-5)
        assert value == 0


def test_codes_become_the_means_of_clusters():
    centers = np.array([[4.0, 4], [4, -4], [-4, 4], [-4, -4]])
    label = np.repeat(np.arange(4), [10, 20, 30, 40])
    z = (centers[label] + 0.5 * RNG.normal(size=(100, 2))).astype(np.float32)
    found = book(np.full(4, 0.25), centers + np.array([1, -1]))
    for number in range(120):
        found, chosen, _ = followed(found, z, jax.random.key(number), revive=True)
    np.testing.assert_array_equal(chosen, label)
    np.testing.assert_allclose(codebook.codes(found), [z[label == k].mean(0) for k in range(4)], rtol=1e-4)
    np.testing.assert_allclose(found["share"], [0.1, 0.2, 0.3, 0.4], rtol=1e-4)


def test_dead_codes_are_revived_from_the_batch():
    z = RNG.normal(size=(3, 4, 2)).astype(np.float32) + 5
    before = book([0.0, 0.6, 0.01, 0.024, 0.1], [[0, 0], [4, 4], [6, 6], [9, 9], [5, 6]])  # a fifth, times 0.1, is 0.02
    drawn = []
    for number in range(8):
        after, chosen, value = followed(before, z, jax.random.key(number), revive=True)
        codes = np.asarray(codebook.codes(after))
        for dead in (0, 2):
            assert np.abs(z.reshape(-1, 2) - codes[dead]).sum(-1).min() < 1e-5
            np.testing.assert_allclose(after["share"][dead], 1 / 5, rtol=1e-5)
        drawn += [tuple(codes[0].round(4)), tuple(codes[2].round(4))]
        assert value == 0
        asleep, unchanged, _ = followed(before, z, jax.random.key(number))
        for alive in (1, 3, 4):
            np.testing.assert_array_equal(after["sum"][alive], asleep["sum"][alive])
        assert asleep["share"][0] == 0
        np.testing.assert_allclose(codebook.codes(asleep)[2], before["sum"][2] / before["share"][2], atol=1.0)
        np.testing.assert_array_equal(chosen, unchanged)
    assert len(set(drawn)) > 6


def test_a_code_that_was_never_used_is_not_chosen():
    found = codebook.quantized(book([0.5, 0, 0.5], [[3, 3], [0, 0], [5, 5]]), jnp.zeros((2, 2, 2)))
    np.testing.assert_array_equal(found.chosen, 0)
    np.testing.assert_array_equal(found.code, 3)
    np.testing.assert_array_equal(codebook.codes(codebook.empty(3, 2)), 0)
    one = codebook.quantized(book([1.0], [[2.0, 2.0]]), jnp.zeros((2, 2, 2)))
    np.testing.assert_array_equal(one.code, 2)


def test_usage_and_perplexity_are_those_of_the_shares():
    chosen = jnp.asarray(RNG.choice(16, p=np.arange(16) / 120, size=(4, 3, 3)))
    share = np.bincount(np.ravel(chosen), minlength=16) / chosen.size
    found = codebook.usage(chosen, 16)
    used = share[share > 0]
    np.testing.assert_allclose(found["codebook_usage"], len(used) / 16)
    np.testing.assert_allclose(found["perplexity"], np.exp(-(used * np.log(used)).sum()), rtol=1e-5)
    for numbers, perplexity in ((jnp.arange(16), 16), (jnp.full(16, 3), 1)):
        np.testing.assert_allclose(codebook.usage(numbers, 16)["perplexity"], perplexity, rtol=1e-6)


def autoencoder(commitment, revive_until=None, decode=None):
    """An objective whose latents are params themselves; the state at a step; params; a batch."""
    bottleneck = objectives.codebook_bottleneck(lambda params, x0: params["z"], commitment, DECAY, revive_until)
    decode = decode or (lambda params, z: jnp.tanh(z @ params["decoder"]))
    objective = objectives.compression(bottleneck, decode, objectives.pixel_distance(jnp.square))
    params = {
        "z": jax.random.normal(jax.random.key(0), (4, 2, 2, 3)),
        "decoder": jax.random.normal(jax.random.key(1), (3, 5)),
        "codebook": book([0.5, 0.0, 0.4], np.random.default_rng(1).normal(size=(3, 3))),
    }
    batch = {"image": jax.random.normal(jax.random.key(2), (4, 2, 2, 5)), "index": jnp.arange(4)}
    return objective, params, batch


def state_at(step):
    return training.TrainState(jnp.int32(step), {}, {}, ())


def test_the_decoders_gradient_passes_straight_to_the_encoder():
    for commitment in (0.0, 0.25):
        objective, params, batch = autoencoder(commitment)
        code, _ = codebook.quantized(params["codebook"], params["z"])

        def error(z, decoder, batch=batch):
            return jnp.mean((batch["image"] - jnp.tanh(z @ decoder)) ** 2)

        (loss, terms), found = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, state_at(0), batch, jax.random.key(0))
        at_code, decoder = jax.jit(jax.grad(error, (0, 1)))(code, params["decoder"])
        apart = params["z"] - code
        np.testing.assert_allclose(terms["reconstruction"], error(code, params["decoder"]), rtol=1e-5)
        np.testing.assert_allclose(loss, terms["reconstruction"] + commitment * jnp.mean(apart**2), rtol=1e-5)
        np.testing.assert_allclose(found["z"], at_code + commitment * 2 * apart / apart.size, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["decoder"], decoder, rtol=1e-4, atol=1e-6)


def test_the_codebook_hears_nothing_of_images_and_revives_until_its_step():
    def gradient(step, revive_until=None, decode=None, commitment=0.25):
        objective, params, batch = autoencoder(commitment, revive_until, decode)
        return jax.jit(jax.grad(objective, has_aux=True))(params, state_at(step), batch, jax.random.key(0))[0]["codebook"]

    first = gradient(0)
    assert all((leaf[1] != 0).any() for leaf in first.values())
    for same in (gradient(0, commitment=9.0), gradient(0, decode=lambda params, z: 100 * z.sum(-1, keepdims=True)), gradient(2, 3)):
        jax.tree.map(np.testing.assert_array_equal, same, first)
    settled = gradient(3, 3)
    for name, leaf in settled.items():
        np.testing.assert_array_equal(leaf[1], 0)
        np.testing.assert_array_equal(leaf[::2], first[name][::2])


SMALL = config.Experiment(
    objective="autoencoder",
    data=config.Data(name="digits", image_shape=(8, 8, 1), batch_size=16),
    model=config.Model(channels=24, multipliers=(1,), blocks=1, attention=(), head_channels=24),
    autoencoder=config.Autoencoder(
        latent_channels=3, adversarial=0.5, adversarial_start=2, discriminator_channels=8, discriminator_layers=1, measured=100
    ),
    optimizer=config.Optimizer(learning_rate=1e-3),
    ema={"fast": 0.9},
    steps=6,
    log_every=1,
    checkpoint_every=3,
    mesh=config.Mesh(fsdp=2),
)
KINDS = {"gaussian": SMALL, "codebook": dataclasses.replace(SMALL, autoencoder=dataclasses.replace(SMALL.autoencoder, codebook=32))}


@pytest.fixture(autouse=True, scope="module")
def two_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "layout", partial(build.layout, devices=jax.devices()[:2]))
        yield


@pytest.fixture(scope="module", params=KINDS)
def unbroken(request, tmp_path_factory, tfds_dir):
    """Config, command and directory of a run from start to end; one with a codebook has all that one without has, and more."""
    workdir, wanted = tmp_path_factory.mktemp("runs"), KINDS[request.param]
    path = workdir / "recipe.py"
    path.write_text(f"from jaxdiff.app.config import from_dict\nconfig = from_dict({config.to_dict(wanted)!r})\n")
    command = ["train", str(path), "--data-dir", tfds_dir, "--workdir"]
    assert cli.main([*command, str(workdir / "run")]) == 0
    return wanted, command, workdir / "run"


def final_state(wanted, workdir):
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(wanted), single))


def lines(workdir):
    """The metrics of a run, without its speed."""
    read = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "steps_per_s"} for line in read]


@pytest.mark.slow
@pytest.mark.parametrize("unbroken", ["codebook"], indirect=True)
def test_a_run_resumed_from_its_middle_is_the_unbroken_one_bit_for_bit(unbroken, tmp_path):
    wanted, command, workdir = unbroken
    resumed = tmp_path / "run"
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    (resumed / "reconstruction.json").unlink()
    assert checkpoint.steps(resumed) == [3]
    assert cli.main([*command, str(resumed)]) == 0
    assert checkpoint.steps(resumed) == [3, 6]
    jax.tree.map(np.testing.assert_array_equal, *(final_state(wanted, directory) for directory in (resumed, workdir)))
    assert lines(resumed) == lines(workdir)
    assert (resumed / "reconstruction.json").read_bytes() == (workdir / "reconstruction.json").read_bytes()


@pytest.mark.slow
def test_a_run_keeps_both_players_and_says_what_it_found(unbroken):
    wanted, _, workdir = unbroken
    state = final_state(wanted, workdir)
    start = jax.jit(partial(build.init, wanted))(jax.random.key(wanted.seed))
    for params, before in ((state.params, start.params), (state.ema["fast"], start.params)):
        for name in ("encoder", "decoder", "discriminator", *(("codebook",) if wanted.autoencoder.codebook else ()), "latent"):
            moved = jax.tree.map(lambda a, b: (np.asarray(a) != np.asarray(b)).any(), params[name], before[name])
            assert any(jax.tree.leaves(moved)), name
    moments = {
        name: [leaf for leaf in jax.tree.leaves(state.opt_state.inner_states[name]) if leaf.ndim]
        for name in ("generator", "discriminator")
    }
    assert len(moments["generator"]) == 2 * len(jax.tree.leaves((state.params["encoder"], state.params["decoder"])))
    assert len(moments["discriminator"]) == 2 * len(jax.tree.leaves(state.params["discriminator"]))
    assert all((leaf != 0).any() for leaf in moments["discriminator"])
    written = lines(workdir)
    assert [line["step"] for line in written] == [1, 2, 3, 4, 5, 6]
    for line in written:
        assert (line["discriminator"] > 0) == (line["balance"] > 0) == (line["step"] > 2)
        np.testing.assert_allclose(line["loss"], line["generator"] + line["discriminator"], rtol=1e-5)
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").iterdir())
    assert all(name in events for name in (b"generator", b"discriminator", b"psnr", b"balance"))
    found = json.loads((workdir / "reconstruction.json").read_text())
    numbers = 64 if wanted.autoencoder.codebook else 192  # a code is one number
    assert (found["step"], found["num"], found["ratio"]) == (6, 299, 64 / numbers)
    assert ("codebook_usage" in found) == bool(wanted.autoencoder.codebook)
    assert 3 < found["psnr"] < 30
    width, height = Image.open(workdir / "reconstructions.png").size
    assert width / height == pytest.approx(10 / 8, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("unbroken", ["codebook"], indirect=True)
def test_losses_do_not_depend_on_the_mesh(unbroken, tfds_dir):
    """The run was one of two devices, which shared its params; here is one device."""
    wanted, _, workdir = unbroken
    layout = mesh.jit_layout(mesh.make_mesh(1, 1, jax.devices()[:1]), build.state_shapes(wanted))
    step = layout.compile(build.train_step(wanted, layout))
    state = jax.jit(partial(build.init, wanted), out_shardings=layout.sharding)(jax.random.key(wanted.seed))
    rows = data.batches(data.load_images(wanted.data, wanted.data.split, tfds_dir), wanted.data.batch_size, seed=wanted.seed)
    steps = training.loop(step, state, map(layout.shard, itertools.islice(rows, 6)), jax.random.key(wanted.seed + 1))
    for line, (_, metrics) in zip(lines(workdir), steps, strict=True):
        for name in ("generator", "discriminator", "penalty", "psnr"):
            np.testing.assert_allclose(line[name], float(metrics[name]), rtol=1e-4, atol=1e-6)
    sharded = [leaf for leaf in jax.tree.leaves(build.layout(wanted).sharding.params) if not leaf.is_fully_replicated]
    assert sharded
