"""The report of a comparison as a browser shows it: nothing fetched, nothing complained of, names always in sight."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from support.run_folders import make_run
from support.waiting import PATIENCE_SECONDS

from gantrain.comparison.comparison import compare
from gantrain.comparison.plots import encode_plots
from gantrain.comparison.report import render_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--remote-debugging-pipe"),
)
PHONE, LAPTOP = 390, 1280  # CSS pixels

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"none of {', '.join(BROWSERS)} is installed to open the page in")


class Browser:
    """A page in a browser of its own, by the DevTools protocol: JSON that ends in a zero byte, on pipes 3 and 4."""

    def __init__(self, profile: Path) -> None:
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 1>&2', "sh", str(FOUND), *FLAGS, f"--user-data-dir={profile}"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes)
        self.killer = Timer(PATIENCE_SECONDS, self.process.kill)
        self.killer.start()
        self.unread, self.sent, self.session = b"", 0, {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method; events that come before it are kept."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.message()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        """What the browser says next."""
        while b"\0" not in self.unread:
            more = self.process.stdout.read1()
            assert more, "the browser ended, or was killed as it hung"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = LAPTOP, theme: str = "light") -> None:
        """Show a page from disk, and wait until all of it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(self.message())

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """What the events of these kinds said, since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def evaluated(self, script: str) -> Any:
        """The value of a script in the page, which its own content security policy does not hold back."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def fetched(self) -> list[str]:
        """The addresses that the page asked for beyond itself."""
        asked = [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]
        return [address for address in asked[1:] if not address.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the console."""
        return self.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")

    def too_wide(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.evaluated("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def close(self) -> None:
        """End the browser."""
        self.session = {}
        self.call("Browser.close")
        self.process.communicate(timeout=PATIENCE_SECONDS)
        self.killer.cancel()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything: long names, wide tables, a failure, curves, points, classes."""
    root = tmp_path_factory.mktemp("runs")
    quality = (f"quality/{name}" for name in ("fid_classifier", "kid_classifier", "kid_classifier_error", "precision"))
    metrics = (*quality, "diversity/recall", "diversity/class_tv")
    for number, name in enumerate(("kl", "softened_reverse_kl", "dual_alpha_0.123456789")):
        for seed in range(2):
            values = dict.fromkeys(metrics, 0.123 + number + seed)
            settings = {
                "gen_div": {"name": name},
                "disc_div": {"name": f"d{number}"},
                "optimizer": {"lr": number + 0.1},
            }
            told = {"metrics": values, "reference": values}
            make_run(root / f"{name}{seed}", settings | {"seed": seed}, evaluation=told)
    reason = f"loss/generator is not finite\nlook at {'a/very/long/path/' * 9}"
    make_run(root / "failed", {"gen_div": {"name": "x" * 70}}, status="failed", reason=reason)
    found = compare([root])
    page = root / "report.html"
    page.write_text(render_page(found, encode_plots(found)))
    return page


def test_the_report_fetches_nothing_and_has_no_errors(report: Path, browser: Browser) -> None:
    browser.open(report)
    assert browser.evaluated("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.evaluated("document.images.length") > 5
    assert browser.fetched() == []
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_the_report_is_as_wide_as_the_window(report: Path, browser: Browser, width: int) -> None:
    browser.open(report, width)
    assert browser.too_wide() == 0


# Every table scrolled to its right end; of every row whether its first cell is where one can read it.
NAMES = """
(() => [...document.querySelectorAll(".wide")].map(box => {
  box.scrollLeft = 1e6;
  return {scrolled: box.scrollLeft, rows: [...box.querySelectorAll("tr")].map(row => {
    row.scrollIntoView({block: "center"});
    const cell = row.firstElementChild, at = cell.getBoundingClientRect(), frame = box.getBoundingClientRect();
    const top = document.elementFromPoint(at.left + at.width / 2, at.top + at.height / 2);
    return {
      inside: at.left >= frame.left - 1 && at.right < frame.right, share: at.width / frame.width,
      onTop: cell.contains(top), whole: cell.scrollWidth <= cell.clientWidth,
      ground: getComputedStyle(cell).backgroundColor, page: getComputedStyle(document.body).backgroundColor};
  })};
}))()
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_names_stay_in_sight_where_a_table_scrolls(report: Path, browser: Browser, theme: str) -> None:
    browser.open(report, PHONE, theme)
    tables = browser.evaluated(NAMES)
    assert sum(table["scrolled"] > 100 for table in tables) >= 3, "tables that are wider than a phone"
    for row in (row for table in tables for row in table["rows"]):
        assert (row["inside"], row["onTop"], row["whole"]) == (True, True, True)
        assert row["share"] < 0.5, "numbers have more room than the name"
        assert row["ground"] == row["page"], "nothing shows through"


def test_what_a_page_must_not_do_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<img src="http://127.0.0.1:9/spy"><script>console.error("oh")</script><p style="width: 2000px">wide'
    )
    browser.open(bad)
    assert browser.fetched() == ["http://127.0.0.1:9/spy"]
    assert {"error", "network"} <= {event.get("type") or event["entry"]["source"] for event in browser.complaints()}
    assert browser.too_wide() > 700
