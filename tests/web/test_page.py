"""The page in a real browser, against the real service."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from sublens.sim.render import simulate
from sublens.surveys.presets import preset

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDTHS = (360, 800, 1400)
VIEWS = ("predict", "explore", "results")
CLASSES = ("no", "sphere", "vort")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of a service that runs for as long as the tests do."""
    command = [sys.executable, "-m", "sublens.cli", "serve", "lensnet", "mobilenetv3-small", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    with process.stdout:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        yield address
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if not path:
        assert "CI" not in os.environ, "no chromium here; CI needs it: apt-get install chromium"
        pytest.skip("no chromium here")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=FLAGS) as launched:
        yield launched


@pytest.fixture
def opened(browser: Browser, service: str) -> Iterator[Open]:
    """Opens the page at a place, such as #results. In the end no page may have failed, or asked anybody else."""
    contexts, asked, failed = [], list[str](), list[str]()

    def open_page(place: str = "", width: int = 1400, scheme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(f"{service}/{place}")
        expect(page.locator("html")).to_have_attribute("data-ready", "", timeout=15_000)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    assert failed == []
    assert [url for url in asked if not url.startswith((service, "blob:", "data:"))] == []


@pytest.fixture
def page(opened: Open) -> Page:
    return opened()


@pytest.fixture
def lens(opened: Open) -> Page:
    """The second view, with its first lens shown."""
    page = opened("#explore")
    settled(page)
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty simulated images, and one file that is none."""
    out = tmp_path_factory.mktemp("images") / "fifty"
    out.mkdir()
    truth, counts = simulate(preset("common-test-1"), 7, "test", range(50))
    for number, image in enumerate(counts):
        np.save(out / f"{number:02d} {CLASSES[truth.scenes['label'][number]]}.npy", image)
    (out / "notes.txt").write_text("not an image")
    return out


@pytest.fixture
def some(folder: Path) -> list[Path]:
    """One image of each class."""
    return sorted(folder.glob("*.npy"))[:3]


def predicted(page: Page, files: list[Path]) -> Locator:
    """The rows of the table, once those files are in it."""
    page.locator("#files").set_input_files([str(path) for path in files])
    rows = page.locator("#catalogue-rows tr")
    expect(rows).to_have_count(len(files), timeout=20_000)
    expect(page.locator("#progress")).to_be_hidden()
    return rows


def pixels(page: Page, canvas: str) -> str:
    return str(page.locator(f"#{canvas}").evaluate("canvas => canvas.toDataURL()"))


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#catalogue-rows tr > :nth-child({number})").all_inner_texts()


# --- predict ---


def test_a_hubble_image_is_called_out_of_distribution(page: Page, real_data: Path) -> None:
    predicted(page, [real_data / "slacs0946+1006" / "data.fits"])
    expect(page.locator("#warning")).to_contain_text("do not trust this prediction. Its OOD score is 6.61")
    expect(page.locator("#large")).to_have_attribute("aria-label", re.compile("data.fits: 150 by 150 pixels"))


def test_real_images_are_predicted_as_what_they_are(page: Page, real_data: Path) -> None:
    for name in CLASSES:
        page.locator("#clear").evaluate("button => button.click()")
        predicted(page, sorted((real_data / "common_test_1" / name).glob("*.npy"))[:2])
        assert column(page, 3) == [name, name]
        expect(page.locator("#conclusion")).to_have_text(re.compile(rf"^Both networks agree: .*\({name}\)\.$"))


def test_fifty_files_of_a_folder_become_a_table(page: Page, folder: Path) -> None:
    page.locator("#folder").set_input_files(folder)
    expect(page.locator("#catalogue-rows tr")).to_have_count(50, timeout=30_000)
    expect(page.locator("#predict-problem")).to_contain_text("1 of the files")
    right = [said in name for name, said in zip(column(page, 2), column(page, 3), strict=True)]
    assert sum(right) >= 45


def test_files_that_are_dropped_get_predictions(page: Page, some: list[Path]) -> None:
    data = page.evaluate_handle(
        "bytes => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'dropped.npy')); return data; }",
        list(some[0].read_bytes()),
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": data})
    expect(page.locator("#catalogue-rows tr")).to_contain_text("dropped.npy")


def test_examples_can_be_tried(page: Page) -> None:
    page.click("#example")
    expect(page.locator("#catalogue-rows tr")).to_have_count(3)
    assert all("simulated as" in name for name in column(page, 2))


def test_a_file_that_cannot_be_read_says_why(page: Page, some: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.npy").write_text("nothing")
    (tmp_path / "table.h5").write_text("nothing")
    predicted(page, [tmp_path / "broken.npy", tmp_path / "table.h5", some[0]])
    expect(page.locator('tr[data-id="broken.npy"]')).to_contain_text("not a .npy file")
    expect(page.locator('tr[data-id="table.h5"]')).to_contain_text("Needed: one of .npy")
    expect(page.locator("#large-name")).to_have_text(some[0].name)


@pytest.mark.parametrize(
    ("control", "value"), [("stretch", "log"), ("colours", "inferno"), ("colours", "inverted"), ("overlay", "mass")]
)
def test_a_choice_changes_the_picture(page: Page, some: list[Path], control: str, value: str) -> None:
    predicted(page, some[1:2])
    before = pixels(page, "large")
    page.select_option(f"#{control}", value)
    assert pixels(page, "large") != before


def test_the_picture_is_zoomed_and_moved(page: Page, some: list[Path]) -> None:
    predicted(page, some[:1])
    seen = [pixels(page, "large")]
    page.click("#zoom-in")
    expect(page.locator("#zoom")).to_have_text("150 %")
    seen.append(pixels(page, "large"))
    page.locator("#large-stage").press("ArrowLeft")
    seen.append(pixels(page, "large"))
    page.locator("#large").hover(position={"x": 90, "y": 90})
    page.mouse.wheel(0, -100)
    expect(page.locator("#zoom")).to_have_text("180 %")
    seen.append(pixels(page, "large"))
    page.locator("#large-stage").press("0")
    assert len(set(seen)) == 4
    assert pixels(page, "large") == seen[0]


def test_a_saliency_map_is_computed_when_it_is_chosen(page: Page, some: list[Path]) -> None:
    predicted(page, some[1:2])
    before = pixels(page, "large")
    page.select_option("#overlay", "saliency")
    expect(page.locator("#overlay-words")).to_contain_text(
        "the pixels that count for many subhaloes (sphere)", timeout=30_000
    )
    assert pixels(page, "large") != before
    faint = pixels(page, "large")
    page.locator("#opacity").fill("0.2")
    assert pixels(page, "large") != faint


def test_another_extension_of_a_fits_file_is_another_image(page: Page, some: list[Path], tmp_path: Path) -> None:
    images = [np.load(path).astype(np.float32) for path in some]
    hdus = [fits.PrimaryHDU(images[0]), fits.ImageHDU(images[1], name="OTHER")]
    fits.HDUList(hdus).writeto(tmp_path / "two.fits")
    predicted(page, [tmp_path / "two.fits"])
    expect(page.locator("#headline")).to_contain_text("no substructure")
    page.locator("#hdu").select_option(label="1 OTHER 150 × 150")
    expect(page.locator("#headline")).to_contain_text("many subhaloes")


def test_a_pixel_scale_that_is_unknown_can_be_entered(page: Page, some: list[Path]) -> None:
    predicted(page, some[:1])
    expect(page.locator("#notes")).to_contain_text("pixel scale not in the file")
    page.fill("#scale", "0.06")
    page.click("#scale-form button")
    expect(page.locator("#notes")).to_contain_text("resampled from 0.06")


def test_each_network_has_bars_and_the_table_follows_the_chosen_one(page: Page, some: list[Path]) -> None:
    predicted(page, some)
    expect(page.locator("#predict-bars section")).to_have_count(2)
    expect(page.locator("#comparison tr")).to_have_count(2)
    before = column(page, 8)
    page.select_option("#predict-network", "mobilenetv3-small")
    assert column(page, 8) != before
    expect(page.locator("#predict-bars section[data-chosen] h4")).to_contain_text("mobilenetv3-small")


def test_sorting_reorders_the_rows_and_says_so(page: Page, some: list[Path]) -> None:
    predicted(page, some)
    page.get_by_role("button", name="P(vort)").click()
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    assert column(page, 3)[0] == "vort"
    page.get_by_role("button", name="P(vort)").click()
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "ascending")
    assert column(page, 3)[-1] == "vort"


def test_filters_hide_rows(page: Page, some: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.npy").write_text("nothing")
    noise = np.random.default_rng(0).poisson(500, (150, 150))
    np.save(tmp_path / "noise.npy", noise)
    rows = predicted(page, [*some, tmp_path / "broken.npy", tmp_path / "noise.npy"])
    page.fill("#filter-text", "BROKEN")
    expect(rows).to_have_count(1)
    page.fill("#filter-text", "")
    for box, name in (("#only-errors", "broken.npy"), ("#only-ood", "noise.npy")):
        page.check(box)
        expect(rows).to_have_count(1)
        assert column(page, 2) == [name]
        page.uncheck(box)
    page.fill("#filter-text", some[2].name)
    page.select_option("#filter-label", "vort")
    assert column(page, 3) == ["vort"]


def test_a_row_is_chosen_by_click_and_by_key(page: Page, some: list[Path]) -> None:
    predicted(page, some)
    page.locator(f'tr[data-id="{some[2].name}"] td').first.click()
    expect(page.locator("#large-name")).to_have_text(some[2].name)
    page.get_by_role("button", name=some[1].name, exact=True).press("Enter")
    expect(page.locator("#large-name")).to_have_text(some[1].name)
    expect(page.locator("tr[aria-current]")).to_have_attribute("data-id", some[1].name)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_table(path: Path, form: str) -> list[dict[str, str]]:
    table = Table.read(path, format=form)
    return [{name: str(row[name]) for name in table.colnames} for row in table]


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("csv", read_csv),
        ("fits", lambda path: read_table(path, "fits")),
        ("vot", lambda path: read_table(path, "votable")),
    ],
)
def test_corrections_and_comments_are_in_the_catalogue(
    page: Page, some: list[Path], form: str, read: Callable[[Path], list[dict[str, str]]]
) -> None:
    predicted(page, some)
    page.select_option("#correction", "unsure")
    page.get_by_label(f"Comment on {some[2].name}").fill("a string, surely")
    page.get_by_label(f"Comment on {some[2].name}").press("Tab")
    page.get_by_role("button", name="P(vort)").click()
    with page.expect_download() as download:
        page.click(f'button.export[data-format="{form}"]')
    rows = {row["id"]: row for row in read(download.value.path())}
    assert rows[some[0].name]["correction"] == "unsure"
    assert rows[some[2].name]["comment"] == "a string, surely"
    assert rows[some[1].name]["label"] == "sphere"


def test_a_correction_outlives_sorting_filters_and_a_reload(page: Page, some: list[Path]) -> None:
    rows = predicted(page, some)
    page.get_by_label(f"Correction of {some[1].name}").select_option("vort")
    page.get_by_role("button", name="Image", exact=True).click()
    page.check("#only-corrected")
    expect(rows).to_have_count(1)
    page.reload()
    predicted(page, some)
    expect(page.get_by_label(f"Correction of {some[1].name}")).to_have_value("vort")


def test_removed_images_take_their_corrections_along(page: Page, some: list[Path]) -> None:
    predicted(page, some[:1])
    page.select_option("#correction", "vort")
    page.click("#clear")
    predicted(page, some[:1])
    assert exported(page)[0]["correction"] == ""
    expect(page.locator("#correction")).to_have_value("")


def test_another_file_of_the_same_name_has_no_correction(page: Page, some: list[Path], tmp_path: Path) -> None:
    predicted(page, some[:1])
    page.select_option("#correction", "vort")
    shutil.copyfile(some[1], tmp_path / some[0].name)
    page.reload()
    predicted(page, [tmp_path / some[0].name])
    assert exported(page)[0]["correction"] == ""


def exported(page: Page) -> list[dict[str, Any]]:
    """The rows of the catalogue that the page sends to be written."""
    with page.expect_request("**/v1/catalogue*") as request:
        page.click('button.export[data-format="csv"]')
    rows: list[dict[str, Any]] = json.loads(request.value.post_data or "")["rows"]
    return rows


OTHER_CLASSES = {"no": "cold", "sphere": "warm", "vort": "fuzzy"}


def with_other_classes(page: Page) -> None:
    """Gives the second network other classes than the first."""

    def networks(route: Route) -> None:
        answer = route.fetch().json()
        answer["networks"][1]["classes"] = list(OTHER_CLASSES.values())
        route.fulfill(json=answer)

    def predict(route: Route) -> None:
        answer = route.fetch().json()
        for image in answer["images"]:
            second = image["predictions"][1]
            second["label"] = OTHER_CLASSES[second["label"]]
            second["prediction_set"] = [OTHER_CLASSES[label] for label in second["prediction_set"]]
            second["probs"] = {OTHER_CLASSES[label]: prob for label, prob in second["probs"].items()}
        route.fulfill(json=answer)

    page.route("**/v1/networks", networks)
    page.route("**/v1/predict*", predict)
    page.reload()


def test_columns_follow_the_classes_of_the_chosen_network(page: Page, some: list[Path]) -> None:
    with_other_classes(page)
    predicted(page, some)
    expect(page.locator("#conclusion")).to_contain_text("The networks have different classes")
    page.select_option("#predict-network", "mobilenetv3-small")
    heads = page.locator("#catalogue-head th").all_inner_texts()
    assert [head for head in heads if head.startswith("P(")] == ["P(cold)", "P(warm)", "P(fuzzy)"]
    assert column(page, 3) == ["cold", "warm", "fuzzy"]
    assert page.locator("#filter-label option").all_inner_texts() == ["any", "cold", "warm", "fuzzy"]
    assert "NaN" not in page.locator("main").inner_text()


def test_corrections_are_classes_of_the_chosen_network(page: Page, some: list[Path]) -> None:
    with_other_classes(page)
    predicted(page, some)
    page.select_option("#correction", "vort")
    page.select_option("#predict-network", "mobilenetv3-small")
    for box in ("#correction", f'[aria-label="Correction of {some[0].name}"]'):
        options = page.locator(f"{box} option").all_inner_texts()
        assert options == ["none", "cold", "warm", "fuzzy", "unsure", "vort"]  # the last was chosen before
        expect(page.locator(box)).to_have_value("vort")
    page.get_by_label(f"Correction of {some[1].name}").select_option("fuzzy")
    assert [row["correction"] for row in exported(page)] == ["vort", "fuzzy", ""]


def test_an_unknown_ood_flag_is_neither_yes_nor_no(page: Page, some: list[Path], tmp_path: Path) -> None:
    def without_scores(route: Route) -> None:
        answer = route.fetch().json()
        for prediction in answer["images"][0]["predictions"]:
            prediction.update(ood_score=None, ood=None)
        route.fulfill(json=answer)

    page.route("**/v1/predict*00*", without_scores)
    np.save(tmp_path / "small.npy", np.load(some[1])[:40, :40])
    rows = predicted(page, [*some[:2], tmp_path / "small.npy"])
    expect(page.locator("#ood-words")).to_contain_text("is unknown")
    assert [row["ood"] for row in exported(page)] == [None, False, None]
    page.check("#only-ood")
    expect(rows).to_have_count(0)


def test_no_set_is_claimed_for_an_out_of_distribution_image(page: Page, tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).poisson(500, (150, 150)))
    predicted(page, [tmp_path / "noise.npy"])
    expect(page.locator("#warning")).to_contain_text("Out-of-distribution")
    expect(page.locator("#set-words")).to_contain_text("There is no prediction set")
    assert [(row["ood"], row["prediction_set"]) for row in exported(page)] == [(True, None)]
    assert column(page, 7) == ["–"]


def delay_first(page: Page, path: str) -> None:
    """The next answer of that path comes 700 ms late, whatever is asked meanwhile."""
    page.evaluate(
        """path => { const real = fetch; let n = 0; window.fetch = async (address, options) => {
            const isLate = String(address).startsWith(path) && n++ === 0;
            const response = await real(address, { ...options, signal: undefined });
            if (isLate) await new Promise(go => setTimeout(go, 700));
            return response; } }""",
        path,
    )


def test_the_extension_chosen_last_is_shown(page: Page, some: list[Path], tmp_path: Path) -> None:
    images = [np.load(path).astype(np.float32) for path in some]
    fits.HDUList([fits.PrimaryHDU(images[0]), *map(fits.ImageHDU, images[1:])]).writeto(tmp_path / "three.fits")
    predicted(page, [tmp_path / "three.fits"])
    delay_first(page, "/v1/predict")
    page.select_option("#hdu", "1")
    page.select_option("#hdu", "2")
    expect(page.locator("#headline")).to_contain_text("a vortex string")
    page.wait_for_timeout(1000)
    expect(page.locator("#headline")).to_contain_text("a vortex string")


def test_stopping_leaves_the_rest_without_predictions(page: Page, some: list[Path]) -> None:
    page.route("**/v1/predict*", lambda route: None)  # never answered
    page.locator("#files").set_input_files([str(path) for path in some])
    expect(page.locator("#progress-text")).to_contain_text("0 of 3 files")
    page.click("#stop")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#catalogue-rows tr")).to_have_count(0)


def test_a_busy_service_is_asked_again(page: Page, some: list[Path]) -> None:
    busy = [{"status": 503, "headers": {"Retry-After": "0.05"}}]
    page.route("**/v1/predict*", lambda route: route.fulfill(**busy.pop()) if busy else route.fallback())
    predicted(page, some)
    assert busy == []


def test_a_key_is_asked_for_once_and_then_sent(page: Page, some: list[Path]) -> None:
    def guard(route: Route) -> None:
        is_known = route.request.headers.get("authorization") == "Bearer secret"
        route.fallback() if is_known else route.fulfill(status=401)

    page.route("**/v1/predict*", guard)
    page.locator("#files").set_input_files([str(path) for path in some])
    page.locator("#key").fill("secret")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#catalogue-rows tr")).to_have_count(3)
    expect(page.locator("#key-form")).to_be_hidden()


def test_a_service_that_is_gone_is_reported(page: Page, some: list[Path]) -> None:
    page.route("**/v1/predict*", lambda route: route.abort())
    page.locator("#files").set_input_files(str(some[0]))
    expect(page.locator("#predict-problem")).to_contain_text(
        "did not answer. Check that sublens serve", use_inner_text=False
    )


# --- explore ---


def settled(page: Page) -> None:
    """Waits until the last change is shown."""
    expect(page.locator("#timing")).to_have_attribute("data-ms", re.compile(r"\d"), timeout=15_000)
    expect(page.locator("#explore-problem")).to_be_hidden()


def shown(page: Page, act: Callable[[], object]) -> None:
    """Acts, and waits until what that changed is shown."""
    page.locator("#timing").evaluate("element => delete element.dataset.ms")
    act()
    settled(page)


DIALS = {
    **{"theta_e": 0.8, "halo_q": 0.6, "gamma": 0.05, "shear_angle": 90},
    **{"source-x": -0.3, "source-y": -0.3, "source-r_eff": 0.2, "source-q": 0.3, "source-intensity": 300},
    **{"psf_fwhm": 0.5, "background": 500, "noise_rms": 30},
}


def test_a_survey_that_a_network_does_not_know_is_said_to_be_so(lens: Page) -> None:
    lens.select_option("#survey", "rubin")
    expect(lens.locator("#explore-conclusion")).to_contain_text("flagged out of distribution", timeout=20_000)
    lens.select_option("#survey", "hst-acs")
    words = "No network here takes images of hst-acs; each says why."
    expect(lens.locator("#explore-conclusion")).to_have_text(words, timeout=20_000)
    expect(lens.locator("#explore-bars")).to_contain_text("knows common-test-1 only, while hst-acs has signal to noise")
    expect(lens.locator("#explore-bars .fill")).to_have_count(0)
    expect(lens.locator("#sky-high")).to_contain_text("S/N")


def test_every_dial_changes_image_and_probabilities(lens: Page) -> None:
    smoothed(lens)  # so that no probability is quite 0 or 1
    for dial, value in DIALS.items():
        image, prob = pixels(lens, "sky"), lens.locator("#explore-bars .fill").first.get_attribute("style")
        shown(lens, lambda: lens.fill(f"#dial-{dial}", str(value)))  # noqa: B023
        assert pixels(lens, "sky") != image, dial
        assert lens.locator("#explore-bars .fill").first.get_attribute("style") != prob, dial
        assert float(lens.locator(f"#dial-{dial}-slider").input_value()) == pytest.approx(value)


def test_another_seed_is_other_noise_on_the_same_lens(lens: Page) -> None:
    image, residual = pixels(lens, "sky"), pixels(lens, "residual")
    shown(lens, lambda: lens.click("#roll"))
    assert pixels(lens, "sky") != image
    assert pixels(lens, "residual") == residual


@pytest.mark.parametrize(
    ("name", "words"), [("smooth", "None"), ("with subhaloes", "subhalo"), ("with a string", "string")]
)
def test_a_lens_of_each_class_can_be_drawn(lens: Page, name: str, words: str) -> None:
    shown(lens, lambda: lens.get_by_role("button", name=name, exact=True).click())
    expect(lens.locator("#mass-words")).to_contain_text(words)


def test_the_later_of_two_draws_wins(lens: Page) -> None:
    delay_first(lens, "/v1/scene")
    lens.get_by_role("button", name="with a string", exact=True).click()
    shown(lens, lambda: lens.get_by_role("button", name="smooth", exact=True).click())
    expect(lens.locator("#mass-words")).to_contain_text("None")
    lens.wait_for_timeout(1000)
    expect(lens.locator("#mass-words")).to_contain_text("None")


def smoothed(page: Page) -> None:
    if page.locator("#remove-all").is_enabled():
        shown(page, lambda: page.click("#remove-all"))


def drag(page: Page, canvas: str, start: tuple[int, int], end: tuple[int, int]) -> None:
    box = page.locator(f"#{canvas}")
    (x, y), (to_x, to_y) = start, end
    box.drag_to(box, source_position={"x": x, "y": y}, target_position={"x": to_x, "y": to_y})


def test_a_subhalo_is_placed_dragged_weighed_and_deleted(lens: Page) -> None:
    smoothed(lens)
    seen = [pixels(lens, "residual")]
    shown(lens, lambda: lens.locator("#sky").click(position={"x": 220, "y": 120}))
    seen.append(pixels(lens, "residual"))
    x = lens.get_by_label("Subhalo 1: x")
    before = float(x.input_value())
    shown(lens, lambda: drag(lens, "sky", (220, 120), (150, 100)))
    assert float(x.input_value()) < before
    seen.append(pixels(lens, "residual"))
    shown(lens, lambda: lens.locator("#mass-slider").fill("10"))
    assert float(lens.get_by_label("Subhalo 1: mass").input_value()) == 1e10
    seen.append(pixels(lens, "residual"))
    shown(lens, lambda: lens.get_by_label("Image", exact=True).press("Delete"))
    assert len(set(seen)) == 4
    assert pixels(lens, "residual") == seen[0]


def test_a_string_is_drawn_by_dragging(lens: Page) -> None:
    smoothed(lens)
    smooth = pixels(lens, "residual")
    lens.get_by_label("draws a string").check()
    shown(lens, lambda: drag(lens, "residual", (80, 90), (230, 120)))
    assert pixels(lens, "residual") != smooth
    expect(lens.locator("#mass-words")).to_contain_text("a string")
    lens.get_by_label("Half length").fill("0.4")
    shown(lens, lambda: lens.get_by_label("Half length").press("Enter"))
    shown(lens, lambda: lens.get_by_role("button", name="Remove string").click())
    assert pixels(lens, "residual") == smooth


def test_a_link_gives_the_same_pictures(lens: Page, opened: Open) -> None:
    shown(lens, lambda: lens.locator("#sky").click(position={"x": 60, "y": 60}))
    lens.get_by_label("Image", exact=True).press("Escape")
    lens.select_option("#explore-colours", "viridis")
    lens.select_option("#explore-network", "mobilenetv3-small")
    lens.click("#copy-link")
    other = opened(lens.evaluate("location.hash"))
    settled(other)
    for canvas in ("sky", "residual", "mass-map"):
        assert pixels(other, canvas) == pixels(lens, canvas)


def test_a_damaged_link_is_reported(opened: Open) -> None:
    page = opened("#explore?s=eyJzY2VuZ")
    expect(page.locator("#timing")).to_have_attribute("data-ms", re.compile(r"\d"), timeout=15_000)
    expect(page.locator("#sky")).to_have_attribute("aria-label", re.compile("Simulated image"))
    expect(page.locator("#explore-problem")).to_be_visible()
    expect(page.locator("#explore-problem")).to_contain_text("The link is damaged")


def test_a_lens_that_cannot_be_keeps_the_last_pictures_and_says_why(lens: Page) -> None:
    lens.uncheck("#show-masses")
    lens.fill("#add-mass", "1e11")
    before = pixels(lens, "residual")
    lens.route("**/v1/simulate", lambda route: route.fulfill(status=422, json={"detail": "It outweighs its halo."}))
    lens.click("#add-form button[type=submit]")
    expect(lens.locator("#explore-problem")).to_have_text(
        "It outweighs its halo. The pictures still show the lens before."
    )
    lens.get_by_label("Image", exact=True).press("Escape")  # its name is written on the pictures
    assert pixels(lens, "residual") == before


def test_changes_are_never_queued(lens: Page) -> None:
    """Fifty at once make two requests: the one under way, and the latest state."""
    sent = list[float]()

    def note(request: Any) -> None:
        if "/v1/simulate" in request.url:
            sent.append(json.loads(request.post_data)["theta_e"])

    lens.on("request", note)
    turns = """slider => { for (let i = 0; i < 50; i++) {
        slider.value = 0.8 + i / 100; slider.dispatchEvent(new Event('input')); } }"""
    shown(lens, lambda: lens.locator("#dial-theta_e-slider").evaluate(turns))
    expect(lens.locator("#timing")).to_have_attribute("data-ms", re.compile(r"\d"))
    lens.wait_for_timeout(300)
    assert sent == [0.8, 1.29]


def test_another_survey_has_another_camera(lens: Page) -> None:
    shown(lens, lambda: lens.select_option("#survey", "euclid"))
    expect(lens.locator("#sky")).to_have_attribute("aria-label", re.compile("64 by 64 pixels"))
    expect(lens.locator("#survey-words")).to_contain_text("Euclid")


def test_the_smallest_detectable_mass_is_found(lens: Page) -> None:
    lens.get_by_label("marks a place").check()
    lens.locator("#sky").click(position={"x": 230, "y": 120})
    lens.click("#search")
    expect(lens.locator("#search-progress")).to_be_visible()
    expect(lens.locator("#search-result")).to_have_text(
        re.compile("^At x .*, lensnet (detects|does not detect)"), timeout=30_000
    )
    expect(lens.locator("#search-progress")).to_be_hidden()
    assert lens.locator("#search-log li").count() >= 2


def test_a_search_can_be_cancelled(lens: Page) -> None:
    lens.route("**/v1/smallest-mass*", lambda route: None)  # never answered
    lens.click("#search")
    lens.click("#search-stop")
    expect(lens.locator("#search-result")).to_have_text("Cancelled.")
    expect(lens.locator("#search")).to_be_enabled()


# --- results ---


def test_the_scores_are_those_of_the_cards(opened: Open, service: str) -> None:
    page = opened("#results")
    networks = page.request.get(f"{service}/v1/networks").json()["networks"]
    expect(page.locator("#cards > details")).to_have_count(len(networks))
    for network in networks:
        row = page.locator("#score-rows tr", has_text=network["name"]).first
        expect(row).to_contain_text(f"{network['scores'][0]['auc']:.4f}")
    page.locator("#cards summary").first.click()
    page.get_by_text("The whole card, as JSON").first.click()
    assert json.loads(page.locator("#cards pre").first.inner_text()) == networks[0]["card"]


def test_a_network_is_measured_on_this_machine(opened: Open) -> None:
    page = opened("#results")
    page.get_by_role("button", name="Measure lensnet").click()
    expect(page.locator('#speed-rows tr[data-network="lensnet"]')).to_contain_text("a second, by 64", timeout=20_000)


def test_words_say_how_to_get_a_report(opened: Open) -> None:
    expect(opened("#results").locator("#report")).to_contain_text("sublens serve --report comparison/report.html")


def test_a_report_is_shown_in_a_frame_of_its_own(page: Page) -> None:
    def with_report(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "report": True})

    page.route("**/v1/networks", with_report)
    page.route("**/report", lambda route: route.fulfill(body="<p>A report</p>", content_type="text/html"))
    page.reload()
    page.click("#tab-results")
    expect(page.locator("iframe")).to_have_attribute("sandbox", "allow-scripts")
    expect(page.frame_locator("iframe").locator("p")).to_have_text("A report")


# --- everywhere ---


def test_all_is_done_by_keyboard_alone(page: Page, some: list[Path]) -> None:
    page.keyboard.press("Tab")
    walk(page, "#files")
    page.locator("#files").set_input_files([str(path) for path in some])  # what the system's own window does
    walk(page, f'tr[data-id="{some[2].name}"] .name')
    page.keyboard.press("Enter")
    expect(page.locator("#large-name")).to_have_text(some[2].name)
    walk(page, "#tab-predict", back=True)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-explore")).to_be_focused()
    settled(page)
    walk(page, '.draw[data-label="no"]')
    shown(page, lambda: page.keyboard.press("Enter"))
    walk(page, "#add-mass")
    shown(page, lambda: page.keyboard.press("Enter"))
    walk(page, '[aria-label="Choose subhalo 1"]', back=True)
    page.keyboard.press("Space")
    walk(page, '.stage[aria-label="Image"]', back=True)
    shown(page, lambda: page.keyboard.press("Shift+ArrowRight"))
    assert page.get_by_label("Subhalo 1: x").input_value() == "1.25"
    shown(page, lambda: page.keyboard.press("Delete"))
    expect(page.locator("#mass-words")).to_contain_text("None")


def walk(page: Page, selector: str, back: bool = False) -> None:
    """Tabs on until the focus is there."""
    for _ in range(250):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"{selector} is not reached by Tab")


def test_the_theme_is_remembered(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(background)
    page.reload()
    assert page.evaluate(background) == dark != light


def test_the_address_tells_the_view(opened: Open) -> None:
    page = opened("#results")
    expect(page.locator("#tab-results")).to_have_attribute("aria-selected", "true")
    page.click("#tab-predict")
    assert page.url.endswith("#predict")
    page.go_back()
    expect(page.locator("#view-results")).to_be_visible()


def test_the_address_of_the_first_view_before_it_was_renamed_still_opens_it(opened: Open) -> None:
    page = opened("#judge")
    expect(page.locator("#view-predict")).to_be_visible()
    expect(page.locator("#tab-predict")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_view_is_accessible_and_fits(opened: Open, some: list[Path], width: int, scheme: str) -> None:
    page = opened(width=width, scheme=scheme)
    predicted(page, some)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        if view == "explore":
            settled(page)
        found = Axe().run(page).response["violations"]
        grave = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert grave == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
