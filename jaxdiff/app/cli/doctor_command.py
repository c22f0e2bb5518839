"""`jaxdiff doctor`: its flags, and what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, directories of data and caches, and problems with any of them; exit status 1 if there are some.

    Example: jaxdiff doctor
    """

    data_dir: str | None = None
    """Directory of tensorflow-datasets; by default its own."""


def doctor(args: Doctor) -> int:
    """`jaxdiff doctor`: the exit status, 1 if there are problems."""
    from jaxdiff.app import doctor as doctors
    from jaxdiff.io import progress

    with progress.waiting("looking for devices"):
        findings = doctors.examine(args.data_dir)
    print(findings)
    return 1 if findings.problems else 0
