"""The page in a real browser: it renders in light and dark, sorts, shows columns, and asks for nothing from outside."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from matplotlib.image import imread

from zoo.study.summary import StudySummary

pytestmark = pytest.mark.browser

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing outside this machine is reached, not even by the browser itself
)


@pytest.fixture(scope="session")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium or chrome on this machine; on Debian: apt-get install chromium")


@pytest.fixture
def path(tmp_path: Path, page: str) -> Path:
    path = tmp_path / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def run(browser: str, path: Path, *flags: str, place: str = "") -> str:
    profile = path.parent / "profile"
    command = [browser, *_FLAGS, f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, path.as_uri() + place]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=path.parent, env=os.environ)
    assert finished.returncode == 0, finished.stderr[-2000:]
    said = [line for line in finished.stderr.splitlines() if ":CONSOLE" in line]
    assert said == [] or "outside.invalid" in path.read_text(encoding="utf-8")
    return finished.stdout


def rows_of(document: str) -> list[str]:
    """Return the variants of the first table, from the top."""
    table = document.partition("<tbody>")[2].partition("</tbody>")[0]
    return re.findall(r'<th scope="row"><span class="swatch[^"]*"></span>([^<]*)</th>', table)


def test_a_heading_sorts_the_table_and_the_console_is_silent(browser: str, path: Path, summary: StudySummary) -> None:
    assert rows_of(run(browser, path, "--dump-dom")) == [*summary.planned, "bigram model"]
    for heading, number in (("parameters", "parameters"), ("tokens/s", "tokens_per_second")):
        document = run(browser, path, "--dump-dom", place=f"#sort={quote(heading, safe='')}")
        expected = sorted(summary.variants, key=lambda variant: getattr(variant, number))
        assert rows_of(document) == [*(variant.name for variant in expected), "bigram model"]
        assert document.count('aria-sort="ascending"') >= 1


def test_a_switch_shows_all_columns(browser: str, path: Path) -> None:
    shots = []
    for state in ("", " checked"):
        page = path.read_text(encoding="utf-8").replace('id="all"', f'id="all"{state}')
        path.write_text(page, encoding="utf-8")
        run(browser, path, f"--screenshot={path.parent / 'shot.png'}", "--window-size=1200,3000")
        shots.append(imread(path.parent / "shot.png"))
    assert (shots[0] != shots[1]).any()


def test_it_renders_and_keeps_every_variant(browser: str, path: Path, summary: StudySummary) -> None:
    document = run(browser, path, "--dump-dom")
    for name in summary.planned:
        assert name in document
    assert "http:" not in document
    assert "https:" not in document
    assert document.count("<img") == 4


def requests_of_page(browser: str, path: Path) -> set[str]:
    """Return the addresses that the page itself asks for; the browser's own calls have no initiator."""
    log = path.parent / "network.json"
    run(browser, path, "--dump-dom", f"--log-net-log={log}")
    text = log.read_text(encoding="utf-8").rstrip()
    text = text if text.endswith("}") else text.rstrip(",") + "]}"  # the browser may leave without closing the list
    parameters = [event.get("params", {}) for event in json.loads(text)["events"]]
    return {each["url"] for each in parameters if "url" in each and each.get("initiator") in ("null", "file://")}


def test_it_asks_for_nothing_from_outside(browser: str, path: Path) -> None:
    outside = {url for url in requests_of_page(browser, path) if not url.startswith("data:")}
    assert outside == set()


def test_its_policy_keeps_what_got_into_it_from_asking(browser: str, path: Path) -> None:
    image = "http://outside.invalid/image.png"
    page = path.read_text(encoding="utf-8").replace("</main>", f'<img src="{image}"></main>')
    path.write_text(page, encoding="utf-8")
    assert image not in requests_of_page(browser, path)
    without, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert found == 1
    path.write_text(without, encoding="utf-8")
    assert image in requests_of_page(browser, path), "the tests would not have seen a request"


@pytest.mark.parametrize("width", [420, 1200])
def test_light_and_dark_are_drawn(browser: str, path: Path, width: int) -> None:
    brightness = []
    for scheme in (1, 0):
        shot = path.parent / f"{scheme}.png"
        run(
            browser,
            path,
            f"--screenshot={shot}",
            f"--window-size={width},1200",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        image = imread(shot)[..., :3]
        assert image.std() > 0.02
        brightness.append(image.mean())
    light, dark = brightness
    assert light > 0.8
    assert dark < 0.3
