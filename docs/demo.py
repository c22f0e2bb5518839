"""Takes the picture of `jaxdiff demo` in docs/distillation.md: `python docs/demo.py RUN [RUN] [--chromium /usr/bin/chromium]`.

It opens the page of these runs in a headless Chromium, presses Draw, waits for the images and saves what is seen. It needs
`pip install -e ".[demo]" playwright` and a Chromium (Debian's package chromium). What the page asks of other hosts is an error.
"""

import argparse
import io
import pathlib

from PIL import Image
from playwright.sync_api import sync_playwright

from jaxdiff.app.demo import drawing, programs, server

SIZE = {"width": 1240, "height": 740}


def screenshot(address, chromium):
    """The page as PNG bytes, after it has drawn."""
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_text("images in").wait_for()
        page.wait_for_timeout(1000)  # until the images are decoded
        page.mouse.move(SIZE["width"] - 5, SIZE["height"] - 5)
        seen = page.screenshot()
        browser.close()
    if elsewhere := [url for url in asked if not url.startswith((address, "data:", "blob:"))]:
        raise SystemExit(f"the page asks other hosts: {', '.join(elsewhere)}")
    return seen


def main():
    """Serves the page and saves its picture in 112 colours, as docs/draw.py does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "pictures" / "demo.png")
    args = parser.parse_args()
    runs = [programs.open_run(run) for run in args.runs]
    drawing.check_together(runs)
    with server.serving(runs, drawing.first(runs), "127.0.0.1", server.free_port("127.0.0.1", 0)) as address:
        seen = Image.open(io.BytesIO(screenshot(address, args.chromium))).convert("RGB")
    seen.quantize(112, kmeans=2, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
