"""One HTML page about a run, or about several side by side: what was asked for, how it trained, and what came of it."""

from jaxdiff.page.neighbours import Neighbours, nearest
from jaxdiff.page.writing import write

__all__ = ["Neighbours", "nearest", "write"]
