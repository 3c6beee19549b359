"""Take the pictures of docs/hub.md: a run's model card, and its page on a screen and on a phone.

    python docs/make_pictures.py runs/quickstart --repo me/films

Needs Debian's chromium and chromium-driver, and the extras `space` and `test`.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from selenium import webdriver

from hub_cards import pin_revision
from hub_cards.pictures import render_preview

HERE = Path(__file__).resolve().parent
REVISION = "3f1c2a9e0b7d4c5f8a6e1d2b3c4f5a6b7c8d9e0f"
SCREEN, PHONE, CARD = 1180, 375, 900
N_COLOURS = 256


def main() -> None:
    """Take all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--repo", default="me/films", help="Hub id that the pictures show")
    options = parser.parse_args()
    with browser() as chromium, TemporaryDirectory() as scratch:
        page = Path(scratch) / "card.html"
        page.write_text(card_page(options.run, options.repo), encoding="utf-8")
        photograph(chromium, page.as_uri(), HERE / "model_card.png", width=CARD)
        with serving(options.run, options.repo) as url:
            for width, name in ((SCREEN, "space.png"), (PHONE, "space_phone.png")):
                photograph(chromium, url, HERE / name, width=width, wait_for="#listed .item")


def card_page(run: Path, repo: str) -> str:
    """Return the run's card as a page, its examples pinned as a push pins them."""
    card = (run / "README.md").read_text(encoding="utf-8")
    pictures = {path.name: path.read_bytes() for path in run.glob("*.png")}
    return render_preview(pin_revision(card, repo, REVISION), pictures)


@contextmanager
def serving(run: Path, repo: str) -> Iterator[str]:
    """Serve the run's page in this process until the block ends."""
    from hub_cards.space import space_of
    from hub_cards.space_page import Demo, build, look

    page = build(Demo(str(run)), name=repo, example=space_of(str(run)).example)
    _, url, _ = page.launch(
        **look(), server_name="127.0.0.1", ssr_mode=False, quiet=True, prevent_thread_lock=True
    )
    try:
        yield url
    finally:
        page.close()


@contextmanager
def browser() -> Iterator[Any]:
    """Open Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("needs Debian's chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def photograph(driver: Any, url: str, path: Path, *, width: int, wait_for: str = "main") -> None:
    """Save a picture of a whole page, in few colours to keep it small."""
    resize(driver, width, 900)
    driver.get(url)
    end = time.monotonic() + 60
    while not driver.find_elements("css selector", wait_for) and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)
    resize(driver, width, driver.execute_script("return document.documentElement.scrollHeight"))
    time.sleep(0.5)
    picture = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    # This method keeps a colour that few points have.
    few = picture.quantize(N_COLOURS, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def resize(driver: Any, width: int, height: int) -> None:
    """Give the page a size that the window may not have."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


if __name__ == "__main__":
    main()
