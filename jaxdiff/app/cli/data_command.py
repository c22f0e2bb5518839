"""`jaxdiff data`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.app.cli.arguments import refuse
from jaxdiff.app.cli.flags import DataDir
from jaxdiff.io.errors import UsageError

IMPORTING = ("name", "size", "split", "held_out")


@dataclass(frozen=True)
class Data:
    """Prepare mnist or cifar10 (jaxdiff data mnist), or import images of your own, all without TensorFlow.

    SOURCE is a folder, with a sub-folder for each class or none, and captions in metadata.jsonl or .csv or in a .txt beside each
    image; tar archives of webdataset or img2dataset; or Parquet files of Hugging Face. Rerun the command to go on after an
    interruption. What cannot be read is skipped, and listed with the reason.

    Example: jaxdiff data import my/pictures --name photos --size 64
    """

    what: tyro.conf.Positional[str]
    """mnist, cifar10 or import."""
    source: tyro.conf.Positional[pathlib.Path | None] = None
    """Of import: the images."""
    name: str = "photos"
    """Of import: how the data set is called."""
    size: str = ""
    """Of import: 64, or HEIGHTxWIDTH; images are cut to these proportions and resized. By default they stay as they are."""
    split: str = ""
    """Of import: the split of all images. By default the source's (folders or files named train and test), or two by a hash."""
    held_out: float = 0.1
    """Of import: the share of images of the split test, by a hash of their pixels; the others are train."""
    data_dir: DataDir = None
    raw_dir: pathlib.Path | None = None
    """Of mnist and cifar10: a folder with the raw files, for a machine without network."""


def data(args: Data) -> int:
    from jaxdiff.data import chunks, importing, raw

    if args.what != "import":
        refuse(args, ("source", *IMPORTING), f"is for import, not for {args.what}")
        builder = raw.prepare(args.what, args.data_dir, args.raw_dir)
        sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
        print(f"{args.what} ({sizes}): {builder.data_dir}")
        return 0
    refuse(args, ("raw_dir",), "is for mnist and cifar10, not for import")
    if args.source is None:
        raise UsageError("data import needs a source of images: jaxdiff data import my/pictures --name photos")
    wanted = chunks.Wanted(importing.parse_size(args.size) if args.size else None, args.split, args.held_out)
    print(importing.import_images(args.source, args.name, wanted, args.data_dir))
    return 0
