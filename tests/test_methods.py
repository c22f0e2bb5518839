"""The table of training methods: each against every property that it must have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AVERAGED, JUMPS, METHODS, POINT

import jaxdiff as jd
from jaxdiff import objectives, training
from jaxdiff.training import mesh

each_method = pytest.mark.parametrize("method", METHODS)
TAUGHT = {name for name, method in METHODS.items() if method.teacher}
WIDTH = 1024  # so that the first matrix is large enough to be sharded
RATE = 3e-3
CUT = (slice(0, 8), slice(8, 16))
DECAYS, OPTIMIZER = {"ema": 0.9}, optax.sgd(RATE)


def network(params, x, logsnr, given, key):
    """Two layers, of x, logsnr and the scale."""
    seen = jnp.concatenate([x, logsnr[:, None] / 10, given[:, None]], axis=1)
    return jnp.tanh(seen @ params["in"] + params["shift"][None]) @ params["out"]


def student(params, given, key):
    return objectives.conditional(network, jd.predict_v, params, given, key)


def jumper(params, given, key):
    """The same layers, told of s beside t."""

    def told(params, x, logsnr, given, key):
        return network(params, x, logsnr + given["until"] / 3, given["label"], key)

    return objectives.conditional_average(told, jd.predict_v, params, given, key)


def teacher(frozen, given):
    """Guided by the scale that it is given, by two networks."""
    label, plain = (student(frozen[name], given, None) for name in ("label", "plain"))
    return jd.guide(label, plain, given[:, None])


def params(seed):
    draw = np.random.default_rng(seed).normal
    return {
        "in": draw(0, 0.5, (4, WIDTH)).astype(np.float32),
        "shift": draw(0, 0.5, (WIDTH,)).astype(np.float32),
        "out": draw(0, WIDTH**-0.5, (WIDTH, 2)).astype(np.float32),
    }


def state(method, step=0):
    """Students, teachers and averages that all differ."""
    frozen = {"label": params(1), "plain": params(2), "encoder": np.float32(0.7)} if method in TAUGHT else {}
    return training.TrainState(np.int32(step), params(0), {"ema": params(3)}, OPTIMIZER.init(params(0)), frozen)


def batch(size=16):
    image = np.random.default_rng(0).normal(0, 0.7, (size, 2)).astype(np.float32)
    return {"image": image, "index": np.arange(size, dtype=np.int32)}


def objective(method, ends=None):
    """In continuous time at all levels of the schedule, or where `ends` at its first and its last alone."""

    def schedule(t):
        return jd.cosine()(t if ends is None else jnp.where(ends, jnp.round(t), t))

    kind = METHODS[method]
    return kind.objective(jumper if method in JUMPS else student, teacher if kind.teacher else None, schedule)


@functools.cache
def scored(method):
    """`(params, frozen, ema, step, batch, key, ends) -> loss, gradients` of what is trained and of what is not."""

    def loss(params, frozen, ema, step, rows, key, ends):
        return objective(method, ends)(params, training.TrainState(step, params, ema, (), frozen), rows, key)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def score(method, state, rows, key=None, ends=False):
    key = jax.random.key(1) if key is None else key
    return scored(method)(state.params, state.frozen, state.ema, state.step, rows, key, ends)


@each_method
def test_steps_on_two_devices_are_those_of_one_and_compile_once(method):
    """Three steps of gradient descent through train_step, sharded, each against the gradient on one device."""
    layout = mesh.jit_layout(mesh.make_mesh(1, 2, jax.devices()[:2]), state(method))
    step = layout.compile(training.train_step(objective(method), OPTIMIZER, DECAYS, reduce_gradients=layout.reduce_gradients))
    now = layout.enter(jax.device_put(state(method), layout.sharding))
    assert not now.params["in"].sharding.is_fully_replicated
    for number in range(3):
        old = jax.device_get(layout.leave(now))
        now, metrics = step(now, layout.shard(batch()), jax.random.key(4))
        new = jax.device_get(layout.leave(now))
        loss, (gradient, *_) = score(method, old, batch(), jax.random.fold_in(jax.random.key(4), number))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        jax.tree.map(
            lambda a, b, g: np.testing.assert_allclose(b - a, -RATE * g, rtol=1e-5, atol=1e-6), old.params, new.params, gradient
        )
        assert min(np.abs(RATE * leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-5  # which the tolerance must not hide
        jax.tree.map(np.testing.assert_array_equal, new.frozen, old.frozen)
    assert step._cache_size() == 1


@each_method
def test_a_cut_batch_has_the_same_mean_loss(method):
    """Each half twice, in one batch: what is drawn for an example does not depend on its place."""
    start, key = state(method, step=3), jax.random.key(1)
    halves = [
        score(method, start, jax.tree.map(lambda leaf, cut=cut: np.concatenate([leaf[cut]] * 2), batch()), key)[0] for cut in CUT
    ]
    whole, _ = score(method, start, batch(), key)
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    assert abs(halves[0] - halves[1]) > 1e-4 * whole


@each_method
def test_the_gradient_stops_at_the_target(method):
    """Nothing flows into a teacher or an average, on both of which the loss depends where the method has them."""
    start = state(method, step=3)
    loss, (student, *stopped) = score(method, start, batch())
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-4 for leaf in jax.tree.leaves(student))
    assert not any(leaf.any() for leaf in jax.tree.leaves(stopped))
    for name, held in (("frozen", TAUGHT), ("ema", AVERAGED)):
        other = jax.tree.map(lambda leaf: np.float32(1.1) * leaf, getattr(start, name))
        assert (score(method, dataclasses.replace(start, **{name: other}), batch())[0] != loss) == (method in held)


@each_method
@pytest.mark.parametrize("step", [0, 5])
def test_loss_and_gradient_are_finite_at_the_ends(method, step):
    """At every level of a list, the first and the last too; in continuous time at both ends of the schedule and nowhere else."""
    with jax.debug_nans(True):
        scores = score(method, state(method, step), batch(), ends=True)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(scores))


@each_method
def test_loss_is_zero_at_its_optimum_alone(method):
    """Its gradient too. Students that differ from the best, and not where there is no noise, have more of both."""
    kind = METHODS[method]

    def student(p, given, key):
        def off(x, t, *s):
            return kind.best(x, t, *s, given) + t.sigma * (p[0] + p[1] * x)

        return off

    built = kind.objective(student, kind.teacher and (lambda frozen, given: kind.teacher(given)), jd.cosine())
    rows = batch(64) if kind.teacher else batch(64) | {"image": jnp.broadcast_to(jnp.array(POINT)[None], (64, 2))}

    def loss(p):
        return built(
            p, training.TrainState(jnp.int32(2), p, {"ema": p}, (), {"encoder": jnp.float32(0.7)}), rows, jax.random.key(2)
        )

    graded = jax.jit(jax.value_and_grad(loss))
    (best, slope), *others = (graded(jnp.array(p)) for p in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.3)))
    for value, gradient in others:
        assert best < 1e-8 * value
        assert jnp.max(jnp.abs(slope)) < 3e-5 * jnp.max(jnp.abs(gradient))
