"""Strict modes, eight simulated devices, a compilation cache: before anything touches a device."""

import gc
import importlib.metadata
import os
import pathlib

# Quick to compile: half the time without fusion emitters. Later versions of jaxlib do not know that flag, and stop.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1")
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process that tests start would compile the package's Python again

import jax
import pytest
from shared_contexts import share_contexts
from small_unet import SmallUNet, small_block

from jaxdiff.app.build import networks
from jaxdiff.models import autoencoder

collect_ignore = [
    "make_archives.py",
    "make_encoders.py",
    "make_learned_variance.py",
    "make_published.py",
    "make_pipelines.py",
    "make_tokens.py",
    "published_recording.py",
]  # need PyTorch
share_contexts()
gc.set_threshold(50_000)  # little of what tracing makes is garbage; looking for it takes a twentieth of the time
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def small_unet():
    """`SmallUNet` in place of the UNet in the tests' own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "UNet", SmallUNet)
        yield


@pytest.fixture(scope="module")
def small_autoencoder():
    """A convolution in place of each residual block of autoencoders, for tests of what is around them: quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder.Half, "block", small_block)
        yield


@pytest.fixture
def compilations():
    """A list that has an element for each program that XLA compiles, or finds in the cache on the disk."""
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """A tfds data directory for the session, where `digits` is prepared once."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def one_device():
    """Runs of the tests' own process use the first device alone: less to compile. All of them, for a test that wants more."""
    devices = jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: devices[:1])
        yield devices


@pytest.fixture(autouse=True, scope="module")
def bounded_caches():
    """Frees compiled functions where they are many: each takes memory and memory maps, and XLA crashes when these run out."""
    yield
    maps = pathlib.Path("/proc/self/maps")  # of Linux
    if not maps.exists() or maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
