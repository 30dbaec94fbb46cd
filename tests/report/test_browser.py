"""The page in a true browser: what it renders, in light and dark, and on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.report import render_page
from tests.report.helpers import open_document, private_document
from tests.report.test_page import figures

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found (Debian: apt-get install chromium)"),
]
DARK = "--blink-settings=preferredColorScheme=0"
# What a browser in a container says of itself, whatever it shows.
OF_THE_PAGE = ("CONSOLE", "Uncaught", "ERR_", "Refused to")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    document = private_document(baseline=open_document())
    path.write_text(render_page(document, figures(document)), encoding="utf-8")
    return path


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            "--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'profile'}", *arguments, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip


def test_it_renders_without_a_complaint_and_every_figure_is_there(page: Path) -> None:
    done = browse(page, "--dump-dom")
    assert not [line for line in done.stderr.splitlines() if any(word in line for word in OF_THE_PAGE)]
    assert done.stdout.count("<svg") == done.stdout.count("</svg>") == 4
    assert done.stdout.count("<h1>") == 1
    assert "What was released beside the model" in done.stdout


def picture(page: Path, *arguments: str) -> np.ndarray:
    image = pytest.importorskip("matplotlib.image")
    target = page.parent / "page.png"
    browse(page, f"--screenshot={target}", "--window-size=900,3000", *arguments)
    return np.asarray(image.imread(target))[..., :3].mean(-1)


def test_dark_is_dark_and_light_is_light_and_both_can_be_read(page: Path) -> None:
    light, dark = picture(page), picture(page, DARK)
    assert np.median(light) > 0.9
    assert np.median(dark) < 0.2
    # Letters and axes take the page's colour: both have thousands of points at the far end from their paper.
    assert (light < 0.3).sum() > 5000
    assert (dark > 0.7).sum() > 5000


def test_it_prints(page: Path) -> None:
    target = page.parent / "page.pdf"
    browse(page, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") <= 7
