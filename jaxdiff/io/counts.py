"""Numbers with their nouns, and lists of names."""

from collections.abc import Sequence


def count(number: int, noun: str, spec: str = "d") -> str:
    """A number and its noun, in the plural unless the number is 1: `1 sample`, `0 samples`, `2 processes`.

    Args:
        number: how many.
        noun: in the singular; words may stand before it, such as `held-out image`.
        spec: the number's format: `,` separates thousands.
    """
    ending = "es" if noun.endswith(("s", "x", "tch", "nch")) else "s"
    return f"{number:{spec}} {noun}{'' if number == 1 else ending}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are: `a, b, c and 2 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
