"""Images of the user's own as a tensorflow-datasets data set in array_record, written and read without TensorFlow."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, file_adapters, naming, splits

from jaxdiff.data import chunks, sources
from jaxdiff.data.chunks import HELD_OUT, TRAIN, Wanted
from jaxdiff.data.latents import INFO
from jaxdiff.data.read import directory
from jaxdiff.data.sources import Skipped, Source
from jaxdiff.io import copies, count, files, locks, paths, progress
from jaxdiff.io.errors import ConfigError, DataError

VERSION = "1.0.0"
LIST = "skipped.jsonl"  # what was not imported, and why
NOTE = "import.json"  # what a data set is made of, and what is in it
CHUNKS = ".chunks"  # the folder of chunks in a draft


class Imported(NamedTuple):
    """A data set that was imported."""

    directory: pathlib.Path
    splits: Mapping[str, int]
    num_classes: int
    captions: bool
    size: tuple[int, int] | None
    num_skipped: int

    def __str__(self) -> str:
        """What is in it and where, in two lines; the second is a command that trains on it."""
        name, num = self.directory.parent.name, sum(self.splits.values())
        parts = [", ".join(f"{split} {length}" for split, length in self.splits.items())]
        parts += [f"{self.size[0]}x{self.size[1]}"] if self.size else []
        parts += [count(self.num_classes, "class")] if self.num_classes else []
        parts += ["captions"] if self.captions else []
        skipped = f"; {self.num_skipped} skipped, see {self.directory / LIST}" if self.num_skipped else ""
        flags = [f"--data.name {name}"] if name != "photos" else []
        flags += [f"--data.image-shape {self.size[0]} {self.size[1]} 3"] if self.size not in (None, (64, 64)) else []
        flags += [f"--model.num-classes {self.num_classes} --sampling.guidance 2"] if self.num_classes else []
        place = str(self.directory.parents[1])
        flags += [f"--data-dir {place}"] if place != str(paths.path(directory(None) or constants.DATA_DIR)) else []
        train = " ".join(["jaxdiff train configs/own.py", *flags, f"--workdir runs/{name}"])
        return f"{name}: {count(num, 'image')} ({'; '.join(parts)}) in {self.directory}{skipped}\ntrain on it: {train}"


def parse_size(text: str) -> tuple[int, int]:
    """Height and width, of `64` or `48x64`.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"--size {text}: write a number of pixels, such as 64, or HEIGHTxWIDTH, such as 48x64")
    return int(found[1]), int(found[2] or found[1])


def import_images(place: pathlib.Path, name: str, wanted: Wanted | None = None, data_dir: str | None = None) -> Imported:
    """Imports images as the data set `name`; a call after an interrupted one completes it, one after a complete one does nothing.

    Args:
        place: a folder, an archive or a Parquet file (see `sources`), on a disk or in a bucket.
        name: of the data set.
        wanted: how they are imported.
        data_dir: tfds's data directory, on a disk or in a bucket; TFDS_DATA_DIR or its own default where None.

    Raises:
        ConfigError: a name, split or share that is none, or the data set is there, or begun, from other images.
        DataError: there are no images.
    """
    wanted = wanted or Wanted()
    _check(name, wanted)
    parent = paths.path(directory(data_dir) or constants.DATA_DIR) / name
    with locks.hold(parent.with_name(f".{name}.import.lock"), str(parent)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged EXIF and large images
        source = sources.open_source(copies.local_copy(place))
        note = json.loads(json.dumps({**wanted._asdict(), "images": _digest(source)}))
        target = parent / VERSION
        if not (target / INFO).exists():
            local = files.cache_dir() / "imports" / str(parent).removeprefix(paths.SCHEME) if paths.in_bucket(parent) else parent
            draft = local / f".{VERSION}.draft"
            _begin(draft, {"from": str(place), **note}, name)
            made = chunks.write(source, wanted, draft / CHUNKS, f"importing {name}")
            _complete(draft, source, made, wanted, name)
            _publish(draft, target)
    return _imported(target, {"from": str(place), **note}, name)


def _check(name: str, wanted: Wanted) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII):
        raise ConfigError(f"--name {name}: write small letters, digits and _, such as photos")
    from jaxdiff.data import digits, digits_text  # noqa: F401  # which have names too

    if name in tfds.list_builders(with_community_datasets=False):
        raise ConfigError(f"--name {name}: tensorflow-datasets has a data set of that name; choose another, such as my_{name}")
    if not re.fullmatch(r"\w*", wanted.split, re.ASCII):
        raise ConfigError(f"--split {wanted.split}: write the name of one split, such as train")
    if not 0 <= wanted.held_out < 1:
        raise ConfigError(f"--held-out must be at least 0 and below 1, got {wanted.held_out:g}")


def _digest(source: Source) -> str:
    """Changes with the source's images: their names, sizes, classes, captions and order."""
    digest = hashlib.blake2b(repr(source.class_names).encode(), digest_size=16)
    for item in source.items:
        digest.update(repr(item._replace(file="")).encode())
    return digest.hexdigest()


def _begin(draft: pathlib.Path, note: Mapping[str, Any], name: str) -> None:
    """Makes the draft, or checks that it was begun from the same."""
    if (draft / NOTE).exists():
        _check_same(files.read_json(draft / NOTE), note, name, f"rerun the command that began it, or remove {draft}")
    else:
        draft.mkdir(parents=True, exist_ok=True)
        files.write_text(draft / NOTE, json.dumps(note))


def _check_same(found: Mapping[str, Any], note: Mapping[str, Any], name: str, remedy: str) -> None:
    other = [key for key in note if key != "from" and found.get(key) != note[key]]
    if other:
        kept = ", ".join("other images" if key == "images" else f"{key.replace('_', '-')} {found.get(key)}" for key in other)
        raise ConfigError(f"data set {name} has been imported from {found.get('from', 'elsewhere')} with {kept}; {remedy}")


def _imported(target: pathlib.Path, note: Mapping[str, Any], name: str) -> Imported:
    found = files.read_json(target / NOTE)
    _check_same(found, note, name, f"choose another --name, or remove {target}")
    height, width = found["size"] or (0, 0)
    size = (height, width) if height else None
    return Imported(target, found["splits"], found["num_classes"], found["captions"], size, found["num_skipped"])


def _complete(draft: pathlib.Path, source: Source, made: Sequence[Mapping[str, Any]], wanted: Wanted, name: str) -> None:
    """Gives the files of all chunks their names and writes the rest of the data set; what is done already is done again."""
    skipped = [*source.skipped, *(Skipped(*each) for note in made for each in note["skipped"])]
    if skipped:
        files.write_text(draft / LIST, "".join(json.dumps(each._asdict()) + "\n" for each in skipped))
    known = sorted({split for note in made for split in note["splits"]}, key=lambda split: (split != TRAIN, split))
    if not known:
        reason = f"; {len(skipped)} skipped, see {draft / LIST}" if skipped else ""
        raise DataError(f"no image in {files.read_json(draft / NOTE)['from']} can be imported{reason}")
    by_hash = not wanted.split and not any(item.split for item in source.items)
    only = [TRAIN] if known == [HELD_OUT] and by_hash else known  # so few that none would be left to train on
    named = [_named_split(draft, name, split, final, made) for split, final in zip(known, only, strict=True)]
    kinds = chunks.features(source, wanted)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(name, tfds.core.Version(VERSION), str(draft), module_name=""),
        description=f"Images imported by jaxdiff from {files.read_json(draft / NOTE)['from']}.",
        features=kinds,
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    info.set_splits(splits.SplitDict(named))
    info.write_to_directory(draft)
    result = {"splits": {split.name: split.num_examples for split in named}, "num_classes": len(source.class_names)}
    result |= {"captions": "caption" in kinds, "num_skipped": len(skipped)}
    files.write_text(draft / NOTE, json.dumps(files.read_json(draft / NOTE) | result))


def _named_split(draft: pathlib.Path, name: str, split: str, final: str, made: Sequence[Mapping[str, Any]]) -> Any:
    """A split's description; its files get the names that tfds knows."""
    numbers = [number for number, note in enumerate(made) if split in note["splits"]]
    lengths, sizes = zip(*(made[number]["splits"][split] for number in numbers), strict=True)
    template = naming.ShardedFileTemplate(
        dataset_name=name, data_dir=epath.Path(draft), split=final, filetype_suffix="array_record"
    )
    for index, number in enumerate(numbers):
        file = chunks.shard(draft / CHUNKS, number, split)
        if file.exists():
            file.rename(str(template.sharded_filepath(shard_index=index, num_shards=len(numbers))))
    return splits.SplitInfo(name=final, shard_lengths=list(lengths), num_bytes=sum(sizes), filename_template=template)


def _publish(draft: pathlib.Path, target: pathlib.Path) -> None:
    if not paths.in_bucket(target):
        draft.rename(target)
        shutil.rmtree(target / CHUNKS)
        return
    there = paths.objects(target)
    made = sorted((file for file in draft.iterdir() if file.is_file()), key=lambda file: (file.name == INFO, file.name))
    for file in progress.track(made, f"copying to {target}", "file"):
        if file.name not in there or there[file.name].size != file.stat().st_size or file.name in (NOTE, INFO):
            paths.upload(file, target / file.name)
    shutil.rmtree(draft)
