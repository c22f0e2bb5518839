"""Repositories of the Hugging Face hub, from a server on this machine that speaks its protocol."""

import errno
import hashlib
import json
import logging
import pathlib
import sys
import time

import published_weights
import pytest
from hub_server import Repository, serving

from jaxdiff import evaluate
from jaxdiff.app import cli
from jaxdiff.interop import hub
from jaxdiff.io.errors import ConfigError, DataError

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
BLOCK = 10 * 2**20  # bytes that huggingface_hub writes at once
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "feature_extractor": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "requires_safety_checker": True,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A hub that `huggingface_hub` asks, and a cache for it alone: it reads both when it is imported."""
    pytest.importorskip("huggingface_hub")
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        for name in (
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in [each for each in sys.modules if each.partition(".")[0] == "huggingface_hub"]:
            patch.delitem(sys.modules, name)
        yield server
        for name in [each for each in sys.modules if each.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]


@pytest.fixture
def server(library):
    """The same with no repositories, that nobody has asked for anything."""
    library.repositories.clear()
    library.asked.clear()
    library.down = None
    return library


def tree(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def cache():
    return pathlib.Path(sys.modules["huggingface_hub"].constants.HF_HUB_CACHE)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("google/ddpm-cifar10-32", True),
        ("stabilityai/sd_xl.base-1.0@v1", True),
        ("stabilityai/vae@refs/pr/3", True),
        ("ddpm", False),
        ("a/b/c", False),
        ("./runs/digits", False),
        ("../weights", False),
        ("~/weights", False),
        ("/tmp/weights", False),
        ("gs://bucket/weights", False),
        ("weights/unet.safetensors", False),
        ("weights/unet.ckpt", False),
        ("a/b c", False),
        ("a/b@", False),
    ],
)
def test_names_of_repositories(text, named):
    assert hub.is_hub_name(text) is named


def test_a_path_that_exists_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name("runs/digits")
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    assert not hub.is_hub_name("runs/digits")


@pytest.mark.parametrize(
    ("names", "components", "fetched"),
    [
        pytest.param(
            "README.md LICENSE.txt .gitattributes config.json a.safetensors vocab.txt logo.png run.py "
            "pytorch_model.bin a.ckpt a.pt flax_model.msgpack tf_model.h5 a.onnx",
            "",
            "LICENSE.txt README.md a.safetensors config.json vocab.txt",
            id="no pickles and no code",
        ),
        pytest.param(
            "LICENSE model_index.json v1-5.ckpt v1-5.safetensors "
            "tokenizer/merges.txt unet/config.json unet/a.safetensors vae_1_0/a.safetensors",
            "unet tokenizer",
            "LICENSE model_index.json tokenizer/merges.txt unet/a.safetensors unet/config.json",
            id="components alone",
        ),
        pytest.param(
            "a.safetensors config.json model_index.json scheduler_config.json",
            "unet scheduler",
            "a.safetensors config.json model_index.json scheduler_config.json",
            id="a pipeline without folders",
        ),
        pytest.param(
            "unet/a.fp16.safetensors unet/a.non_ema.safetensors unet/a.safetensors vae/a.fp16.safetensors",
            "unet vae",
            "unet/a.safetensors vae/a.fp16.safetensors",
            id="variants where there is nothing else",
        ),
        pytest.param(
            "a-00001-of-00002.safetensors a-00002-of-00002.safetensors a.bin.index.json "
            "a.fp16-00001-of-00002.safetensors a.fp16-00002-of-00002.safetensors "
            "a.safetensors.index.fp16.json a.safetensors.index.json",
            "",
            "a-00001-of-00002.safetensors a-00002-of-00002.safetensors a.safetensors.index.json",
            id="shards",
        ),
        pytest.param(
            "a.fp16-00001-of-00002.safetensors a.fp16-00002-of-00002.safetensors a.safetensors.index.fp16.json",
            "",
            "a.fp16-00001-of-00002.safetensors a.fp16-00002-of-00002.safetensors a.safetensors.index.fp16.json",
            id="shards of a variant",
        ),
        pytest.param(
            "xl_base_1.0.safetensors xl_base_1.0_0.9vae.safetensors",
            "",
            "xl_base_1.0.safetensors xl_base_1.0_0.9vae.safetensors",
            id="numbers with points",
        ),
    ],
)
def test_which_files_are_fetched(names, components, fetched):
    assert hub.wanted(names.split(), components.split()) == fetched.split()


def test_a_pipeline_is_fetched_once_and_no_pickle_is_asked_for(server, caplog):
    files = {
        "model_index.json": json.dumps(PIPELINE).encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "tokenizer/[1] merges.txt": b"a b",
        "safety_checker/model.safetensors": b"large",
        "sd.safetensors": b"large",
        "sd.ckpt": b"pickle",
    }
    server.repositories["some/pipeline"] = Repository(files)
    with caplog.at_level(logging.INFO, "jaxdiff"):
        folder = hub.fetch("some/pipeline")
    names = ["model_index.json", "tokenizer/[1] merges.txt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert tree(folder) == names
    assert all((folder / name).read_bytes() == files[name] for name in names)
    assert folder.is_relative_to(cache())
    assert set(server.files_asked("GET")) | set(server.files_asked("HEAD")) == set(names)
    assert "some/pipeline: downloading 3 of 4 files, 0.00 GB, to " in caplog.text
    assert not [path for _, path, _, _ in server.asked if path.endswith("/tree/main")]  # which may be another commit by now
    server.asked.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "jaxdiff"):
        assert hub.fetch("some/pipeline@main") == folder
    assert [path for _, path, _, _ in server.asked] == ["/api/models/some/pipeline/revision/main"]
    assert "downloading" not in caplog.text


def test_a_new_commit_is_fetched(server):
    server.repositories["some/model"] = Repository({"a.safetensors": WEIGHTS, "config.json": b"1"})
    first = hub.fetch("some/model", "v1")
    server.repositories["some/model"].files["config.json"] = b"2"
    second = hub.fetch("some/model", "v1")
    assert first != second
    assert [(each / "config.json").read_bytes() for each in (first, second)] == [b"1", b"2"]
    assert server.sent("a.safetensors") == len(WEIGHTS)  # the same bytes of two commits are one file of the cache


@pytest.fixture
def impatient(monkeypatch):
    """Repeated requests wait a hundredth of a second, not up to eight."""
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_goes_on_where_it_broke(server):
    large = bytes(BLOCK) + WEIGHTS + bytes(3 * BLOCK - len(WEIGHTS))
    server.repositories["some/large"] = Repository({"a.safetensors": large, "config.json": b"{}"}, broken={"a.safetensors": 2})
    folder = hub.fetch("some/large")
    assert (folder / "a.safetensors").read_bytes() == large
    ranges = [headers["Range"] for how, path, headers, _ in server.asked if how == "GET" and path.endswith("a.safetensors")]
    assert ranges == [None, f"bytes={2 * BLOCK}-", f"bytes={3 * BLOCK}-"]
    assert server.sent("a.safetensors") == 4 * BLOCK


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_for_good_is_an_error_and_keeps_whole_files(server):
    files = {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[::-1]}
    server.repositories["some/broken"] = Repository(files, broken={"a.safetensors": 10**6})
    with pytest.raises(DataError, match=r"^some/broken cannot be downloaded from .* \(.*\), and .*; rerun the command: files that"):
        hub.fetch("some/broken")
    server.repositories["some/broken"].broken.clear()
    assert tree(hub.fetch("some/broken")) == ["a.safetensors", "b.safetensors"]
    assert server.sent("b.safetensors") == len(WEIGHTS)


def test_the_token_is_sent_to_the_hub_and_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    server.repositories["some/private"] = Repository({"a.safetensors": b"weights", "config.json": b"{}"})
    hub.fetch("some/private")
    sent = {path.startswith("/cdn/"): headers["Authorization"] for _, path, headers, _ in server.asked if "/private/" in path}
    assert sent == {False: "Bearer hf_valid", True: None}


DOWN = {"error": "503", "silence": "without sending a response"}  # what is said of each


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("down", DOWN)
def test_the_cache_serves_without_a_network_if_it_is_complete(server, down):
    name = f"some/cached_{down}"
    files = {"model_index.json": json.dumps(PIPELINE).encode(), "unet/a.safetensors": WEIGHTS, "unet/a.bin": b"pickle"}
    server.repositories[name] = Repository(files)
    folder = hub.fetch(name)
    server.down = down
    assert hub.fetch(name) == folder
    (folder / "unet" / "a.safetensors").unlink()
    with pytest.raises(DataError, match=rf"^{name} cannot be downloaded.*{DOWN[down]}.* has not all of it; rerun"):
        hub.fetch(name)


@pytest.mark.parametrize("down", DOWN)
def test_no_network_and_nothing_in_the_cache(server, down):
    server.down = down
    with pytest.raises(DataError, match=rf"^some/absent cannot be downloaded.*{DOWN[down]}.* has not all of it; rerun"):
        hub.fetch("some/absent")


def test_offline_mode(server, monkeypatch):
    server.repositories["some/offline"] = Repository({"a.safetensors": WEIGHTS})
    folder = hub.fetch("some/offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it reads HF_HUB_OFFLINE when it is imported
    server.asked.clear()
    assert hub.fetch("some/offline") == folder
    with pytest.raises(DataError, match=r"^some/other cannot be downloaded.*HF_HUB_OFFLINE.* has not all of it"):
        hub.fetch("some/other")
    assert server.asked == []


PLAIN = {"a.safetensors": b"weights", "config.json": b"{}"}


@pytest.mark.parametrize(
    ("name", "repository", "token", "told"),
    [
        (
            "some/absent",
            None,
            "",
            r"^there is no repository some/absent, or it is private; look at http://.*/some/absent, or log in",
        ),
        ("some/absent", None, "hf_valid", r"^there is no repository some/absent, or it is private"),
        ("some/m1@v9", Repository(PLAIN), "", r"^some/m1 has no revision v9; look at http://.*/some/m1$"),
        (
            "some/m2",
            Repository(PLAIN, gated=True),
            "",
            r"^some/m2 is gated: accept its licence on http://.*/some/m2, log in \(hf auth",
        ),
        ("some/m3", Repository(PLAIN, gated=True), "hf_valid", r"^some/m3 is gated: accept its licence"),
        (
            "some/m4",
            Repository(PLAIN),
            "hf_old",
            r"^http://.* refuses some/m4 \(Invalid credentials .*\); log in \(hf auth login, or",
        ),
        (
            "some/m5",
            Repository({"a.bin": b"", "b.ckpt": b""}),
            "",
            r"^some/m5 holds no safetensors, only pickles \(a.bin\), which run",
        ),
        ("some/m6", Repository({"README.md": b""}), "", r"^some/m6 holds no safetensors$"),
        ("some/m7", Repository({**PLAIN, "model_index.json": b"{"}), "", r"^some/m7: model_index.json cannot be read"),
        ("some/m8", Repository(PLAIN, claimed={"a.safetensors": 10**18}), "", r"needs 1000000000.00 GB and .* GB left; free some"),
        ("some/m--9", None, "", r"^some/m--9 is no repository of the Hugging Face hub"),
    ],
)
def test_errors_are_one_line(server, monkeypatch, name, repository, token, told):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if repository:
        server.repositories[name.partition("@")[0]] = repository
    with pytest.raises(DataError, match=told) as error:
        hub.fetch(name)
    assert "\n" not in str(error.value)


def test_a_full_disk(server, monkeypatch):
    server.repositories["some/full"] = Repository(PLAIN)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)  # no test can fill the disk
    with pytest.raises(DataError, match=r"^/.* is full; free some room, or set HF_HOME to a folder on another disk"):
        hub.fetch("some/full")


def test_no_bars_where_jaxdiff_is_quiet(server, capfd, monkeypatch):
    files = {"model_index.json": json.dumps(PIPELINE).encode(), "unet/a.safetensors": WEIGHTS}
    server.repositories["some/quiet"] = Repository(files)
    monkeypatch.setattr(logging.getLogger("jaxdiff"), "level", logging.WARNING)
    hub.fetch("some/quiet")
    assert capfd.readouterr().err == ""


def test_what_is_no_repository():
    with pytest.raises(ConfigError, match=r"^unet.safetensors/ is no repository of the Hugging Face hub; write OWNER/NAME, or"):
        hub.fetch("unet.safetensors/")


def test_what_reads_the_hub_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'^some/model: what reads .*; run: pip install -U "jaxdiff\[hub\]"$'):
        hub.fetch("some/model")


@pytest.mark.usefixtures("impatient")
def test_a_name_of_the_hub_becomes_a_run(server, tmp_path):
    """A pipeline whose weights break off once on the way."""
    folder = published_weights.write(tmp_path / "published", "ddpm", "float16")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    large = next(name for name in files if name.endswith(".safetensors"))
    server.repositories["google/ddpm"] = Repository(files | {"LICENSE": b"be kind"}, broken={large: 1})
    assert cli.main(["import", "google/ddpm", "--workdir", str(tmp_path / "run"), "--quiet"]) == 0
    record = json.loads((tmp_path / "run" / "source.json").read_text())
    assert record["source"] == "google/ddpm"
    assert list(record["sha256"].values()) == [hashlib.sha256(files[large]).hexdigest()]
    assert (tmp_path / "run" / "licence" / "LICENSE").read_text() == "be kind"


def test_a_clip_judges_by_its_name(server, tmp_path):
    folder = published_weights.write_clip(tmp_path / "clip", "float16")
    server.repositories["someone/clip"] = Repository({file.name: file.read_bytes() for file in folder.iterdir()})
    assert evaluate.clip("someone/clip").name == evaluate.clip(folder).name
