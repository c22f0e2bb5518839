"""One HTML page about a run, or about several side by side: what was asked for, how it trained, and what came of it."""

from jaxdiff.app.report.neighbours import Neighbours, nearest
from jaxdiff.app.report.render import write_report

__all__ = ["Neighbours", "nearest", "write_report"]
