"""`python -m jaxdiff` is the command line."""

from jaxdiff.app.cli import entry

entry()
