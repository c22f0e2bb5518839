"""A bucket that answers late, not at all or with errors: trainings go on or end in one line, and what was saved stays."""

import re
import time

import gcs_proxy
import gcs_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.multihost import multihost

from jaxdiff.io import gcs, locks, paths, uploads
from jaxdiff.io.errors import CheckpointError, DataError
from jaxdiff.training import TrainState, checkpoint

LIMITS = ("SILENCE", "PATIENCE", "LEASE_SILENCE", "LEASE_PATIENCE")
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """What is before the bucket `gs://bucket`."""
    root = tmp_path_factory.mktemp("buckets")
    (root / "bucket").mkdir()
    with gcs_proxy.proxy() as proxy, gcs_server.server(root, proxy):
        yield proxy


@pytest.fixture
def workdir(proxy, tmp_path, monkeypatch):
    """A folder in the bucket; pauses are a hundredth of the real ones, what a slow machine may exceed a twentieth."""
    for module, names, share in ((gcs, LIMITS, 20), (locks, ("RENEW", "LAPSE"), 20), (gcs, ("PAUSE", "LONGEST_PAUSE"), 100)):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / share)
    yield paths.path(f"gs://bucket/{tmp_path.name}")
    proxy.fault = gcs_proxy.passed_on


def state(step):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3) + step}
    return TrainState(step=jnp.int32(step), params=params, ema={"0.9": params}, opt_state={"mean": params})


def restored(workdir):
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), jax.eval_shape(lambda: state(0)))
    return checkpoint.restore(workdir, like)


def assert_saved(workdir, step):
    assert checkpoint.steps(workdir)[-1] == step
    jax.tree.map(np.testing.assert_array_equal, restored(workdir), state(step))


FAULTS = (
    lambda: gcs_proxy.outage(0.3),
    lambda: gcs_proxy.outage(0.3, gcs_proxy.LOST),
    lambda: gcs_proxy.failing(1 / 3),
    lambda: gcs_proxy.unheard(1 / 3),
    lambda: gcs_proxy.slow(0.05),
)


def test_saves_uploads_and_leases_go_on(workdir, proxy):
    """Through 30 s without an answer, or of lost requests, 503 to a third of them or of their answers, and 50 ms more for each."""
    with (
        locks.hold(workdir / ".writer", "the run"),
        uploads.uploaded_folder(workdir) as (folder, upload),
        checkpoint.manager(workdir, keep=1) as to,
    ):
        for step, fault in enumerate(FAULTS, 1):
            proxy.fault = fault()
            (folder / "metrics.jsonl").write_text("line\n" * step)
            upload()
            checkpoint.save(to, state(step), {})
            to.wait_until_finished()
            locks.confirm()
        assert_saved(workdir, len(FAULTS))
    proxy.fault = gcs_proxy.passed_on
    assert (workdir / "metrics.jsonl").read_text() == "line\n" * len(FAULTS)
    assert not (workdir / ".writer").exists()


def test_a_bucket_that_was_given_up_is_asked_as_patiently_later(workdir, proxy, monkeypatch):
    (workdir / "file").write_text("text")
    monkeypatch.setattr(gcs, "PATIENCE", 1)
    proxy.fault = gcs_proxy.failing(1.0)
    with pytest.raises(Exception, match="internal error"):
        (workdir / "file").read_text()
    monkeypatch.setattr(gcs, "PATIENCE", 2)
    time.sleep(1)
    proxy.fault = gcs_proxy.outage(0.3, 503)
    assert (workdir / "file").read_text() == "text"


REFUSALS = (
    (gcs_proxy.read_only, "gs://bucket refuses to be read or written (me@jaxdiff does not have storage.objects.create"),
    (gcs_proxy.gone, "there is no bucket gs://bucket; make it (gcloud storage buckets create gs://bucket)"),
    (gcs_proxy.failing(1.0), "no answer from "),
)


def save_and_fail(workdir, step, proxy, fault):
    """Saves a step, and another that meets the fault, until that is said at the next step of a training."""
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state(step), {})
        to.wait_until_finished()
        checkpoint.save(to, state(9), {})
        proxy.fault, begun = fault, time.monotonic()
        while time.monotonic() < begun + 60:
            checkpoint.check(to)
            time.sleep(0.01)


def test_a_save_that_is_refused_in_the_background_is_said_in_one_line_and_costs_no_other(workdir, proxy, monkeypatch):
    monkeypatch.setattr(gcs, "ATTEMPTS", 3)
    monkeypatch.setattr(gcs, "PATIENCE", 3)
    monkeypatch.setattr(multihost, "_DEFAULT_BARRIER_TIMEOUT", 1)  # for which threads of a failed save wait for each other
    for step, (fault, message) in enumerate(REFUSALS, 1):
        begun = time.monotonic()
        with pytest.raises(CheckpointError) as refused:
            save_and_fail(workdir, step, proxy, fault)
        assert time.monotonic() - begun < 60  # said in the loop, not at its end
        line = rf"a checkpoint in {workdir}/checkpoints could not be saved: {re.escape(message)}.*"
        assert re.fullmatch(line, str(refused.value))
        if step == 3:
            with pytest.raises(Exception, match="internal error") as unread:  # not taken for a run without checkpoints
                restored(workdir)
            assert gcs.refusal(unread.value)
        proxy.fault = gcs_proxy.passed_on
        assert_saved(workdir, step)
    assert checkpoint.steps(workdir) == [1, 2, 3]
    proxy.fault = lambda method, path: 403 if "params" in path else None
    with pytest.raises(DataError, match=r"checkpoint .*/3 cannot be read now: gs://bucket refuses to be read"):
        restored(workdir)
    proxy.fault = gcs_proxy.passed_on
    assert checkpoint.steps(workdir) == [1, 2, 3]  # none is taken for damaged
