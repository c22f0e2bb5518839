"""What `jaxdiff plan` prints."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

from jaxdiff.app.plan import search, summary
from jaxdiff.app.plan.compiling import check_installed
from jaxdiff.app.plan.plans import Job, Plan, planned
from jaxdiff.io import files, progress


def cache_dir(directory: pathlib.Path | None = None) -> pathlib.Path:
    """Where compiled programs are kept: in a directory, by default of the environment's or the user's cache."""
    if directory is not None:
        return directory
    return files.cache_dir() / "plan"


def answer(job: Job, largest: bool = False, variants: Sequence[Job] = (), as_json: bool = False) -> bool:
    """Prints the job's plan, or the search for its largest batch, or its variants in a table; whether any of it fits.

    Raises:
        UserError: the config or topology cannot be used, or the compiler failed or is not there.
    """
    check_installed()
    if not largest and not variants:
        with progress.waiting("compiling"):
            found = planned(job)
        print(json.dumps(summary.values(found), indent=2) if as_json else summary.text(found))
        return found.fits
    plans, conclude = (
        (search.sweep(variants), search.recommendation) if variants else (search.largest_batch(job), search.conclusion)
    )
    if variants:
        print(f"up to {len(variants)} programs; minutes each, unless they were compiled before", file=sys.stderr)
    done = list(_shown(plans, len(variants) or None, conclude, as_json))
    return any(each.fits for each in done)


def _shown(plans: Iterator[Plan], most: int | None, conclude: Callable[[Sequence[Plan]], str], as_json: bool) -> Iterator[Plan]:
    """The plans, at `most` so many, each printed as soon as it is known."""
    done: list[Plan] = []
    for each in progress.track(plans, "compiling", "program", most):
        done.append(each)
        lines = summary.table([each]).splitlines()
        if not as_json:
            progress.print_above("\n".join(lines if len(done) == 1 else lines[1:]))
        yield each
    if as_json:
        print(json.dumps({"plans": [summary.values(each) for each in done], "conclusion": conclude(done)}, indent=2))
        return
    if done:
        print(f"{conclude(done)}\n{summary.LEAVES_OUT}")
