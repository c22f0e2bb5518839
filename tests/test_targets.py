"""Targets, held to one Gaussian, whose DDIM steps and whose flow are known, and to Lu & Song's formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import MEAN, SCHEDULES, STD, clouds, ddim_end, rows

import jaxdiff as jd
from jaxdiff import oracles, process, targets

each_schedule = pytest.mark.parametrize("schedule", ["cosine", "karras", "rectified_flow"])


def data(dtype=jnp.float64):
    return oracles.gaussian(jnp.array(MEAN, dtype), jnp.array(STD, dtype))


def nothing(batch, key):
    return None


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def heun(denoise, x, t, s):
    return jd.heun().step(denoise, x, (), t, s, None)[0]


@jax.jit
def ends(data, levels, x):
    """For each level of a list but the last two: the end of two steps with a mixture's denoiser, and of one with the target."""
    teacher = oracles.denoiser(data)

    def both(i):
        three = levels[jnp.stack([i, i + 1, i + 2])]
        student = targets.two_steps(teacher, three[1], three[2])
        start = three.sigma[0] * x
        key = jax.random.key(0)
        return jd.sample(jd.ddim(), teacher, start, three, key), jd.sample(jd.ddim(), student, start, three[jnp.array([0, 2])], key)

    return jax.vmap(both)(jnp.arange(levels.sigma.size - 2))


@each_schedule
@pytest.mark.parametrize(("name", "dtype"), [("gaussian", jnp.float32), ("mixture", jnp.float32), ("mixture", jnp.float64)])
def test_one_step_with_the_target_ends_where_the_teachers_two_do(schedule, dtype, name, float64):
    """At all of a list's levels, to the clean one too: to 1e-6 of x's size in float32, and to rounding in float64."""
    levels = cast(jd.grid(SCHEDULES[schedule], 16), dtype)
    x = jax.random.normal(jax.random.key(1), (50, 2), dtype)
    teachers, students = ends(cast(data() if name == "gaussian" else clouds(), dtype), levels, x)
    size = np.asarray(jnp.hypot(levels.alpha, levels.sigma))[2:, None, None]
    np.testing.assert_allclose(students / size, teachers / size, rtol=0, atol=1e-6 if dtype == jnp.float32 else 1e-13)


@each_schedule
def test_target_of_a_gaussian_is_the_product_of_two_gains(schedule, float64):
    levels, x = jd.grid(SCHEDULES[schedule], 16), jax.random.normal(jax.random.key(1), (50, 2))
    _, students = ends(data(), levels, x)
    t, m, s = (levels[i : i + 15] for i in range(3))
    for row in range(15):
        start = np.asarray(t.sigma[row] * x)
        by_hand = ddim_end(ddim_end(start, t[row], m[row]), m[row], s[row])
        np.testing.assert_allclose(students[row], by_hand, rtol=1e-9, atol=1e-9)


@each_schedule
def test_target_where_one_or_both_steps_end_at_data(schedule, float64):
    """To clean in two steps it is the teacher's x0 at m; in one it is that at t; each example of a batch has its own."""
    exact, levels = oracles.denoiser(data()), jd.grid(SCHEDULES[schedule], 8)
    clean, t, m = levels[-1:].expand(2), levels[-3:-2].expand(2), levels[-2:-1].expand(2)
    x = t.sigma * jax.random.normal(jax.random.key(1), (2, 2))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), m, clean)
    with jax.debug_nans(True):
        target = jax.jit(lambda x: targets.two_steps(exact, both, clean)(x, t))(x)
    np.testing.assert_allclose(target[0], exact(jd.transfer(x, exact(x, t), t, m), m)[0], rtol=1e-12)
    np.testing.assert_allclose(target[1], exact(x, t)[1], rtol=1e-12)


def test_three_halvings_put_eight_steps_into_one(float64):
    levels, x = jd.grid(jd.cosine(), 8), jax.random.normal(jax.random.key(1), (50, 2))

    def student_of(teacher, levels):
        return lambda x, t: targets.two_steps(teacher, rows(levels, t, 1), rows(levels, t, 2))(x, t)

    denoise = exact = oracles.denoiser(data())
    for stride in (1, 2, 4):
        denoise = student_of(denoise, levels[::stride])
    one = jax.jit(lambda x: jd.sample(jd.ddim(), denoise, x, levels[::8], jax.random.key(0)))(x)
    np.testing.assert_allclose(one, jd.sample(jd.ddim(), exact, x, levels, jax.random.key(0)), rtol=1e-9)


@functools.partial(jax.jit, static_argnums=0)
def root_losses(solver, logsnr, steps):
    """Of the exact consistency function to itself after one step of the solver, of each length in logsnr."""
    exact, flow = oracles.denoiser(data()), oracles.flow_map(data())
    t, x = process.from_logsnr(logsnr), jax.random.normal(jax.random.key(1), (20, 2))

    def root_loss(length):
        end = targets.ahead(flow, exact, process.from_logsnr(logsnr + length), solver)(x, t)
        return jnp.sqrt(jnp.mean((end - flow(x, t)) ** 2))

    return jax.vmap(root_loss)(steps)


@pytest.mark.parametrize(("solver", "order"), [(targets.euler, 1), (heun, 2)])
@pytest.mark.parametrize("logsnr", [-3.0, 0.0, 3.0])
def test_the_exact_maps_error_falls_with_the_order_of_the_solver(solver, order, logsnr, float64):
    """Of one step of length h in logsnr as h^(p + 1)."""
    steps = 2.0 ** -np.arange(2, 7)
    slopes = np.diff(np.log2(root_losses(solver, logsnr, steps))) / np.diff(np.log2(steps))
    assert abs(slopes[-1] - (order + 1)) < 0.05
    assert np.all(np.abs(slopes - (order + 1)) < 0.3)


ANGLES = np.array([0.02, 0.3, 0.8, 1.2, 1.55])


def in_between():
    """x `[5, 3]` and a variance-preserving level for each, from nearly clean to nearly pure noise."""
    return jax.random.normal(jax.random.key(1), (5, 3)), jd.Level(jnp.cos(ANGLES), jnp.sin(ANGLES)).expand(2)


def other(mean, std):
    return oracles.gaussian(jnp.full((3,), mean), std)


def test_slope_of_another_gaussians_flow_is_the_derivative_by_hand(float64):
    """`f = m + w (x - cos m)`, `w = s / sqrt((cos s)^2 + sin^2)`, along the flow of a Gaussian of mean 0.3 and std 0.6."""
    x, level = in_between()
    mean, std = -0.4, 1.3
    c, s, x_ = np.cos(ANGLES)[:, None], np.sin(ANGLES)[:, None], np.asarray(x)
    x0 = 0.3 + c * 0.6**2 / ((c * 0.6) ** 2 + s**2) * (x_ - c * 0.3)
    dx = (c * x_ - x0) / s
    size = np.sqrt((c * std) ** 2 + s**2)
    by_hand = std / size * (dx + s * mean) - std * (x_ - c * mean) * c * s * (1 - std**2) / size**3
    slope = jax.jit(
        lambda mean, std: targets.slope(oracles.flow_map(other(mean, std)), oracles.denoiser(other(0.3, 0.6))(x, level), x, level)
    )
    np.testing.assert_allclose(slope(mean, std), by_hand, rtol=1e-9)
    np.testing.assert_allclose(slope(0.3, 0.6), 0, atol=1e-12)


def curved(x, logsnr):
    """A network of x's neighbours and of the angle, whose derivatives `curved_slope` knows."""
    angle = jnp.arctan(jnp.exp(-logsnr / 2))[:, None]
    return jnp.sin(2 * x) * jnp.cos(angle) + angle**2 * x + 0.3 * jnp.roll(x, 1, axis=1)


def curved_slope(x, dx, angle):
    by_x = 2 * np.cos(2 * x) * np.cos(angle) * dx + angle**2 * dx + 0.3 * np.roll(dx, 1, axis=1)
    return by_x - np.sin(2 * x) * np.sin(angle) + 2 * angle * x


@jax.jit
def outputs(warmup, floor):
    """The network's output, the teacher's, and the target, in between."""
    x, level = in_between()
    teacher = oracles.denoiser(other(0.3, 0.6))
    target = targets.tangent(jd.denoiser(curved, jd.predict_v), teacher, warmup=warmup, floor=floor)(x, level)
    return curved(x, level.logsnr[:, 0]), teacher(x, level), target


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("floor", [0.1, 5.0])
def test_tangent_is_that_of_lu_and_song_in_the_networks_output(warmup, floor, float64):
    """Their eq. 6, `g = -cos^2 (F - dx/dt) - r cos sin (x + dF/dt)`, over the root of its mean square and c, for predicted v."""
    output, taught, target = map(np.asarray, outputs(warmup, floor))
    x_, angle = np.asarray(in_between()[0]), ANGLES[:, None]
    c, s = np.cos(angle), np.sin(angle)
    dx = (c * x_ - taught) / s
    g = -(c**2) * (output - dx) - warmup * c * s * (x_ + curved_slope(x_, dx, angle))
    step = g / (np.sqrt(np.mean(g**2, axis=1, keepdims=True)) + floor)
    np.testing.assert_allclose((c * x_ - target) / s, output + step, rtol=1e-8)  # the output that the target asks for


def test_tangent_without_the_unstable_part_points_at_the_teacher(float64):
    """From where the student is towards the teacher's x0, `cos^2 / (rms + c)` of the way."""
    x, level = in_between()
    network, teacher = jd.denoiser(curved, jd.predict_v), oracles.denoiser(other(0.3, 0.6))
    moved = jax.jit(lambda x: targets.tangent(network, teacher, warmup=0.0)(x, level) - network(x, level))(x)
    share = np.asarray(moved / (teacher(x, level) - network(x, level)))
    assert np.all(share > 0)
    np.testing.assert_allclose(share, np.broadcast_to(share[:, :1], share.shape), rtol=1e-6)
