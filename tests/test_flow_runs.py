"""Runs of flow maps: trained, resumed, begun from a diffusion run and sampled; and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_students import TEACHER, assert_equal, average, begun, changed, untrained

import jaxdiff as jd
from jaxdiff.app import build, cli
from jaxdiff.app.build import networks
from jaxdiff.app.config import validated
from jaxdiff.app.demo import settings
from jaxdiff.app.runs import storage
from jaxdiff.app.runs import train as run
from jaxdiff.io.errors import ConfigError

pytestmark = pytest.mark.usefixtures("small_unet", "one_device")

FLOW = {
    **{"objective": "flow_map", "distillation.target": "data", "distillation.guidance": (1.0, 3.0), "sampling.sampler": "flow_map"},
    **{"published.told": "time", "diffusion.schedule": "rectified_flow", "diffusion.prediction": "velocity"},
    **{"diffusion.weight": "velocity", "flow.mix": 0.25, "flow.equal": 0.5, "steps": 4, "checkpoint_every": 2, "keep": 2},
}


def made(**changes):
    return validated(changed(TEACHER, {**FLOW, **{name.replace("__", "."): value for name, value in changes.items()}}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tfds_dir):
    folder = tmp_path_factory.mktemp("flow")
    assert run.train_run(made(), folder / "whole", tfds_dir) is None
    return folder


def test_a_run_that_was_cut_ends_with_the_same_bits(trained, tfds_dir):
    assert run.train_run(made(steps=2), trained / "cut", tfds_dir) is None
    assert run.train_run(made(), trained / "cut", tfds_dir) is None
    whole, cut = (begun(made(), trained / name)[1] for name in ("whole", "cut"))
    assert int(cut.step) == 4
    assert_equal(whole, cut)


def test_samples_jump_in_any_number_of_steps_at_any_scale_that_was_learned(trained, tmp_path, capsys):
    def drawn(*flags):
        out = tmp_path / "drawn.npz"
        assert cli.main(["sample", str(trained / "whole"), "--num", "4", "--out", str(out), *flags]) == 0, capsys.readouterr().err
        return np.load(out)["image"]

    one, four, again = drawn("--steps", "1"), drawn("--steps", "4"), drawn("--steps", "4")
    noisy, strong = drawn("--steps", "4", "--eta", "1"), drawn("--steps", "1", "--guidance", "3")
    np.testing.assert_array_equal(four, again)
    assert all(np.any(one != other) for other in (four, noisy, strong))
    assert cli.main(["sample", str(trained / "whole"), "--guidance", "4"]) == 1
    assert "sampling.guidance must be between 1 and 3, the guidance that the student was trained with" in capsys.readouterr().err
    assert cli.main(["sample", str(trained / "whole"), "--sampler", "ddim"]) == 1
    assert "sampling.sampler must be flow_map for a flow map, and only for one, got 'ddim'" in capsys.readouterr().err


def test_training_from_a_diffusion_run_begins_as_its_denoiser(tmp_path):
    """Wherever it jumps, as s is not heard at first."""
    source = changed(TEACHER, {name: FLOW[name] for name in FLOW if name.split(".")[0] in ("published", "diffusion")})
    untrained(tmp_path / "diffusion", source)
    config = made(
        sources__init=str(tmp_path / "diffusion"), distillation__guidance=(1.0, 1.0), flow__mix=0.0, sampling__guidance=1.0
    )
    _, state = begun(config, tmp_path / "flow")
    params = average(source, tmp_path / "diffusion", source.steps)
    x, label, t = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32), jnp.arange(4), jd.rectified_flow()(0.7)
    expected = jax.jit(lambda params: build.conditional_denoiser(source, params, {"label": label})(x, t))(params)
    jump = jax.jit(lambda params, time: build.flow_denoiser(config, params, {"label": label})(x, t, jd.rectified_flow()(time)))
    assert np.abs(expected).max() > 0.1
    for time in (0.7, 0.3):
        np.testing.assert_array_equal(jump(state.params, jnp.float32(time)), expected)


def test_a_network_is_told_both_levels_in_one_unit(monkeypatch):
    """Times of rectified flow, times told_scale, of t and of s."""
    told = []

    def network(module):
        return lambda params, x, condition, given, key=None: told.append((condition, given["until"])) or x

    monkeypatch.setattr(networks, "network", network)
    x, levels = np.zeros((2, 8, 8, 1), np.float32), (jd.rectified_flow()(0.7), jd.rectified_flow()(0.3))
    build.flow_denoiser(made(published__told_scale=8.0), {}, {"label": jnp.arange(2)})(x, *levels)
    np.testing.assert_allclose(told[0], [[5.6, 5.6], [2.4, 2.4]], rtol=1e-5)


def test_guidance_in_training_is_that_of_the_networks_own_denoisers(tmp_path):
    """At jumps of no length: `w x0 + k D(label) + (1 - w - k) D(null)`, and for a dropped label `(1 - k) x0 + k D(null)`."""
    config = made(flow__equal=1.0, distillation__guidance=(3.0, 3.0), sampling__guidance=3.0)
    untrained(tmp_path / "run", config)
    _, params = storage.read_params(config, tmp_path / "run")
    given = {"label": jnp.array([3, 10]), "null": {}}
    x0, x = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 1)).astype(np.float32)
    t = jd.rectified_flow()(0.6)
    named = {"label": given["label"]}
    unlabelled = functools.partial(build.students._unlabelled, config)
    teacher = jd.objectives.guided_data(functools.partial(build.flow_denoiser, config), unlabelled, 0.25)
    found = teacher(params, {}, named, x0)(x, t)
    with_label, without = (
        build.flow_denoiser(config, params, {"label": label})(x, t, t) for label in (given["label"], jnp.array([10, 10]))
    )
    np.testing.assert_allclose(found[0], (3 * x0 + 0.25 * with_label - 2.25 * without)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], (0.75 * x0 + 0.25 * without)[1], rtol=1e-4, atol=1e-5)
    assert np.abs(with_label - without).max() > 1e-3
    text, none = jnp.ones((2, 3, 4)), jnp.zeros((1, 3, 4))
    null, scale = unlabelled({**named, "context": text, "null": {"context": none}})  # text is dropped as it is in guided sampling
    np.testing.assert_array_equal(null["context"], jnp.zeros_like(text))
    np.testing.assert_array_equal(null["label"], 10)
    np.testing.assert_array_equal(scale.ravel(), np.float32([3.0, 0.75]))


def test_the_page_draws_a_flow_map_with_its_own_share_of_fresh_noise():
    config = made(sampling__eta=0.5)
    assert settings.samplers(config) == ["flow_map"]
    assert settings.sampled(config, "flow_map", 2).sampling.eta == 0.5


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"flow.finest": 64}, "flow.finest must be left as it is: mean_flow does not read it, got 64"),
        ({"flow.method": "shortcut", "flow.finest": 48}, "flow.finest must be a power of two, got 48"),
        ({"distillation.guidance": (1.0, 1.0), "sampling.guidance": 1.0}, "flow.mix must be 0 without guided training on data"),
        ({"model.num_classes": 0, "sampling.num": 10}, "distillation.guidance must be 1 1 without classes"),
        ({"diffusion.label_dropout": 0.0}, "diffusion.label_dropout must be above 0 for guided training"),
        ({"distillation.target_ema": "slow"}, "distillation.target_ema must be empty or the name of an EMA: ema, got 'slow'"),
        ({"distillation.steps": 8}, "distillation.steps must be left as it is: the objective flow_map does not read it"),
        ({"sampling.sampler": "ddim"}, "sampling.sampler must be flow_map for a flow map"),
        ({"diffusion.schedule": "lognormal"}, "flow map"),
    ],
)
def test_what_a_flow_map_cannot_be_is_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        made(**changes)


def test_adaptive_errors_have_gradients_of_one_size(tfds_dir):
    """Of MeanFlow with power 1: the loss of every example is below 1, and near it where the error is far above c."""
    rows = {"image": np.zeros((8, 8, 8, 1), np.float32), "label": np.arange(8, dtype=np.int32), "index": np.arange(8)}
    config = made(flow__adaptive=1.0, diffusion__weight="x0")
    state = jax.jit(functools.partial(build.init, config))(jax.random.key(0))
    loss = jax.jit(build.objective(config))(state.params, dataclasses.replace(state, opt_state=()), rows, jax.random.key(1))
    assert 0.5 < float(loss) < 1
