"""`jaxdiff latents`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.app.cli.arguments import names_in
from jaxdiff.app.cli.flags import DataDir


@dataclass(frozen=True)
class Latents:
    """Encode a data set with the autoencoder of a run, to train diffusion on the latents (data.latents).

    Of a run that reads captions (sources.text), the states of its captions too.

    Example: jaxdiff latents runs/digits_kl --split train,test
    """

    run: tyro.conf.Positional[pathlib.Path]
    """The directory of the autoencoder's run, or of one that works on its latents and reads captions."""
    out: pathlib.Path | None = None
    """A new directory; by default RUN/latents."""
    split: str = "train"
    """Names of splits, separated by commas."""
    flip: bool = False
    """Encode the mirrored images too, for data.flip."""
    data_dir: DataDir = None
    batch_size: int = 256
    """Images encoded at once."""


def latents(args: Latents) -> int:
    from jaxdiff.app.runs import latent_cache as caches

    out, splits = args.out or args.run / "latents", names_in(args.split) or [args.split]
    print(caches.write_latents(args.run, out, splits, data_dir=args.data_dir, batch_size=args.batch_size, flip=args.flip))
    return 0
