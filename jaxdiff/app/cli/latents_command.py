"""`jaxdiff latents`: its flags, and what it does."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

import tyro


@dataclass(frozen=True)
class Latents:
    """Encode the data set of an autoencoder's run once, for training diffusion in its latents with data.latents.

    Example: jaxdiff latents runs/digits_kl --split train,test
    """

    run: tyro.conf.Positional[pathlib.Path]
    """The autoencoder's directory."""
    out: pathlib.Path | None = None
    """A directory that does not exist yet; RUN/latents if not given."""
    split: str = "train"
    """Names of splits, with commas between them."""
    flip: bool = False
    """Encode the mirrored images too, for data.flip."""
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own if not given."""
    batch_size: int = 256
    """Encoded at once."""


def latents(args: Latents) -> int:
    """`jaxdiff latents`: the exit status."""
    from jaxdiff.app.runs import latent_cache as caches

    splits = [name.strip() for name in args.split.split(",")]
    how: Any = {"data_dir": args.data_dir, "batch_size": args.batch_size, "flip": args.flip}
    print(caches.write_latents(args.run, args.out or args.run / "latents", splits, **how))
    return 0
