"""Draws docs/page-{predict,explore,results}.png: the page of `sublens serve`, each view at another width.

    python scripts/draw_page.py

Needs Playwright and Debian's chromium. The images are simulated.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {"predict": (1400, 1000), "explore": (800, 1000), "results": (360, 1000)}
"""Width and height, CSS pixels."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def predict(page: Page) -> None:
    """Three simulated images, the second of them large, with its predicted mass map over it."""
    page.get_by_role("button", name="Try an example").click()
    page.get_by_text("3 of 3 shown").wait_for()
    page.locator("#catalogue-rows button.name").nth(1).click()
    page.get_by_label("Lay over it").select_option(index=1)


def explore(page: Page) -> None:
    """A lens with a string."""
    page.get_by_role("button", name="with a string").click()


def results(page: Page) -> None:
    """The table of scores, as it is."""


def main() -> None:
    command = [sys.executable, "-m", "sublens.cli", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    url = server.stdout.readline().strip()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for view, prepare in (("predict", predict), ("explore", explore), ("results", results)):
            width, height = SIZES[view]
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            page.goto(f"{url}/#{view}")
            page.wait_for_load_state("networkidle")
            prepare(page)
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(2000)  # all is drawn
            page.screenshot(path=DOCS / f"page-{view}.png")
        browser.close()
    server.terminate()
    server.wait()


if __name__ == "__main__":
    main()
