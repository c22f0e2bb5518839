"""Files, errors, progress bars and pictures."""

from jaxdiff.io.counts import count as count
from jaxdiff.io.counts import few as few
