"""The report as a browser shows it: Debian's Chromium, without a screen, opens it from disk."""

from __future__ import annotations

import base64
import json
import shutil

import numpy as np
import pytest
from pages import HOSTILE_LABELS, colour_of, hostile_result, hostile_store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="NO BROWSER, THE REPORT IS NOT OPENED: install Debian's chromium and chromium-driver, see CONTRIBUTING.md",
)

# Without these it would look for its maker's servers at every start.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory, build_store, make_spec, make_table):
    """A report full of hostile names, with activation maps."""
    folder = tmp_path_factory.mktemp("hostile")
    store = hostile_store(folder, build_store, make_spec, make_table)
    path = folder / "report <b>&.html"
    # A stripe of evidence, the same for all.
    options = {"explain": lambda _, paths, __: [np.eye(7)[3:4] for _ in paths], "method": "pca"}
    hostile_result(store).report(path, title="</title><script>window.hacked = 1</script>", **options)
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page freshly opened, on a wide and light screen."""
    look(chromium)
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(page)
    return chromium


def look(driver, width=1280, height=900, scheme="light"):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(driver, selector):
    from selenium.webdriver.common.by import By

    return driver.find_element(By.CSS_SELECTOR, selector)


def press(driver, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def requests(driver):
    """What the page asked for: address, and why that was refused, or None."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    failed = [e["params"] for e in events if e["method"] == "Network.loadingFailed"]
    reasons = {failure["requestId"]: failure.get("blockedReason", "failed") for failure in failed}
    return [(request["request"]["url"], reasons.get(request["requestId"])) for request in asked]


def count_shown(driver, selector):
    """How many elements are displayed."""
    shown = "filter((part) => getComputedStyle(part).display !== 'none')"
    return driver.execute_script(f"return [...document.querySelectorAll(arguments[0])].{shown}.length", selector)


def hide_all_points_but(driver, number):
    driver.execute_script(
        "document.querySelectorAll('.map circle').forEach((c, i) => c.classList.toggle('off', i !== arguments[0]))",
        number,
    )


def test_page_has_no_errors_and_asks_for_nothing(browser, page):
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert [url for url, _ in asked if not url.startswith("data:")] == [page]
    assert {refused for _, refused in asked} == {None}
    assert len(asked) > 20


def test_all_images_decode(browser):
    decode = """
        const done = arguments[0];
        Promise.all([...document.images].map((image) => image.decode().then(() => image.naturalWidth)))
            .then(done, (error) => done(String(error)));
    """
    widths = browser.execute_async_script(decode)
    assert len(widths) > 20
    assert min(widths) > 0


def test_hostile_names_are_shown_and_run_nothing(browser):
    from selenium.webdriver import ActionChains

    for chip in browser.execute_script("return [...document.querySelectorAll('#map .chip')]"):
        ActionChains(browser).move_to_element(chip).perform()
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert browser.execute_script("return document.scripts.length") == 2
    shown = browser.execute_script("return [...document.querySelectorAll('bdi')].map((part) => part.textContent)")
    assert set(HOSTILE_LABELS) <= set(shown)
    assert browser.title == "</title><script>window.hacked = 1</script>"


def test_script_that_slips_in_is_not_run(browser):
    browser.execute_script("""
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 1'><img src='https://example.org/a.png'>");
    """)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert sum("Content Security Policy" in message for message in refused) >= 3
    assert [refused for url, refused in requests(browser) if "example.org" in url] == ["csp"]


def shown_on_the_map(driver):
    """Name of the image that is shown, and the colour of its thumbnail."""
    return driver.execute_script("""
        const tip = document.querySelector(".tip");
        if (tip.hidden) return null;
        const canvas = tip.querySelector("canvas");
        const colour = canvas.hidden ? null : [...canvas.getContext("2d").getImageData(60, 60, 1, 1).data].slice(0, 3);
        return [tip.querySelector(".quiet").textContent, colour];
    """)


@pytest.mark.parametrize("number", [2, 17, 40, 59])
def test_pointing_at_the_map_shows_the_image(browser, number):
    from selenium.webdriver import ActionChains

    # Others may lie nearer to the pointer on a map of many: this one is alone.
    hide_all_points_but(browser, number)
    circle = browser.execute_script("return document.querySelectorAll('.map circle')[arguments[0]]", number)
    ActionChains(browser).move_to_element(circle).perform()
    name, colour = shown_on_the_map(browser)
    assert name.endswith(f" {number}")
    np.testing.assert_allclose(colour, colour_of(name), atol=12)
    ActionChains(browser).move_to_element(find(browser, "#provenance h2")).perform()
    assert shown_on_the_map(browser) is None


def test_arrow_keys_walk_over_the_map(browser):
    from selenium.webdriver import Keys

    browser.execute_script("document.querySelector('.map').focus()")
    assert shown_on_the_map(browser) is None
    seen, across = [], []
    for _ in range(4):
        press(browser, Keys.ARROW_RIGHT)
        seen.append(shown_on_the_map(browser)[0])
        across.append(float(find(browser, ".map .current").get_attribute("cx")))
    assert len(set(seen)) == 4
    assert across == sorted(across)
    press(browser, Keys.ESCAPE)
    assert shown_on_the_map(browser) is None


def test_image_without_a_picture_is_named(browser):
    from selenium.webdriver import Keys

    hide_all_points_but(browser, 0)
    browser.execute_script("document.querySelector('.map').focus()")
    press(browser, Keys.ARROW_LEFT)
    name, colour = shown_on_the_map(browser)
    assert name.endswith(" 0")
    assert colour is None


def test_tab_reaches_every_control_and_keys_work_it(browser):
    from selenium.webdriver import Keys

    reached = []
    for _ in range(120):
        press(browser, Keys.TAB)
        reached.append(
            browser.execute_script(
                "const e = document.activeElement; return e.id || e.className.split(' ')[0] || e.tagName"
            )
        )
    assert {"skip", "theme", "chip", "map", "only-misses", "show-maps", "SUMMARY", "scroll"} <= set(reached)
    browser.execute_script("document.querySelector('#map .chip').focus()")
    press(browser, Keys.SPACE)
    assert count_shown(browser, ".map [data-k='0']") == 0
    assert find(browser, "#map .chip").get_attribute("aria-pressed") == "false"
    press(browser, Keys.SPACE)
    assert count_shown(browser, ".map [data-k='0']") > 10


def test_class_comes_forward_when_its_name_is_pointed_at(browser):
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(find(browser, "#curves .chip[data-k='1']")).perform()
    opacity = "return [...document.querySelectorAll('#curves .curve')].map((line) => +getComputedStyle(line).opacity)"
    first, second, *_ = browser.execute_script(opacity)
    assert first < 0.5 < second
    band = browser.execute_script("return +getComputedStyle(document.querySelector('#curves .band.k1')).opacity")
    assert band > 0


def test_only_errors_and_without_activation_maps(browser):
    assert count_shown(browser, ".point:not(.miss)") > 0
    assert count_shown(browser, ".overlay") > 0
    find(browser, ".only-misses").click()
    find(browser, ".show-maps").click()
    assert count_shown(browser, ".point:not(.miss)") == 0
    assert count_shown(browser, ".point.miss") > 0
    assert count_shown(browser, ".overlay") == 0


CONTRAST = """
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
        }
        const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const own = (part) => getComputedStyle(part).backgroundColor;
    const behind = (part) => (part ? [...behind(part.parentElement), own(part)] : ["white"]);
    const written = (part) => [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const parts = [...document.querySelectorAll("body *")].filter((part) => written(part) && part.checkVisibility());
    return parts.filter((part) => !part.closest("svg, script, style, .skip")).map((part) => {
        const [a, b] = [behind(part), [...behind(part), getComputedStyle(part).color]].map(luminance);
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), part.outerHTML.slice(0, 90)];
    });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, scheme):
    """By 4.5 to 1 at least, as the Web Content Accessibility Guidelines 2.2 ask for, criterion 1.4.3."""
    look(browser, scheme=scheme)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 200
    assert [part for part in found if part[0] < 4.5] == []


def brightness(driver, what="backgroundColor"):
    colour = driver.execute_script("return getComputedStyle(document.body)[arguments[0]]", what)
    return np.mean([int(part) for part in colour.strip("rgb()").split(",")])


@pytest.mark.parametrize(("scheme", "expected"), [("light", "light"), ("dark", "dark")])
def test_page_follows_the_scheme_and_the_button(browser, scheme, expected):
    look(browser, scheme=scheme)
    assert ("light" if brightness(browser) > 128 else "dark") == expected
    find(browser, "#theme").click()
    assert ("light" if brightness(browser) > 128 else "dark") != expected
    find(browser, "#theme").click()
    assert ("light" if brightness(browser) > 128 else "dark") == expected


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_page_is_no_wider_than_the_screen(browser, width):
    look(browser, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_print_is_light_and_holds_every_section(browser):
    look(browser, scheme="dark")
    printed = base64.b64decode(browser.print_page())
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 2
    assert browser.execute_script("return [...document.querySelectorAll('details')].every((part) => part.open)")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert brightness(browser) == 255
    assert brightness(browser, "color") < 64
    assert not find(browser, "nav").is_displayed()
    assert find(browser, "#provenance").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
