"""Builds the site, in `site/`: `pip install -e ".[docs]" && python docs/build.py [--out DIR]`.

The README and the pages of docs/ by markdown-it, and a page for each module from its docstrings by pdoc, in one frame. Formulas
become MathML, and nothing is loaded from another host. A warning, a link that leads nowhere, or a name in a page that jaxdiff
does not have ends the build.
"""

from __future__ import annotations

import argparse
import html
import importlib
import inspect
import pathlib
import re
import shutil
import sys
import warnings

import pdoc
import pdoc.doc
import pdoc.doc_types
import pygments
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markupsafe import Markup
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package beside this script, whichever is installed
SOURCE = "https://github.com/jaxdiff/jaxdiff/blob/main/"
PAGES = {  # file: title and address, in the order of the menu
    "README.md": ("jaxdiff", "index.html"),
    "docs/road.md": ("The road", "road.html"),
    "docs/frameworks.md": ("Networks of any framework", "frameworks.html"),
    "docs/weights.md": ("Published weights", "weights.html"),
    "docs/text.md": ("Text to image", "text.html"),
    "docs/likelihood.md": ("Maximum likelihood", "likelihood.html"),
    "docs/high_resolution.md": ("High resolution", "high_resolution.html"),
    "docs/distillation.md": ("From many steps to one", "distillation.html"),
    "docs/pods.md": ("From one chip to a pod", "pods.html"),
    "CONTRIBUTING.md": ("Contributing", "contributing.html"),
    "CHANGELOG.md": ("Changelog", "changelog.html"),
}
OUTSIDE_CORE = "app.build app.config app.runs data evaluate interop io models training"
OUTSIDE_CORE += " training.checkpoint training.mesh training.sharding"
# packages that show what is in their files
REEXPORTED = r"data|evaluate|interop|likelihood|objectives|oracles|process|samplers"
MODULES = ("jaxdiff", *(f"jaxdiff.{name}" for name in OUTSIDE_CORE.split()), rf"!jaxdiff\.({REEXPORTED})\..*")
NAME = re.compile(r"(?:(?:jd|jaxdiff)\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?")
SAID_BY_PYTHON = re.compile(r'<div class="docstring"><p>(Alias for field number|Create new instance of) [^<]*</p>\s*</div>')
FILES = {"json", "jsonl", "md", "png", "py"}  # endings of names that look like a module's
CODE = HtmlFormatter(nowrap=True)


class Written:
    """An annotation as the source writes it, such as Denoiser or ArrayLike, whose values fill half a page."""

    def __init__(self, source: str):
        self.source = source

    def __repr__(self) -> str:
        return self.source


def written(annotation, *_):
    """What pdoc shows of an annotation, in the place of its value."""
    source = getattr(annotation, "__forward_arg__", annotation)
    return Written(source) if isinstance(source, str) else annotation


class DeadEndError(Exception):
    """A page points to what is not there."""


def main() -> int:
    """Builds the site; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "site")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    try:
        build(out)
    except (DeadEndError, Warning) as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    print(f"{len(list(out.rglob('*.html')))} pages: {out / 'index.html'}")
    return 0


def build(out: pathlib.Path) -> None:
    """Writes the site.

    Raises:
        DeadEndError: a link or a name leads nowhere.
        Warning: pdoc warns of a docstring or a module.
    """
    pdoc.render.configure(docformat="google", show_source=True, template_directory=ROOT / "docs" / "templates")
    pdoc.render.env.globals["pages"] = list(PAGES.values())
    pdoc.doc.safe_eval_type = pdoc.doc_types.safe_eval_type = written
    for module in pdoc.extract.walk_specs(MODULES):
        importlib.import_module(module)  # warnings of other libraries are none of ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=out)
    for page in out.rglob("*.html"):
        page.write_text(SAID_BY_PYTHON.sub("", page.read_text()))
    for path, (title, address) in PAGES.items():
        content, contents = rendered(path)
        page = pdoc.render.env.get_template("page.html.jinja2").render(title=title, content=Markup(content), contents=contents)
        (out / address).write_text(page)
    for folder in ("docs/pictures", "configs"):
        target = out / folder
        target.mkdir(parents=True)
        for picture in (ROOT / folder).glob("*.png"):
            shutil.copy(picture, target)
    check_links(out)


def rendered(path: str) -> tuple[str, list[tuple[str, str]]]:
    """A Markdown file of the repository as HTML, and its headings: anchor and text."""
    markdown = MarkdownIt("commonmark", {"highlight": highlighted}).enable("table")
    markdown.use(anchors_plugin, max_level=3).use(dollarmath_plugin, renderer=formula)
    tokens = markdown.parse((ROOT / path).read_text())
    contents = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before.tag == "h2":
            contents.append((before.attrs["id"], token.content))
        for child in token.children or ():
            if child.type == "link_open":
                child.attrs["href"] = address(path, child.attrs["href"])
            if child.type == "image":
                child.attrs["src"] = address(path, child.attrs["src"])
            if child.type == "code_inline" and (place := documented(child.content)):
                child.type, child.content = "html_inline", f'<a href="{place}"><code>{html.escape(child.content)}</code></a>'
        if token.type == "fence" and token.info == "math":
            token.type, token.content = "html_block", f'<div class="formula">{formula(token.content, {"display_mode": True})}</div>'
    return markdown.renderer.render(tokens, markdown.options, {}), contents


def highlighted(code: str, language: str, _) -> str:
    """A block of code as HTML; one with prompts by another lexer."""
    lexer = get_lexer_by_name("pycon" if code.startswith(">>>") else language or "text")
    return f'<pre class="pdoc-code codehilite"><code>{pygments.highlight(code, lexer, CODE)}</code></pre>'


def formula(tex: str, options: dict) -> str:
    """LaTeX as MathML, with TeX's thin space between log and what it is of."""
    mathml = convert(tex.strip(), display="block" if options["display_mode"] else "inline")
    return re.sub(r"<mi>log</mi>(?!<mo)", r'<mi>log</mi><mspace width="0.167em" />', mathml)


def address(path: str, link: str) -> str:
    """Where a page's link leads within the site, or to the repository where it is no page."""
    if link.startswith(("http:", "https:", "#")):
        return link
    place, _, anchor = link.partition("#")
    target = (ROOT / path).parent.joinpath(place).resolve()
    if not target.exists():
        raise DeadEndError(f"{path}: there is no {place}")
    name = str(target.relative_to(ROOT))
    if name in PAGES:
        return PAGES[name][1] + (f"#{anchor}" if anchor else "")
    return name if name.endswith(".png") else SOURCE + name


def documented(code: str) -> str | None:
    """The address of what inline code such as `objectives.vae` or `jd.ddim()` names; None where it is no name of jaxdiff's.

    Raises:
        DeadEndError: it is of a module of jaxdiff that has no such name.
    """
    found = NAME.fullmatch(code)
    parts = found[1].split(".") if found else []
    ours = code.startswith(("jd.", "jaxdiff.")) or (len(parts) > 1 and f"jaxdiff.{parts[0]}" in sys.modules)
    if not ours or parts[-1] in FILES:
        return None
    owner = sys.modules["jaxdiff"]
    for number, name in enumerate(parts):
        value = getattr(owner, name, sys.modules.get(f"{owner.__name__}.{name}"))
        if value is None:
            raise DeadEndError(f"{owner.__name__} has no {name} (`{code}`)")
        if not inspect.ismodule(value):
            return f"{owner.__name__.replace('.', '/')}.html#{'.'.join(parts[number:])}"
        owner = value
    return f"{owner.__name__.replace('.', '/')}.html"


def check_links(out: pathlib.Path) -> None:
    """Whether each link and picture within the site is there.

    Raises:
        DeadEndError: one is not.
    """
    texts = {path: re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.DOTALL) for path in out.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]*)"', text)) for path, text in texts.items()}
    for path, text in texts.items():
        for link in re.findall(r'<(?:a|img)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            if re.match(r"https?:|data:|mailto:", link):
                continue
            place, _, anchor = html.unescape(link).partition("#")
            target = (path.parent / place).resolve() if place else path
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                raise DeadEndError(f"{path.relative_to(out)} points to {link}, which is not there")


if __name__ == "__main__":
    sys.exit(main())
