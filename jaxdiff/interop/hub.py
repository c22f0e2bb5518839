"""Repositories of the Hugging Face hub as folders on this machine: safetensors, and the text files that describe them.

`huggingface_hub` does the work: its cache, its tokens, its endpoint (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import importlib.util
import json
import logging
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from jaxdiff.io import paths
from jaxdiff.io.errors import ConfigError, DataError, disk_full, first_line

WEIGHTS = "*.safetensors"
WANTED = (WEIGHTS, "*.json", "*.txt", "LICENSE*", "README.md")  # file names; nothing that runs code when it is read
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
UNOPENED = ("safety_checker", "image_encoder")  # components that are not fetched: a gigabyte and more
PIPELINE = "model_index.json"  # of diffusers: its components, each in a folder
LOG_IN = "log in (hf auth login, or the token in HF_TOKEN)"
AGAIN = "rerun the command: files that have arrived whole are not downloaded again"

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([^@\s]+))?", re.ASCII)
_FILES = (".safetensors", ".json", *PICKLES)  # which no repository's name ends in
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2")  # packages whose errors say that the hub did not answer

log = logging.getLogger(__name__)


def is_hub_name(text: str) -> bool:
    """Whether a text is OWNER/NAME or OWNER/NAME@REVISION of the hub, and not the path of a file or folder that exists."""
    named = _NAME.fullmatch(text)
    return named is not None and not named[1].endswith(_FILES) and not pathlib.Path(text).exists()


def fetch(name: str, revision: str = "main") -> pathlib.Path:
    """The folder of a repository OWNER/NAME, or OWNER/NAME@REVISION, in the hub's cache; what is not there yet is downloaded.

    Of a pipeline these are its components, without checkpoints of one file beside them; of weights in several variants
    (`fp16`, `non_ema`) the plain one, if there is one. Without a network what is in the cache is used, if it is complete.

    Raises:
        ConfigError: this is no OWNER/NAME, or `huggingface_hub` is not installed.
        DataError: there is no such repository or revision, it is closed to this account, holds no safetensors, does not fit on
            the disk, or the hub does not answer.
    """
    named = _NAME.fullmatch(name)
    if named is None:
        raise ConfigError(f"{name} is no repository of the Hugging Face hub; write OWNER/NAME, or OWNER/NAME@REVISION")
    hub, repository = _library(name), named[1]
    with _errors_explained(hub, repository, named[2] or revision), _bars(hub):
        commit = hub.HfApi().resolve_revision(repository, revision=named[2] or revision).resolved
        sizes = _listing(hub, repository, commit)
        names = wanted(sizes, _components(hub, repository, commit) if PIPELINE in sizes else ())
        if not fnmatch.filter(names, WEIGHTS):
            raise DataError(f"{repository} holds no safetensors{_instead(sizes)}")
        _announce(hub, repository, commit, {each: sizes[each] for each in names})
        patterns = [glob.escape(each) for each in names]
        return pathlib.Path(hub.snapshot_download(repository, revision=commit, allow_patterns=patterns))


def wanted(names: Collection[str], components: Collection[str] = ()) -> list[str]:
    """The files of a repository that are fetched, of all that it has; `components` are the folders of its pipeline."""
    kept = [each for each in names if any(fnmatch.fnmatchcase(_base(each), pattern) for pattern in WANTED)]
    inside = [each for each in kept if each.partition("/")[0] in components and "/" in each]
    if fnmatch.filter(inside, WEIGHTS):  # else the components lie side by side, as in the oldest pipelines
        kept = inside + [each for each in kept if "/" not in each and not _weights(each)]
    stems = {_weights(each) for each in kept if each.endswith(".safetensors")}
    described = [each for each in kept if _weights(each) in stems or not _describes_shards(each)]
    return sorted(each for each in described if not any(_weights(each).startswith(f"{stem}.") for stem in stems if stem))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _describes_shards(name: str) -> bool:
    """Whether a file lists in which of several files a tensor is."""
    return ".index." in _base(name) and name.endswith(".json")


def _weights(name: str) -> str:
    """`unet/model.fp16` of `unet/model.fp16-00001-of-00002.safetensors`, or of its list of shards; empty of other files."""
    if shards := re.fullmatch(r"(.+)\.safetensors\.index(\.\w+)?\.json", name):
        return shards[1] + (shards[2] or "")
    return re.sub(r"-\d+-of-\d+$", "", name.removesuffix(".safetensors")) if name.endswith(".safetensors") else ""


def _library(name: str) -> Any:
    """`huggingface_hub`, of a version that can tell what is in its cache."""
    if importlib.util.find_spec("huggingface_hub") is not None:
        import huggingface_hub

        if hasattr(huggingface_hub, "get_cached_repo_tree"):
            return huggingface_hub
    reason = "what reads the Hugging Face hub is not installed, or too old"
    raise ConfigError(f'{name}: {reason}; run: pip install -U "jaxdiff[hub]"')


def _listing(hub: Any, repository: str, commit: str) -> dict[str, int]:
    """The bytes of all files of a commit, by their names."""
    try:
        files = hub.get_cached_repo_tree(repository, revision=commit)
    except hub.errors.CachedRepoTreeNotFoundError:
        files = hub.HfApi().list_repo_tree(repository, recursive=True, revision=commit)
    return {each.path: each.size for each in files if isinstance(each, hub.hf_api.RepoFile)}


def _components(hub: Any, repository: str, commit: str) -> list[str]:
    """The folders that a pipeline's description names, but for those whose weights are not opened."""
    path = pathlib.Path(hub.hf_hub_download(repository, PIPELINE, revision=commit))
    try:
        named = {key: value[0] for key, value in json.loads(path.read_text()).items() if isinstance(value, list)}
        return [key for key, library in named.items() if library and key not in UNOPENED]
    except (ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{repository}: {PIPELINE} cannot be read ({first_line(error)})") from error


def _instead(names: Collection[str]) -> str:
    """The end of a sentence: which pickles a repository has in place of safetensors."""
    pickles = sorted(each for each in names if each.endswith(PICKLES))
    return f", only pickles ({pickles[0]}), which run code when they are read; convert them elsewhere" if pickles else ""


def _announce(hub: Any, repository: str, commit: str, sizes: dict[str, int]) -> None:
    """Logs how much is downloaded; an error if the disk has no room for it."""
    absent = [each for each in sizes if not isinstance(hub.try_to_load_from_cache(repository, each, revision=commit), str)]
    if not absent:
        return
    total, cache = sum(sizes[each] for each in absent), pathlib.Path(hub.constants.HF_HUB_CACHE)
    free = paths.free_bytes(next(each for each in (cache, *cache.absolute().parents) if each.exists()))
    if total > free:
        room = f"{repository} needs {_gigabytes(total)} and {cache} has {_gigabytes(free)} left"
        raise DataError(f"{room}; free some, or set HF_HOME to a folder on another disk")
    log.info(f"{repository}: downloading {len(absent)} of {len(sizes)} files, {_gigabytes(total)}, to {cache}")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


@contextlib.contextmanager
def _bars(hub: Any) -> Iterator[None]:
    """No progress bars of the library where jaxdiff shows none either."""
    hide = logging.getLogger("jaxdiff").level > logging.INFO and not hub.utils.are_progress_bars_disabled()
    if hide:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            hub.utils.enable_progress_bars()


@contextlib.contextmanager
def _errors_explained(hub: Any, repository: str, revision: str) -> Iterator[None]:
    """Turns what the library raises into one line that says what to do."""
    try:
        yield
    except Exception as error:
        reason = _reason(hub, repository, revision, error)
        if reason is None:
            raise
        raise DataError(reason) from error


def _reason(hub: Any, repository: str, revision: str, error: Any) -> str | None:
    """What went wrong and what to do, in one line; None of errors that are not the hub's."""
    kinds, page = hub.errors, f"{hub.constants.ENDPOINT}/{repository}"
    cache = hub.constants.HF_HUB_CACHE
    match error:
        case kinds.HFValidationError():
            return f"{repository} is no repository of the Hugging Face hub ({first_line(error)})"
        case kinds.GatedRepoError():
            return f"{repository} is gated: accept its licence on {page}, {LOG_IN}, and rerun the command"
        case kinds.RepositoryNotFoundError():
            return f"there is no repository {repository}, or it is private; look at {page}, or {LOG_IN}"
        case kinds.RevisionNotFoundError():
            return f"{repository} has no revision {revision}; look at {page}"
    if disk_full(error):
        return f"{cache} is full; free some room, or set HF_HOME to a folder on another disk, and rerun the command"
    if isinstance(error, kinds.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{hub.constants.ENDPOINT} refuses {repository} ({error.server_message or first_line(error)}); {LOG_IN}"
    absent = (OSError, kinds.RevisionResolutionError, kinds.XetDownloadError)
    if isinstance(error, absent) or type(error).__module__.partition(".")[0] in _CLIENTS:
        said = f"{repository} cannot be downloaded from {hub.constants.ENDPOINT} ({first_line(error.__cause__ or error)})"
        return f"{said}, and {cache} has not all of it; {AGAIN}"
    return None
