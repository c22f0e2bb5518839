"""The page of gradio: what it asks for and what it shows."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from gradio.themes import Default

from jaxdiff.app.config import uses_discrete_levels
from jaxdiff.app.demo import canvas, drawing, settings
from jaxdiff.app.demo.drawing import Asked, Pictures
from jaxdiff.app.demo.programs import Opened
from jaxdiff.app.demo.settings import Setting
from jaxdiff.io import count
from jaxdiff.io.errors import ConfigError, UserError, first_line

PAUSE = 0.3  # seconds between two looks at what is drawn so far
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the browser: gradio's own are fetched from a server
THEME = Default(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"])
CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
.gradio-container main {padding: 8px 24px !important}
.pixels img {image-rendering: pixelated}
.pictures .grid-wrap {min-height: 0 !important}
.pictures .grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important}
.pixels .grid-container {grid-template-columns: repeat(5, minmax(0, 1fr)) !important}
.pictures .grid-container {grid-template-rows: none !important; grid-auto-rows: auto !important}
.pictures .thumbnail-item {border-radius: 4px}
.strip .icon-button-wrapper {display: none}
.strip img {width: 100% !important}
"""
COMPILES = "Another sampler, another number of steps and the first mask compile for a while; nothing else does."
PAINT = "Paint over what is to be drawn anew; without paint that is all. It is noised by the strength, then denoised."


def page(runs: Sequence[Opened], drawn: Sequence[Pictures]) -> gr.Blocks:
    """The page of one run, or of two side by side, and what they have drawn when it opens."""
    title = " and ".join(run.name for run in runs)
    with gr.Blocks(title=f"jaxdiff: {title}", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"## {title}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                asked = _asked(runs)
                with gr.Row():
                    button, following = gr.Button("Draw", variant="primary", min_width=100), gr.Button("Next seed", min_width=100)
                with gr.Accordion("Edit an image", open=False):
                    taking, edited = _edited()
            with gr.Column(scale=5):
                shown = _shown(runs, drawn)
        asked |= edited
        draw: dict[str, Any] = {"fn": answering(runs, list(asked)), "inputs": list(asked.values()), "outputs": shown}
        draw |= {"concurrency_id": "device", "concurrency_limit": 1, "show_progress": "minimal", "show_progress_on": shown[-1]}
        button.click(**draw, api_name="draw")
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        seed = asked["seed"]
        following.click(lambda seed: int(seed or 0) + 1, seed, seed, **quick).then(**draw, api_visibility="private")
        taking.click(_taken, shown[0], asked["image"], **quick)
    return blocks


def _asked(runs: Sequence[Opened]) -> dict[str, Any]:
    """The components of what is asked for, by name."""
    asked, labels = {}, drawing.labels(runs)
    with gr.Group():
        if runs[0].tokens is not None:
            asked["prompt"] = gr.Textbox(label="Prompt", lines=2)
            asked["negative"] = gr.Textbox(label="Negative prompt")
        with gr.Row():
            if labels:
                asked["label"] = gr.Dropdown(labels, value=labels[0], label="Label", min_width=120)
            asked["seed"] = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", min_width=100)
        asked["num"] = gr.Slider(1, drawing.MOST, value=min(10, len(labels) or 4), step=1, label="Images", buttons=[])
    for number, run in enumerate(runs):
        if len(runs) > 1:
            gr.Markdown(f"**{run.name}**")
        with gr.Group():
            asked |= {f"{name}_{number}": component for name, component in _setting(run).items()}
    return asked


def _setting(run: Opened) -> dict[str, Any]:
    """The components of how a run samples."""
    own, names, numbers = settings.of_config(run.config), settings.samplers(run.config), settings.steps(run.config)
    parts: dict[str, Any] = {}
    with gr.Row():
        sampler = gr.Dropdown(names, value=own.sampler, label="Sampler", interactive=len(names) > 1, min_width=120)
        if uses_discrete_levels(run.config):
            steps = gr.Dropdown(numbers, value=own.steps, label="Steps", min_width=100)
        else:
            steps = gr.Number(own.steps, precision=0, minimum=1, maximum=numbers[-1], label="Steps", min_width=100)
    if bounds := settings.scales(run.config):
        parts["guidance"] = gr.Slider(*bounds, value=own.guidance, step=0.1, label="Guidance, 1 is none", buttons=[])
    return {"sampler": sampler, "steps": steps, **parts}


def _edited() -> tuple[gr.Button, dict[str, Any]]:
    """The button that takes what was drawn, and the components of an edit, by name."""
    gr.Markdown(PAINT)
    image = gr.ImageEditor(
        type="numpy", image_mode="RGBA", format="png", sources=("upload", "clipboard"), transforms=(), layers=False,
        show_label=False, height=360, brush=gr.Brush(colors=["#ff3d71"], color_mode="fixed"), buttons=[],
    )  # fmt: skip
    taking = gr.Button("Take the first image that was drawn", size="sm")
    strength = gr.Slider(0, 1, value=0.6, step=0.05, label="Strength: 0 leaves the image, 1 is noise alone", buttons=[])
    return taking, {"image": image, "strength": strength}


def _taken(drawn: Sequence[Any] | None) -> dict[str, Any] | None:
    """The first image of a gallery, as an image editor takes it."""
    return {"background": drawn[0][0], "layers": [], "composite": None} if drawn else None


def _shown(runs: Sequence[Opened], drawn: Sequence[Pictures]) -> list[Any]:
    """The components of what is shown: images and a strip of each run, then a line."""
    height, width, _ = runs[0].config.data.image_shape
    small = max(height, width) < canvas.SHOWN
    classes = ["pictures", *["pixels"] * small]
    look: dict[str, Any] = {"show_label": False, "format": "png", "interactive": False}
    shown = []
    with gr.Row():
        for run, each in zip(runs, drawn, strict=True):
            with gr.Column(min_width=280):
                gr.Markdown(f"**{run.name}**" if len(runs) > 1 else "**Images**")
                images, strip = _pictures(each)
                options: dict[str, Any] = {"columns": 5 if small else 2, "object_fit": "contain", "height": "auto", "type": "numpy"}
                shown.append(gr.Gallery(images, **options, buttons=["download"], elem_classes=classes, **look))
                gr.Markdown("The first on its way from noise")
                shown.append(gr.Image(strip, image_mode="RGBA", buttons=[], elem_classes=[*classes, "strip"], **look))
    return [*shown, gr.Markdown(COMPILES)]


def answering(runs: Sequence[Opened], names: Sequence[str]) -> Callable[..., Iterator[list[Any]]]:
    """What answers the page: from the values of its components, by name, to what it shows, again and again while it draws."""

    def answer(*values: Any) -> Iterator[list[Any]]:
        begun = seen = time.perf_counter()
        try:
            asked = _read(runs, dict(zip(names, values, strict=True)))
            for drawn in drawing.draw(runs, asked):
                num, now = len(drawn[0].images), time.perf_counter()
                if num in (1, asked.num) or now - seen > PAUSE:
                    done = num == asked.num
                    line = f"{count(num, 'image')} in {now - begun:.1f} s" if done else f"image {num} of {asked.num}"
                    yield [part for each in drawn for part in _pictures(each)] + [line]
                    seen = now
        except UserError as error:
            raise gr.Error(str(error), title="", print_exception=False) from error
        except Exception as error:
            raise gr.Error(first_line(error), title="This is a bug of jaxdiff, or memory is full", duration=None) from error

    return answer


def _pictures(drawn: Pictures) -> list[Any]:
    return [[canvas.picture(image) for image in drawn.images], canvas.strip(drawn.frames)]


def _read(runs: Sequence[Opened], values: dict[str, Any]) -> Asked:
    """What is asked for by the values of the page's components.

    Raises:
        ConfigError: one of them is empty, or there is paint without an image.
    """
    for name, value in values.items():
        if value is None and name != "image":
            raise ConfigError(f"{name.partition('_')[0]} is empty; choose or write one")
    chosen = [
        Setting(values[f"sampler_{n}"], int(values[f"steps_{n}"]), float(values.get(f"guidance_{n}", 1))) for n in range(len(runs))
    ]
    edit = canvas.edit(values["image"], float(values["strength"]), runs[0].config.data.image_shape)
    said = {name: values[name] for name in ("label", "prompt", "negative") if name in values}
    return Asked(chosen, seed=int(values["seed"]), num=int(values["num"]), edit=edit, **said)
