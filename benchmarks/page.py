"""How soon the page of `sublens serve` shows a change to a lens.

    python benchmarks/page.py lensnet mobilenetv3-small --changes 50

A headless Chromium turns one dial of the view Explore again and again; each time the page waits for the simulated
image and the predictions of all networks. Printed are the median, the 95th percentile and the longest time from the
change until all is shown, as the page itself measures it.
Needs Playwright and Debian's chromium.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from playwright.sync_api import Page, expect, sync_playwright

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
N_WARM = 5
"""Changes before the measured ones."""


@contextmanager
def served(networks: list[str]) -> Iterator[str]:
    """The address of a service in a process of its own."""
    command = [sys.executable, "-m", "sublens.cli", "serve", *networks, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


def delay_ms(page: Page, shear: float) -> int:
    """Time from a change of the shear until all is shown, ms."""
    timing = page.locator("#timing[data-ms]")
    page.evaluate("delete document.getElementById('timing').dataset.ms")
    page.fill("#dial-gamma", f"{shear:.4f}")
    expect(timing).to_be_visible(timeout=15_000)
    return int(timing.get_attribute("data-ms") or 0)


def measure(address: str, n: int) -> list[int]:
    """The delays of so many changes, after some to warm up."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{address}/#explore")
        expect(page.locator("#timing[data-ms]")).to_be_visible(timeout=15_000)
        delays = [delay_ms(page, shear) for shear in np.linspace(0.05, 0.2, N_WARM + n)]
        browser.close()
    return delays[N_WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["lensnet", "mobilenetv3-small"])
    parser.add_argument("--changes", type=int, default=50)
    options = parser.parse_args()
    with served(options.networks) as address:
        delays = measure(address, options.changes)
    median, high = np.percentile(delays, [50, 95])
    print(
        f"{', '.join(options.networks)}: a change is shown after {median:.0f} ms (95th percentile {high:.0f} ms, "
        f"longest {max(delays)} ms, {len(delays)} changes)"
    )


if __name__ == "__main__":
    main()
