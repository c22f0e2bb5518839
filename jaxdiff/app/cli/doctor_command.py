"""`jaxdiff doctor`: its flags, and what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Print what is installed, which devices there are, where data and caches are, and what is wrong with any of it.

    Exit status 1 where something is. Example: jaxdiff doctor
    """

    data_dir: str | None = None
    """tensorflow-datasets' directory; its own if not given."""


def doctor(args: Doctor) -> int:
    """`jaxdiff doctor`: the exit status, 1 where something is wrong."""
    from jaxdiff.app import doctor as doctors
    from jaxdiff.io import progress

    with progress.waiting("looking for devices"):
        found = doctors.examine(args.data_dir)
    print(found)
    return 1 if found.problems else 0
