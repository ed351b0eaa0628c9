"""The page: small, self-contained, and used in a real browser where there is one."""

import functools
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.serving.page import FOLDER, files
from mlx_imagegen.serving.safety import Access

from .conftest import LiveServer, in_base64, opened, png

SIZE_LIMIT = 200_000
TOKEN = "correct horse battery"
PROMPT = "a hen"


def test_the_page_is_small_and_asks_nobody_else() -> None:
    assert sum(len(content) for content, _, _ in files().values()) < SIZE_LIMIT
    for name, (content, _, _) in files().items():
        text = content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not (urls := re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)), (name, urls)
        for path in re.findall(r"""(?:src|href|from|import)[=\s(]+["']([^"'#]+)["']""", text):
            assert path.startswith(("/page/", "./")) and path.rpartition("/")[2] in files(), (name, path)


class Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.labelled: set[str] = set()
        self.controls: dict[str, dict[str, str | None]] = {}
        self.feed((FOLDER / "index.html").read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "label" and found.get("for"):
            self.labelled.add(found["for"] or "")
        if tag in ("input", "select", "textarea") and found.get("id"):
            self.controls[found["id"] or ""] = found


def test_every_control_has_a_label() -> None:
    form = Form()
    shown = {name for name, found in form.controls.items() if "hidden" not in found and found.get("type") != "checkbox"}
    assert shown <= form.labelled, shown - form.labelled


def test_files_are_cached_by_their_content(live: LiveServer) -> None:
    with live.request("GET", "/page/app.js") as first:
        assert first.headers["content-type"] == "text/javascript; charset=utf-8" and first.read()
    with live.request("GET", "/page/app.js", headers={"If-None-Match": first.headers["etag"]}) as again:
        assert again.status == 304 and not again.read()


# In Chromium.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


class Browser:
    def __init__(self, driver: Any):
        self.driver = driver

    def __getitem__(self, id: str) -> Any:
        return self.driver.find_element("id", id)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        ends_at = time.monotonic() + 15
        while not (found := ready()):
            assert time.monotonic() < ends_at, f"{what}; the page says: {self.all('body')[0].text}"
            time.sleep(0.02)
        return found

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.until(lambda: self.all("#model option"), "the models are not listed")

    def put(self, id: str, value: object) -> None:
        self.driver.execute_script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "for (const name of ['input', 'change']) e.dispatchEvent(new Event(name, {bubbles: true}))",
            id,
            str(value),
        )

    def small(self, steps: int) -> None:
        self.put("aspect", "size")
        for id, value in (("width", 48), ("height", 32), ("steps", steps)):
            self.put(id, value)

    def complaints(self) -> list[str]:
        """What the browser's console holds against the page, the server's refusals aside."""
        rows = self.driver.get_log("browser")
        return [row["message"] for row in rows if row["level"] == "SEVERE" and "status of 40" not in row["message"]]

    def addresses(self) -> set[str]:
        """The hosts that were asked for anything."""
        messages = [json.loads(row["message"])["message"] for row in self.driver.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2] for url in urls if url.startswith("http")}


DROP = """
const bytes = Uint8Array.from(atob(arguments[0].split(",")[1]), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
"""


def test_a_session_in_chromium(live: LiveServer, browser: Browser) -> None:
    """Type, draw, watch, cancel, vary, edit with a painted mask, and find the history again after a reload."""
    browser.open(live.url)
    draw_and_look(browser)
    watch_and_cancel(browser, live)
    edit_with_a_mask(browser)
    load_again(browser, live)
    assert browser.complaints() == [] and browser.addresses() == {f"127.0.0.1:{live.port}"}
    browser.driver.set_window_size(400, 900)
    assert browser.driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def draw_and_look(browser: Browser) -> None:
    from selenium.webdriver import Keys

    browser.small(steps=4)
    browser["prompt"].send_keys(PROMPT + Keys.CONTROL + Keys.ENTER)
    browser.until(lambda: len(browser.all("#thumbs li")) == 1, "no picture came")
    browser.until(lambda: PROMPT in browser["caption"].text, "it is not shown")
    assert "48×32" in browser["caption"].text
    browser.all("#record summary")[0].click()
    assert browser["text"].text.startswith(f"mlx-imagegen generate '{PROMPT}' --seed")
    browser["tab-command"].send_keys(Keys.ARROW_RIGHT)
    assert "from mlx_imagegen import generate" in browser["text"].text
    browser["again"].click()
    browser.until(lambda: len(browser.all("#thumbs li")) == 2, "no second picture came")
    browser.until(browser["vary"].is_displayed, "it is not shown")
    browser["vary"].click()
    browser.until(lambda: len(browser.all("#thumbs li")) == 3, "no variation came")
    assert browser.all("#picture-list li"), "what it started from is shown"
    browser.all("#picture-list .remove")[0].click()


def watch_and_cancel(browser: Browser, live: LiveServer) -> None:
    from selenium.webdriver import Keys

    browser.small(steps=200)
    browser.until(browser["generate"].is_enabled, "it is still busy")
    browser["generate"].click()
    browser.until(lambda: "of 200" in browser["status"].text, "no progress is shown")
    assert browser["bar"].get_attribute("aria-valuenow") and not browser["result"].is_displayed()
    browser.until(lambda: "data:image/jpeg" in browser["picture"].get_attribute("src"), "no preview is shown")
    browser["prompt"].send_keys(Keys.ESCAPE)
    browser.until(lambda: browser["status"].text == "Cancelled.", "it was not cancelled")
    assert live.service.store.all()[0].state == "cancelled"


def edit_with_a_mask(browser: Browser) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.small(steps=4)
    browser["use"].click()
    browser.until(lambda: browser.all("#paint"), "the picture was not added")
    browser.all("#picture-list .remove")[0].click()
    browser.driver.execute_script(DROP, f"data:image/png;base64,{in_base64(png())}")
    browser.until(lambda: browser.all("#paint"), "the dropped picture was not added")[0].click()
    canvas = browser.until(lambda: browser["mask"].is_displayed() and browser["mask"], "the mask cannot be painted")
    ActionChains(browser.driver).move_to_element(canvas).click_and_hold().move_by_offset(60, 20).release().perform()
    canvas.send_keys(Keys.ARROW_LEFT + Keys.SPACE)
    browser["mask-done"].click()
    (shown,) = browser.until(lambda: browser.all("#picture-list img + img"), "the mask is not shown")
    levels = opened(shown.get_attribute("src").partition(",")[2]).convert("L").getextrema()
    assert levels == (0, 255), "black where nothing was painted, white where it was"
    browser["generate"].click()
    browser.until(lambda: len(browser.all("#thumbs li")) == 4, "no edited picture came")


def load_again(browser: Browser, live: LiveServer) -> None:
    from selenium.webdriver import Keys

    count = len(browser.all("#thumbs li"))
    browser.open(live.url)
    browser.until(lambda: len(browser.all("#thumbs li")) == count, "the history is gone")
    assert browser["prompt"].get_attribute("value") == PROMPT and browser["picture"].is_displayed()
    browser.all("#thumbs li")[0].send_keys(Keys.ARROW_RIGHT)
    assert browser.all("#thumbs li")[1].get_attribute("aria-selected") == "true"


def test_the_token_opens_the_page(start: Callable[..., LiveServer], browser: Browser) -> None:
    guarded = start(Access.of(TOKEN))
    try:
        browser.driver.get(guarded.url)
        browser.until(browser["token-dialog"].is_displayed, "no token is asked for")
        browser["token"].send_keys(TOKEN + "\n")
        browser.until(lambda: browser.all("#model option"), "the token does not open it")
        browser.driver.delete_all_cookies()
        browser.open(f"{guarded.url}/#token={TOKEN}")
        assert "token" not in browser.driver.current_url and not browser["token-dialog"].is_displayed()
    finally:
        guarded.close()


HOSTILE = """<script>
  const target = "TARGET";
  const body = JSON.stringify({ prompt: "hostile", width: 48, height: 32 });
  const post = (mode, type) =>
    fetch(`${target}/jobs`, { method: "POST", mode, headers: { "Content-Type": type }, body }).then((r) => r.text());
  const embedded = new Promise((done, failed) => {
    const image = new Image();
    Object.assign(image, { onload: () => done("a picture"), onerror: failed, src: `${target}/page/icon.svg` });
  });
  const tries = [
    post("cors", "text/plain"), post("no-cors", "text/plain"), post("cors", "application/json"), embedded,
    fetch(`${target}/models`).then((r) => r.text()), fetch(`${target}/jobs`).then((r) => r.text()),
  ];
  Promise.allSettled(tries).then((all) => {
    document.title = all.map((each) => (each.value ? `GOT ${each.value}` : "nothing")).join();
  });
</script>
<form method="post" action="TARGET/jobs" enctype="text/plain" id="form"><input name='{"prompt": "' value='"}'></form>
<iframe src="TARGET" id="frame"></iframe>"""


def test_a_hostile_page_gets_nothing(live: LiveServer, browser: Browser, tmp_path: Path) -> None:
    """A page of another origin that posts, reads, embeds and frames."""
    (tmp_path / "index.html").write_text(HOSTILE.replace("TARGET", live.url))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    hostile = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=hostile.serve_forever, daemon=True).start()
    before = len(live.service.store.all())
    try:
        browser.driver.get(f"http://localhost:{hostile.server_port}/index.html")
        browser.until(lambda: "nothing" in browser.driver.title, "the page did not try")
        assert set(browser.driver.title.split(",")) == {"nothing"}
        browser.driver.switch_to.frame("frame")
        assert "Prompt" not in browser.driver.page_source
        browser.driver.switch_to.default_content()
        browser.driver.execute_script("document.getElementById('form').submit()")
        browser.until(lambda: "another site" in browser.driver.page_source, "the form was not refused")
    finally:
        hostile.shutdown()
    assert len(live.service.store.all()) == before
