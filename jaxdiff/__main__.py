"""`python -m jaxdiff` is the command line."""

from jaxdiff.cli import entry

entry()
