"""Pictures in terminals that show them: by kitty's graphics protocol, which several speak, or iTerm2's inline images."""

from __future__ import annotations

import base64
import io
import logging
import os
import sys
from collections.abc import Mapping

import numpy as np
from PIL import Image

KITTY, ITERM = {"ghostty", "kitty"}, {"iTerm.app", "WezTerm"}  # TERM_PROGRAM of terminals that speak them
CHUNK = 4096  # characters of base64 that kitty takes at once


def protocol(environ: Mapping[str, str]) -> str:
    """Which protocol the terminal of an environment speaks, kitty or iterm; empty if none, or within tmux, which hides it."""
    program = environ.get("TERM_PROGRAM", "")
    if "TMUX" in environ:
        return ""
    if "KITTY_WINDOW_ID" in environ or environ.get("TERM") in ("xterm-kitty", "xterm-ghostty") or program in KITTY:
        return "kitty"
    return "iterm" if program in ITERM else ""


def escaped(picture: np.ndarray, how: str) -> str:
    """The escape sequence by which a terminal shows a uint8 picture `[H, W, C]` at the cursor."""
    png = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(png, "PNG")
    content = base64.b64encode(png.getvalue()).decode()
    if how == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png.getvalue())}:{content}\a"
    parts = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    more = [f"m={int(number < len(parts))}" for number in range(1, len(parts) + 1)]
    keys = [f"a=T,f=100,q=2,i=1,{more[0]}", *more[1:]]
    return "".join(f"\x1b_G{each};{part}\x1b\\" for each, part in zip(keys, parts, strict=True))


def shows_pictures() -> bool:
    """Whether standard error, where progress bars are, is a terminal that shows pictures, and bars are wanted."""
    quiet = logging.getLogger("jaxdiff").level > logging.INFO
    return not quiet and sys.stderr.isatty() and bool(protocol(os.environ))


def show(picture: np.ndarray, last: bool) -> None:
    """Shows a uint8 picture `[H, W, C]` at the cursor; the next one covers it, and after the last one the cursor is below it."""
    drawn = escaped(picture, protocol(os.environ))
    sys.stderr.write(f"{drawn}\n" if last else f"\x1b7{drawn}\x1b8")
    sys.stderr.flush()
