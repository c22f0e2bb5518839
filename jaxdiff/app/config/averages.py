"""What the fields of the averages of the params must be."""

import re
from collections.abc import Iterator
from typing import Any

RESTARTED = ("progressive", "autoencoder", "text")  # objectives whose averages begin anew, or are scaled, at some step


def average_rules(c: Any, this: str) -> Iterator[tuple[str, str, object]]:
    """Rules of a config; `this` is its objective with an article."""
    yield "ema", "at least one name with a decay between 0 and 1", c.ema and all(0 <= decay <= 1 for decay in c.ema.values())
    yield "ema", "named in letters, digits, _ and - alone", all(re.fullmatch(r"[\w-]+", name) for name in c.ema)
    lengths = c.power_ema
    sound = len(set(lengths)) == len(lengths) != 1 and all(0.005 <= length <= 0.28 for length in lengths)
    yield "power_ema", "empty, or at least two different lengths between 0.005 and 0.28", sound
    yield "power_ema", f"empty for {this}, whose params begin anew, or are scaled", not lengths or c.objective not in RESTARTED
    yield "ema_dtype", "float32 with power_ema: differences of its averages are magnified", not lengths or c.ema_dtype == "float32"
    yield "snapshot_every", "0 without power_ema", lengths or not c.snapshot_every
    multiple = c.snapshot_every % c.checkpoint_every == 0
    yield "snapshot_every", f"0 or a multiple of checkpoint_every, {c.checkpoint_every}", multiple
