"""The page in a real browser: it renders, the console stays empty, no request leaves, and the viewer works."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.records.paths import Paths
from pipeline.reporting import normaliser_page
from pipeline.reporting.page import build_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Moves the two pipes to where the browser looks for them, then becomes the browser."""
SECONDS = 60


class Browser:
    """Chromium's DevTools protocol through a pair of pipes: JSON messages that end in a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self.write_end = os.pipe()
        self.read_end, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out), program, *FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.sent, self.session, self.received = 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command, keep the events that come meanwhile, return its result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.read_end], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {SECONDS} s"
            chunk = os.read(self.read_end, 1 << 16)
            assert chunk, "the browser ended"
            self.received += chunk
        message, self.received = self.received.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, url: str) -> None:
        """Load a page and wait until it has."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not self.named("Page.loadEventFired"):
            self.events.append(self._next())

    def named(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of one name since the page was opened."""
        return [event["params"] for event in self.events if event["method"] == method]

    def evaluate(self, expression: str) -> Any:
        """Run JavaScript in the page, through the inspector, which no policy of the page binds."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0)

    def complaints(self) -> list[Any]:
        """Everything on the console, and every error that was thrown."""
        thrown = [event["exceptionDetails"] for event in self.named("Runtime.exceptionThrown")]
        return self.named("Log.entryAdded") + self.named("Runtime.consoleAPICalled") + thrown

    def requests(self) -> list[str]:
        """Every address that was asked for, but those that the page holds itself."""
        addresses = [event["request"]["url"] for event in self.named("Network.requestWillBeSent")]
        return [address for address in addresses if not address.startswith("data:")]

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(SECONDS)
        os.close(self.write_end)
        os.close(self.read_end)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def report(tmp_path: Path, finished_run: tuple[Paths, Config]) -> str:
    file = tmp_path / "report.html"
    file.write_text(build_page(*finished_run), encoding="utf-8")
    return file.as_uri()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "dark")])
def test_renders_and_asks_nothing_of_the_network(browser: Browser, report: str, width: int, scheme: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(report)
    assert browser.requests() == [report]
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (
        "the page is wider than the screen"
    )
    assert browser.evaluate("document.querySelectorAll('.chart text').length") > 20
    lightness = browser.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (lightness > 128) == (scheme == "light")
    drawn = "getComputedStyle(document.querySelector('.missed use.line')).stroke"
    assert browser.evaluate(drawn) == "rgb(255, 214, 10)"
    assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.slow
def test_viewer_by_keyboard(browser: Browser, report: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(report)
    browser.evaluate("document.querySelectorAll('.open')[1].click()")
    place, box = (
        "document.getElementById('viewer-rank').textContent",
        "document.querySelector('#stage svg').getAttribute('viewBox')",
    )
    whole = browser.evaluate(box)
    assert browser.evaluate(place) == "worst · 2 of 12"
    for key, shown in (("ArrowRight", 3), ("ArrowLeft", 2), ("ArrowLeft", 1), ("ArrowLeft", 12), ("ArrowRight", 1)):
        browser.press(key)
        assert browser.evaluate(place).endswith(f" {shown} of 12")
    browser.press("+")
    closer = [float(number) for number in browser.evaluate(box).split()]
    assert closer[2] == pytest.approx(float(whole.split()[2]) / 1.5, abs=0.02)
    browser.press("ArrowRight", shift=True)
    assert float(browser.evaluate(box).split()[0]) > closer[0]
    browser.press("0")
    assert browser.evaluate(box) == whole
    for key, layer in (("t", "truth"), ("p", "prediction"), ("e", "errors"), ("i", "image")):
        visible = f"getComputedStyle(document.querySelector('#stage .layer.{layer}')).display !== 'none'"
        pressed = f"document.querySelector('.side [data-layer={layer}]').getAttribute('aria-pressed')"
        assert browser.evaluate(visible) is True
        browser.press(key)
        assert (browser.evaluate(visible), browser.evaluate(pressed)) == (False, "false")
        browser.press(key)
        assert (browser.evaluate(visible), browser.evaluate(pressed)) == (True, "true")
    browser.evaluate(
        """new Promise((resolve) => {
          document.getElementById("viewer").addEventListener("close", () => setTimeout(resolve));
          document.getElementById("viewer-close").click();
        })"""
    )
    assert browser.evaluate("document.activeElement === document.querySelectorAll('.open')[0]")
    assert browser.complaints() == []


@pytest.mark.slow
def test_a_heading_sorts_the_scores(browser: Browser, report: str) -> None:
    browser.open(report)
    cells = "[...document.querySelectorAll('#scores tbody tr')].map((row) => parseFloat(row.cells[3].textContent))"
    browser.evaluate("document.querySelector('#scores th:nth-child(4) button').click()")
    rising = browser.evaluate(cells)
    assert rising == sorted(rising) and len(rising) == 12
    browser.evaluate("document.querySelector('#scores th:nth-child(4) button').click()")
    assert browser.evaluate(cells) == rising[::-1] != rising


@pytest.mark.slow
def test_the_policy_stops_whatever_would_be_added(browser: Browser, report: str) -> None:
    browser.open(report)
    blocked = browser.evaluate(
        """new Promise((resolve) => {
          const seen = [];
          document.addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 4) resolve(seen.sort());
          });
          const add = (tag, properties) => document.body.append(Object.assign(document.createElement(tag), properties));
          add("img", { src: "https://example.org/a.png" });
          add("script", { textContent: "document.title = 'taken over'" });
          add("style", { textContent: "body { display: none }" });
          fetch("https://example.org/").catch(() => {});
        })"""
    )
    assert blocked == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert browser.evaluate("document.title") == "disks: segmentation report"
    # The protocol announces the image before the policy stops it.
    failed = browser.named("Network.loadingFailed")
    assert [event["blockedReason"] for event in failed] == ["csp"] * (len(browser.requests()) - 1)


@pytest.fixture
def judged(tmp_path: Path, write_judged: Any) -> str:
    paths, config = write_judged(tmp_path)
    file = tmp_path / "report.html"
    file.write_text(normaliser_page.build_page(paths, config), encoding="utf-8")
    return file.as_uri()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_methods_side_by_side_render(browser: Browser, judged: str, width: int, scheme: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(judged)
    assert browser.requests() == [judged]
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    if width > 500:
        # Pixel for pixel: no picture is larger or smaller on the screen than it is.
        exact = "[...document.querySelectorAll('.tile img')].every((image) => image.clientWidth === image.naturalWidth)"
        assert browser.evaluate(exact)
    browser.evaluate("document.querySelector('#layers [data-layer=difference]').click()")
    assert browser.evaluate("getComputedStyle(document.querySelector('.tile .difference')).display") == "none"


@pytest.mark.slow
def test_methods_take_turns_in_one_place(browser: Browser, judged: str) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(judged)
    browser.evaluate("document.querySelectorAll('.comparison')[1].querySelectorAll('.open')[1].click()")
    title, shown = "document.getElementById('viewer-title').textContent", "document.querySelector('#stage img').src"
    rank = "document.getElementById('viewer-rank').textContent"
    assert browser.evaluate(title).endswith(" · Reinhard") and browser.evaluate(rank) == "worst · 2 of 12"
    seen = browser.evaluate(shown)
    turns = [("ArrowRight", name) for name in ("other/run", "own/run", "target", "input")]
    for key, name in (*turns, ("ArrowLeft", "target"), ("2", "Reinhard")):
        browser.press(key)
        assert browser.evaluate(title).endswith(f" · {name}")
    assert browser.evaluate(shown) == seen
    browser.press("d")
    difference = "document.querySelectorAll('.comparison')[1].querySelectorAll('.difference')[1].src"
    assert browser.evaluate(shown) == browser.evaluate(difference) != seen
    assert browser.evaluate("document.getElementById('as-difference').getAttribute('aria-pressed')") == "true"
    browser.press("ArrowDown")
    assert browser.evaluate(rank) == "worst · 3 of 12" and browser.evaluate(title).endswith(" · Reinhard")
    # A whole number of screen pixels for each of the image's.
    assert browser.evaluate("document.querySelector('#stage img').width % 48") == 0
    assert browser.complaints() == []
