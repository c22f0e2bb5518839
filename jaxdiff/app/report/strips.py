"""What is drawn for a page from a run's newest checkpoint: samples, and how some of them came out of noise."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.report.run_record import RunRecord
from jaxdiff.app.runs import finish, storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.app.runs.train import cycle_labels, image_sampler

STRIPS = 4  # samples whose way is shown
COLUMNS = 9  # pictures of a way at most


class Strips(NamedTuple):
    """Ways of a few samples `[B]`: the noisy images and the clean images that the network saw in them, `[K, B, H, W, C]`.

    After so many steps of the sampler, `after`, the last of which are all: both are then the samples.
    """

    noisy: np.ndarray
    clean: np.ndarray
    after: list[int]

    @property
    def rows(self) -> np.ndarray:
        """All as rows `[2 B, K, H, W, C]`: noisy and clean of the first sample, noisy and clean of the second, ..."""
        pairs = np.stack([self.noisy, self.clean], axis=1)  # [K, 2, B, ...]
        return pairs.transpose(2, 1, 0, 3, 4, 5).reshape(-1, len(pairs), *pairs.shape[3:])


def samples(record: RunRecord, num: int, data_dir: str | None = None) -> tuple[int, np.ndarray]:
    """The step of the newest checkpoint, and samples of it `[num, H, W, C]` as the config says; each label in turn."""
    config = record.config
    step, params = storage.read_params(config, record.workdir)
    labels, context = _given(record, num, data_dir)
    return step, image_sampler(config, config.evaluation.batch_size, record.workdir)(params, labels, config.seed, context)


def denoising_strips(record: RunRecord, data_dir: str | None = None, num: int = STRIPS) -> Strips:
    """The ways of the samples that `train.image_sampler` gives for these labels and the config's seed."""
    config, workdir = record.config, record.workdir
    sources, frozen = sampling_inputs(config, workdir)
    trained = storage.read_levels(config, workdir)
    _, params = storage.read_params(config, workdir)
    labels, context = _given(record, num, data_dir)
    given = {"label": labels} | ({} if context is None else {"context": context})
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    walk = jax.jit(build.denoising_trajectory(config, sources, trained, COLUMNS))
    noisy, clean = walk(params, key, jax.tree.map(jnp.asarray, given), frozen)
    return Strips(np.asarray(noisy), np.asarray(clean), build.evenly_spaced_steps(config.sampling.steps, COLUMNS))


def _given(record: RunRecord, num: int, data_dir: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels in turn; of a run that attends to context those of held-out images, with their context."""
    if record.config.model.context_channels:
        return finish.conditions(record.config, num, data_dir)
    classes = record.config.model.num_classes
    from_prior = record.config.objective == "vae" or not classes
    return cycle_labels([classes] if from_prior else range(classes), num), None
