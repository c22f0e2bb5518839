"""Draws the pictures of docs/road.md: `python docs/draw.py [NAME ...] [--out docs/pictures]`.

Nothing is downloaded and no run is read: the data are mixtures of Gaussians, whose denoiser is known exactly, and the 8x8
digits of scikit-learn. Three pictures train a network of three layers for some seconds. About two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import io
import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from sklearn.datasets import load_digits

import jaxdiff as jd
from jaxdiff import cascade, guidance, likelihood, losses, objectives, oracles, samplers, targets, training
from jaxdiff.io import pictures

INK, PALE, BLUE, ORANGE, GREEN, RED = "#22303c", "#9aa7b1", "#2166ac", "#e08214", "#1b7837", "#b2182b"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#dbe9f6", "#8fbbe0", "#4a8cc7"])
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
}
KEY = jax.random.key(0)
TWO_PI = 2 * np.pi

LINE = oracles.mixture([0.4, 0.25, 0.35], [[-1.1], [0.15], [1.2]], [0.12, 0.12, 0.12])
ANGLES = np.linspace(0, TWO_PI, 5, endpoint=False) + np.pi / 2
PETALS = oracles.correlated(  # five ellipses that point to the origin
    np.ones(5, np.float32),
    np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32) * 1.1,
    np.stack(
        [(t := np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])) @ np.diag([0.09, 0.008]) @ t.T for a in ANGLES]
    ).astype(np.float32),
)


def likelihoods():
    """Three models of the same draws, and the mean log-likelihood that orders them."""
    x = oracles.draw(LINE, KEY, 4000)
    mean, covariance = oracles.moments(LINE)
    wide = oracles.mixture([0.5, 0.5], [[-1.0], [0.9]], [0.45, 0.45])
    models = {"one Gaussian": oracles.gaussian(mean, jnp.sqrt(covariance[0])), "two Gaussians": wide, "the data's own law": LINE}
    clean, along = jd.Level(jnp.ones(()), jnp.zeros(())), jnp.linspace(-2.4, 2.4, 500)[:, None]
    figure, axis = plt.subplots(figsize=(7, 2.5))
    axis.hist(np.asarray(x[:, 0]), bins=120, density=True, color="#d5dde3", label="4,000 draws of the data")
    for (name, model), color in zip(models.items(), (ORANGE, GREEN, BLUE), strict=True):
        nats = float(jnp.mean(oracles.log_density(model, x, clean)))
        axis.plot(
            along[:, 0], jnp.exp(oracles.log_density(model, along, clean)), color=color, lw=1.8, label=f"{name}: {nats:.2f} nats"
        )
    axis.set(xlabel="x", ylabel="density", xlim=(-2.4, 2.4))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def bound():
    """The KL terms of the bound by level, and the bound against the number of steps."""
    denoise, x0 = oracles.denoiser(PETALS), oracles.draw(PETALS, KEY, 512)
    schedule = jd.uniform_logsnr(jd.cosine(-10.0, 10.0))
    exact = float(jnp.mean(oracles.log_density(PETALS, x0, jd.Level(jnp.ones(()), jnp.zeros(())))))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
    for num, color in ((16, ORANGE), (128, BLUE)):
        levels = jd.grid(schedule, num, t_min=0)
        terms = likelihood.step_terms(denoise, x0, levels, KEY, num_samples=4).mean((1, 2))
        edges = np.asarray(levels[:-1].logsnr)
        left.stairs(
            np.asarray(terms) / np.diff(edges), edges, color=color, lw=1.5, fill=num == 128, alpha=0.25 if num == 128 else 1
        )
        left.stairs(np.asarray(terms) / np.diff(edges), edges, color=color, lw=1.5, label=f"{num} steps: {terms.sum():.2f} nats")
    left.set(title="what each level adds to the bound", xlabel="logsnr (noise left, data right)", ylabel="nats a unit of logsnr")
    left.legend()
    nums = [4, 8, 16, 32, 64, 128, 256]
    values = []
    for num in nums:
        levels = jd.grid(schedule, num, t_min=0)
        estimate = likelihood.discrete_bound(denoise, x0, levels, KEY, likelihood.gaussian, num_samples=4)
        values.append(float(likelihood.mean(estimate).value))
    right.plot(nums, exact - np.array(values), "o-", color=BLUE, ms=4)
    right.set(title="how far the bound is below log p(x)", xlabel="steps", ylabel="nats", xscale="log", yscale="log")
    right.set_xticks(nums, [str(num) for num in nums])
    right.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    right.minorticks_off()
    return figure


def mlp(sizes, key):
    """Params of a network of dense layers."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (a, b)) / a**0.5, "bias": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def dense(params, x):
    """The network's output."""
    for layer in params[:-1]:
        x = jax.nn.silu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def trained(objective, params, data, steps, frozen=None, size=512, rate=2e-3):
    """The averaged params after training on draws of a mixture."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = training.initial_state(params, optimizer, {"ema": 0.99}, frozen)
    step = training.train_step(objective, optimizer, {"ema": 0.99})

    def body(state, number):
        key = jax.random.fold_in(KEY, number)
        component = jax.random.categorical(key, jnp.log(data.weights), shape=(size,))
        batch = {"image": oracles.draw(data, key, size), "label": component, "index": jnp.arange(size)}
        return step(state, batch, KEY)[0], None

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(steps))[0])(state).ema["ema"]


def autoencoder():
    """A VAE of two-dimensional data: the data, its codes, and samples of the prior."""

    def encode(params, x0):
        mean, log_std = jnp.split(dense(params["encoder"], x0), 2, axis=-1)
        return mean, jnp.exp(log_std)

    def decode(params, z, x0):
        return likelihood.gaussian(x0, dense(params["decoder"], z), jnp.exp(params["log_std"]))

    keys = jax.random.split(KEY, 4)
    params = {"encoder": mlp([2, 64, 64, 4], keys[0]), "decoder": mlp([2, 64, 64, 2], keys[1]), "log_std": jnp.array(-2.0)}
    params = trained(objectives.vae(encode, decode), params, PETALS, 4000)
    parts = [oracles.draw(oracles.conditional(PETALS, np.eye(5)[k]), jax.random.fold_in(keys[2], k), 200) for k in range(5)]
    prior = jax.random.normal(keys[3], (1000, 2))
    noise = jnp.exp(params["log_std"]) * jax.random.normal(keys[2], (1000, 2))
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
    for number, (part, color) in enumerate(zip(parts, (BLUE, ORANGE, GREEN, RED, INK), strict=True)):
        codes = likelihood.reparameterized(likelihood.Posterior(*encode(params, part)), jax.random.fold_in(keys[3], number))
        axes[0].scatter(*part.T, s=3, color=color, lw=0)
        axes[1].scatter(*codes.T, s=3, color=color, lw=0)
    for radius in (1, 2):
        axes[1].add_patch(plt.Circle((0, 0), radius, fill=False, color=PALE, lw=1))
    axes[2].scatter(*(dense(params["decoder"], prior) + noise).T, s=3, color=PALE, lw=0)
    titles = ("data, five kinds", "codes z of q(z | x)", "samples: decoded from N(0, I)")
    for axis, title, limit in zip(axes, titles, (2.1, 3.4, 2.1), strict=True):
        _square(axis, title, limit)
    return figure


def forward():
    """Data noised more and more, over the density of each level."""
    x0, noise = oracles.draw(PETALS, KEY, 300), jax.random.normal(jax.random.key(1), (300, 2))
    figure, axes = plt.subplots(1, 5, figsize=(9, 2.2))
    for axis, t in zip(axes, (0.0, 0.15, 0.35, 0.6, 1.0), strict=True):
        level = jd.cosine()(t)
        _density(axis, PETALS, level)
        axis.scatter(*jd.diffuse(x0, noise, level).T, s=2, color=INK, lw=0, alpha=0.6)
        _square(axis, f"t = {t:g}, logsnr {level.logsnr:.1f}".replace("-", "\N{MINUS SIGN}"), 2.6)
    return figure


def fields():
    """What the same denoiser says in the words of four kinds of network."""
    level, denoise = jd.cosine()(0.25), oracles.denoiser(PETALS)
    ticks = jnp.linspace(-1.8, 1.8, 11)
    x = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    x0 = denoise(x, level)
    noise = (x - level.alpha * x0) / level.sigma
    shown = {
        "to x0": (x0 - x, BLUE),
        "noise": (noise, ORANGE),
        "score": (-noise / level.sigma, GREEN),
        "v": (level.alpha * noise - level.sigma * x0, RED),
        "velocity": (noise - x0, INK),
    }
    figure, axes = plt.subplots(1, 5, figsize=(9, 2.2))
    for axis, (title, (arrows, color)) in zip(axes, shown.items(), strict=True):
        _density(axis, PETALS, level)
        longest = float(jnp.max(jnp.linalg.norm(arrows, axis=-1)))
        axis.quiver(*x.T, *arrows.T, color=color, angles="xy", scale_units="xy", scale=longest / 0.75, width=0.01)
        _square(axis, title, 2.4)
    return figure


def guided():
    """Samples of one label at four scales, by guidance with and without a classifier."""
    data = oracles.mixture([0.5, 0.3, 0.2], [[-0.6, 0.0], [0.5, 0.5], [0.6, -0.5]], [0.45, 0.4, 0.35])
    label = np.array([0.0, 0.0, 1.0])
    plain, with_label = oracles.denoiser(data), oracles.denoiser(oracles.conditional(data, label))
    x, levels = jax.random.normal(KEY, (160, 2)), jd.grid(jd.cosine(-12.0, 12.0), 100)
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.6))
    for axis, scale in zip(axes, (0.0, 1.0, 2.0, 5.0), strict=True):
        free = guidance.guide(with_label, plain, scale)
        classifier = guidance.classifier_guide(plain, oracles.class_log_prob(data, label), scale)
        _density(axis, data, jd.cosine()(0.0))
        found, same = (np.asarray(jd.sample(jd.ddim(), denoise, x, levels, KEY)) for denoise in (free, classifier))
        axis.scatter(*found.T, s=7, color=RED, lw=0)
        axis.scatter(*same.T, s=20, facecolors="none", edgecolors=INK, lw=0.5)
        _square(axis, f"scale {scale:g}", 2.1)
    axes[0].scatter([], [], s=7, color=RED, lw=0, label="classifier-free")
    axes[0].scatter([], [], s=20, facecolors="none", edgecolors=INK, lw=0.5, label="by a classifier")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def paths():
    """The same starts walked by DDPM and by DDIM, over the density of every level."""
    levels = jd.grid(jd.cosine(-10.0, 10.0), 200)
    x = jax.random.normal(jax.random.key(3), (14, 1))
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), sharey=True)
    for axis, sampler, color, title in (
        (axes[0], jd.ddpm(), ORANGE, "DDPM: fresh noise at each step"),
        (axes[1], jd.ddim(), BLUE, "DDIM: the noise is kept"),
    ):
        _heat(axis, levels)
        states = jd.trajectory(sampler, oracles.denoiser(LINE), x, levels, KEY)[:, :, 0]
        axis.plot(np.linspace(1, 0, len(states)), states, color=color, lw=0.8)
        axis.set(title=title, xlabel="time t, from noise to data", xlim=(1, 0), ylim=(-2.9, 2.9))
    axes[0].set_ylabel("x")
    return figure


def halving():
    """Progressive distillation in one dimension: the x0 that makes one step of the teacher's two."""
    denoise, x = oracles.denoiser(LINE), jnp.array([[1.5]])
    t, m, s = (jd.Level(jnp.ones(()), jnp.asarray(sigma)) for sigma in (1.8, 0.9, 0.3))
    x_m = targets.euler(denoise, x, t, m)
    x_s = targets.euler(denoise, x_m, m, s)
    target = targets.two_steps(denoise, m, s)(x, t)
    levels = jd.grid(jd.respaced(jd.karras(1e-3, 1.8), lambda level: level.sigma), 400, t_min=0)
    curve = jd.trajectory(jd.heun(), denoise, x, levels, KEY)[:, 0, 0]
    figure, axis = plt.subplots(figsize=(6.5, 2.9))
    axis.plot(levels.sigma, curve, color=PALE, lw=2.5, label="the probability flow")
    for start, at, end in ((x, t, denoise(x, t)), (x_m, m, denoise(x_m, m))):
        axis.plot([float(at.sigma), 0], [float(start[0, 0]), float(end[0, 0])], ":", color=ORANGE, lw=1.1)
    places = [(float(level.sigma), float(value[0, 0])) for level, value in ((t, x), (m, x_m), (s, x_s))]
    axis.plot(*zip(*places, strict=True), "o-", color=ORANGE, lw=1.8, ms=5, label="two DDIM steps of the teacher")
    axis.plot([1.8, 0], [1.5, float(target[0, 0])], "--", color=BLUE, lw=1.6, label="one step of the student")
    axis.plot(0, float(target[0, 0]), "s", color=BLUE, ms=7, clip_on=False, label="its target, two_steps(teacher, m, s)")
    for (sigma, value), name in zip(places, ("t", "m", "s"), strict=True):
        axis.annotate(name, (sigma, value), (0, 7), textcoords="offset points", ha="center")
    axis.set(xlabel="sigma (alpha = 1)", ylabel="x", xlim=(1.9, 0))
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def scales():
    """A guided teacher as a function of x and of the scale, and a network that has learned both."""
    label = np.array([0.0, 1.0, 0.0])
    plain, with_label = oracles.denoiser(LINE), oracles.denoiser(oracles.conditional(LINE, label))

    def student(params, given, dropout_key):
        def network(x, logsnr):
            return dense(params, jnp.concatenate([x, logsnr[:, None] / 4, given["scale"][:, None] / 2], -1))

        return jd.denoiser(network, jd.predict_v)

    def teacher(frozen, given):
        return guidance.guide(with_label, plain, given["scale"][:, None])

    condition = objectives.joint(scale=objectives.guidance_scales(0.0, 4.0))
    objective = objectives.guided(student, teacher, jd.cosine(-6.0, 6.0), losses.v_weight, condition=condition)
    params = trained(objective, mlp([3, 96, 96, 1], KEY), LINE, 4000)
    x, level = jnp.linspace(-2.4, 2.4, 41)[:, None], jd.cosine()(0.4)
    figure, axis = plt.subplots(figsize=(6.5, 2.7))
    for scale, color in ((0.0, PALE), (1.0, BLUE), (2.0, GREEN), (4.0, RED)):
        exact = guidance.guide(with_label, plain, scale)(x, level)
        learned = student(params, {"scale": jnp.full(41, scale)}, None)(x, level)
        axis.plot(x[:, 0], exact[:, 0], color=color, lw=1.5, label=f"scale {scale:g}")
        axis.plot(x[:, 0], learned[:, 0], "o", color=color, ms=3)
    axis.plot([], [], "-", color=INK, label="teacher, two calls")
    axis.plot([], [], "o", color=INK, ms=3, label="student, one call")
    axis.set(xlabel="x at t = 0.4", ylabel="x0", xlim=(-2.4, 2.4))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def jumps():
    """A consistency function: the end of the flow from each of its points, exact and learned in two ways."""
    denoise, levels = oracles.denoiser(LINE), jd.grid(jd.cosine(-8.0, 8.0), 256)

    def student(params, given, dropout_key):
        return jd.denoiser(lambda x, logsnr: dense(params, jnp.concatenate([x, logsnr[:, None] / 4], -1)), jd.predict_v)

    def objective(teacher):
        pairs = objectives.steps_of(levels, objectives.doubling(8, 128, 6000))
        condition = lambda batch, key: None  # noqa: E731
        return objectives.consistency(student, teacher, pairs, objectives.of_noisier(losses.v_weight), condition=condition)

    start = trained(  # both go on from a denoiser, as consistency tuning does
        objectives.diffusion(
            lambda params, x, logsnr, given, key: dense(params, jnp.concatenate([x, logsnr[:, None] / 4], -1)),
            jd.cosine(-8.0, 8.0),
            jd.predict_v,
            losses.v_weight,
            condition=lambda batch, key: None,
        ),
        mlp([2, 128, 128, 1], KEY),
        LINE,
        3000,
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3), width_ratios=(1.2, 1))
    _heat(left, levels)
    starts = jnp.array([[-1.5], [-0.55], [0.22], [0.75], [1.6]])
    states = jd.trajectory(jd.ddim(), denoise, starts, levels, KEY)[:, :, 0]
    left.plot(np.linspace(1, 0, 257), states, color=INK, lw=1)
    for path in range(5):
        for index in (0, 96, 176):
            point, end = (1 - index / 256, float(states[index, path])), (0.0, float(states[-1, path]))
            left.annotate(
                "", end, point, arrowprops={"arrowstyle": "->", "color": RED, "lw": 0.7, "connectionstyle": "arc3,rad=-0.12"}
            )
            left.plot(*point, "o", color=RED, ms=3)
    left.set(title="one jump from anywhere on a path to its end", xlabel="time t", ylabel="x", xlim=(1, 0), ylim=(-2.6, 2.6))
    index = 64
    x = jnp.linspace(-2.4, 2.4, 300)[:, None]
    right.plot(x[:, 0], denoise(x, levels[index])[:, 0], color=PALE, lw=1.8, label="denoiser: the mean")
    right.plot(x[:, 0], jd.sample(jd.ddim(), denoise, x, levels[index:], KEY)[:, 0], color=INK, lw=1.8, label="the flow's end")
    for name, teacher, color in (("distilled", lambda frozen, given: denoise, BLUE), ("trained on data", None, ORANGE)):
        params = trained(objective(teacher), start, LINE, 6000, rate=1e-3)
        right.plot(x[:, 0], student(params, None, None)(x, levels[index])[:, 0], color=color, lw=1.3, label=name)
    right.set(title="x0 at t = 0.75", xlabel="x", xlim=(-2.4, 2.4))
    right.legend(loc="upper left")
    return figure


DIGITS = (load_digits().images[..., None] / 8 - 1).astype(np.float32)


def codes():
    """A linear autoencoder of the digits, 16 numbers each, and a mixture in its space: encode, decode, the mixture."""
    flat = DIGITS.reshape(len(DIGITS), -1)
    mean = flat.mean(0)
    axes = jnp.asarray(np.linalg.svd(flat - mean, full_matrices=False)[2][:16])
    raw = (flat - mean) @ axes.T
    scale = raw.std()

    def decode(z):
        return (z * scale @ axes + mean).reshape(-1, 8, 8, 1)

    z = jnp.asarray(raw / scale)
    return z, decode, oracles.mixture(np.ones(len(z), np.float32), z, np.full(len(z), 0.15, np.float32))


def latents():
    """Digits, their codes, what is decoded; and a sample on its way in the codes' space."""
    z, decode, data = codes()
    chosen = np.arange(14)
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 3.6), height_ratios=(3, 2))
    above.imshow(_rows([DIGITS[chosen], _tiles(z[chosen]), decode(z[chosen])]), interpolation="nearest")
    above.set(title="an autoencoder: an image, its code of 16 numbers, the image again")
    x, levels = jax.random.normal(jax.random.key(11), (1, 16)), jd.grid(jd.uniform_logsnr(jd.cosine(-5.0, 8.0)), 26, t_min=0)
    states = jd.trajectory(jd.ddpm(), oracles.denoiser(data), x, levels, KEY, every=2)[:, 0]
    below.imshow(_rows([_tiles(states), decode(states)]), interpolation="nearest")
    below.set(title="sampling among codes, and what each state decodes to")
    for axis, names in ((above, ("x0", "code", "decoded")), (below, ("code", "decoded"))):
        _rows_named(axis, names)
    return figure


def steps():
    """Digits from the same noise by 1, 2, 4, 8 and 100 steps, and by the flow's one jump."""
    _, decode, data = codes()
    x, schedule = jax.random.normal(jax.random.key(5), (14, 16)), jd.cosine(-8.0, 10.0)
    counts = (1, 2, 4, 8, 100)
    drawn = [decode(jd.sample(jd.ddim(), oracles.denoiser(data), x, jd.grid(schedule, num), KEY)) for num in counts]
    figure, axis = plt.subplots(figsize=(7, 3))
    axis.imshow(_rows(drawn), interpolation="nearest")
    _rows_named(axis, [f"{num} step{'s' if num > 1 else ''}" for num in counts])
    return figure


def pyramid():
    """A cascade of two exact stages: digits of 4x4, and given these, noised, digits of 8x8."""
    small = np.asarray(objectives.downsampled(jnp.asarray(DIGITS), 2)).reshape(-1, 16)
    base, large = (
        oracles.mixture(np.ones(len(flat), np.float32), flat, np.full(len(flat), 0.08, np.float32))
        for flat in (small, DIGITS.reshape(-1, 64))
    )
    spread = objectives.upsampled(jnp.eye(16).reshape(16, 4, 4, 1), 2).reshape(16, 64)  # of each small pixel
    augmentation = jd.cosine()(0.12)

    def enlarging(given):
        low = given["spatial"].reshape(-1, 64) @ jnp.linalg.pinv(spread)  # the noised small image that was given
        log_q = -jnp.sum((low[:, None] - augmentation.alpha * small[None]) ** 2, -1) / (2 * (augmentation.sigma**2 + 0.08**2))
        weights = jax.nn.softmax(log_q, axis=-1)
        one = lambda x, w, level: oracles.denoiser(oracles.conditional(large, w))(x[None], level)[0]  # noqa: E731
        return lambda x, level: jax.vmap(one, in_axes=(0, 0, None))(x, weights, level)

    levels = jd.grid(jd.uniform_logsnr(jd.cosine(-8.0, 10.0)), 20, t_min=0)
    first = cascade.Stage(lambda given: oracles.denoiser(base), jd.ddpm(), levels, (4, 4, 1))
    second = cascade.Stage(enlarging, jd.ddpm(), levels, (8, 8, 1), factor=2, augmentation=augmentation)
    low, high = cascade.pyramid([first, second], KEY, 14)
    condition = objectives.augmented(low, augmentation, 2, KEY)["spatial"]
    figure, axis = plt.subplots(figsize=(7, 2))
    axis.imshow(_rows([low.repeat(2, 1).repeat(2, 2), condition, high]), interpolation="nearest")
    _rows_named(axis, ("4x4", "what is given", "8x8"))
    return figure


def fewer():
    """Multistep consistency sampling in two dimensions: jump, noise anew, jump."""
    denoise, fine = oracles.denoiser(PETALS), jd.grid(jd.cosine(-8.0, 8.0), 128)
    x = jax.random.normal(KEY, (600, 2))

    def ends(x, level):  # the flow from a level of the list, walked: what a consistency model does in one call
        return jax.lax.switch(
            jnp.argmin(jnp.abs(fine.sigma[:-1] - level.sigma)) // 32,
            [lambda x, first=first: jd.sample(jd.dpmpp_2m(), denoise, x, fine[first:], KEY) for first in (0, 32, 64, 96)],
            x,
        )

    figure, axes = plt.subplots(1, 4, figsize=(9, 2.6))
    shown = {
        "denoiser, 1 call": jd.sample(jd.ddim(), denoise, x, fine[::128], KEY),
        "denoiser, 4 calls (DDIM)": jd.sample(jd.ddim(), denoise, x, fine[::32], KEY),
        "consistency, 1 call": jd.sample(jd.consistency(), ends, x, fine[::128], KEY),
        "consistency, 4 calls": jd.sample(jd.consistency(), ends, x, fine[::32], KEY),
    }
    for axis, (title, points), color in zip(axes, shown.items(), (ORANGE, ORANGE, BLUE, BLUE), strict=True):
        _density(axis, PETALS, jd.cosine()(0.0))
        axis.scatter(*points.T, s=2, color=color, lw=0)
        _square(axis, title, 2.1)
    return figure


def jumping():
    """Velocity and average velocity on paths of the exact flow in two dimensions, and where one step by each ends."""
    schedule, rng = jd.rectified_flow(), np.random.default_rng(3)
    denoise, average, flow = (make(PETALS) for make in (oracles.denoiser, oracles.average_denoiser, oracles.flow_map))
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9))
    turned = np.linspace(0, TWO_PI, 7, endpoint=False) + 0.5
    start, s = jnp.asarray(1.6 * np.stack([np.cos(turned), np.sin(turned)], 1), jnp.float32), schedule(0.25)
    times = np.linspace(0.95, 0.0, 40)
    t = schedule(times[0])
    walked = np.stack([flow(start, t, schedule(time)) for time in times])
    axes[0].plot(*np.moveaxis(walked, 2, 0), color=PALE, linewidth=1)
    for colour, x0, name in ((ORANGE, denoise(start, t), "velocity"), (BLUE, average(start, t, s), "average velocity")):
        arrow = np.asarray(jd.transfer(start, x0, t, s) - start)
        axes[0].quiver(*start.T, *arrow.T, color=colour, angles="xy", scale_units="xy", scale=1, width=0.008, label=name)
    axes[0].scatter(*start.T, color=INK, s=8, zorder=3)
    axes[0].scatter(*flow(start, t, s).T, facecolors="none", edgecolors=INK, s=22, zorder=3, label="path at s")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, columnspacing=0.8, handlelength=1.2)
    _square(axes[0], "one step from t = 0.95 to s = 0.25", 2.0)
    noise = jnp.asarray(rng.normal(size=(1500, 2)), jnp.float32)
    told = {"the denoiser, 1 call": lambda x, t, s: denoise(x, t), "the average denoiser, 1 call": average}
    for axis, (name, each) in zip(axes[1:], told.items(), strict=True):
        levels = jd.grid(schedule, 1)
        x0 = jd.sample(samplers.flow_map(), each, levels.sigma[0] * noise, levels, KEY)
        _density(axis, PETALS, jd.cosine()(0.0))
        axis.scatter(*x0.T, s=2, color=BLUE if "average" in name else ORANGE, linewidths=0)
        _square(axis, name, 1.9)
    return figure


def _square(axis, title, limit):
    axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def _density(axis, data, level, limit=2.8):
    ticks = jnp.linspace(-limit, limit, 160)
    x = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    density = np.exp(np.asarray(oracles.log_density(data, x, level))).reshape(160, 160) ** 0.5
    axis.imshow(density, extent=(-limit, limit, -limit, limit), origin="lower", cmap=HEAT, vmax=density.max() * 1.2)


def _heat(axis, levels, limit=2.9):
    x = jnp.linspace(-limit, limit, 240)[:, None]
    columns = [oracles.log_density(LINE, x, levels[i]) for i in range(0, levels.sigma.size, 4)]
    density = np.stack([np.exp(np.asarray(column - column.max())) for column in columns], 1)
    axis.imshow(density, extent=(1, 0, -limit, limit), origin="lower", aspect="auto", cmap=HEAT, vmax=1.5)


def _tiles(z):
    """Codes of 16 numbers as pictures of 4x4, twice enlarged."""
    return np.clip(np.asarray(z) / 3, -1, 1).reshape(-1, 4, 4, 1).repeat(2, 1).repeat(2, 2)


def _rows(rows):
    """Rows of images as one picture, on white."""
    images = np.concatenate([np.asarray(row) for row in rows])
    picture = pictures.grid(images, len(rows[0])).squeeze(-1)
    return np.stack([picture] * 3, -1)


def _rows_named(axis, names):
    height = axis.get_images()[0].get_array().shape[0] / len(names)
    axis.set_xticks([])
    axis.set_yticks([height * (number + 0.5) for number in range(len(names))], names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


PICTURES = {
    "likelihood": likelihoods,
    "elbo": bound,
    "vae": autoencoder,
    "forward": forward,
    "targets": fields,
    "guidance": guided,
    "cascade": pyramid,
    "latents": latents,
    "paths": paths,
    "steps": steps,
    "guided": scales,
    "progressive": halving,
    "consistency": jumps,
    "multistep": fewer,
    "flow_maps": jumping,
}


def save(figure, path):
    """Writes a figure as a PNG of 112 colours: a third of the bytes, and no eye sees it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(112, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    """Draws the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for name in args.names or PICTURES:
        save(PICTURES[name](), args.out / f"{name}.png")
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
