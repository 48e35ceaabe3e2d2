"""The report of a comparison: one file that asks for nothing, shows what was measured, and opens in a browser."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mpgraph.architectures import mlp
from mpgraph.experiments import Run, contrasts, page
from mpgraph.experiments.report import alternative, report, short

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS = {"src", "href", "srcset", "action", "data", "poster", "background"}  # attributes that make a browser ask


class Reader(HTMLParser):
    """Elements, their attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def runs(seeds=2, numbers=False):
    """Two rules and the floor; the second is a word that HTML would read as an element."""
    made = []
    for name, score in (("readout_only", 0.5), ("backprop", 0.8), ("<b>&own", 0.7)):
        for seed in range(seeds):
            end = score + 0.1 * seed
            scores = {"test_accuracy": None, "test_error": 1 - end} if numbers else {"test_accuracy": end}
            tuning = {"space": "lr=0.1..1", "trials": [{}, {}], "chosen": {"lr": 1.0}, "at_edge": ["lr"]}
            made.append(
                Run(protocol=name, task="toy", network="4-3-2 tanh", seed=seed, seconds=0.5, epochs=2, batch=4,
                    curve=[0.4, 1 - end if numbers else end], steps=[5, 10], times=[0.25, 0.5], tuning=tuning,
                    cost={"flops": 1500.0, "synaptic": 768.0, "bytes": 20.0, "calls": 7, "state": 400}, **scores)
            )  # fmt: skip
    return made


def made(found, **changed):
    given = {"title": "toy & co", "command": "mpgraph compare --task 'a<b'", "settings": {"lr": 0.1}}
    given |= {"contrasts": contrasts(found, "backprop"), "networks": {("toy", "4-3-2 tanh"): mlp([4, 3, 2])}}
    return report(found, **(given | changed))


def test_nothing_is_asked_of_any_server():
    text = made(runs())
    page_ = Reader(text)
    assert not page_.open
    assert "script" not in {tag for tag, _ in page_.elements}
    for _, attributes in page_.elements:
        for name in NEEDS & attributes.keys():
            assert attributes[name].startswith("data:"), attributes
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import", page.STYLE)
    for _, attributes in page_.elements:
        if attributes.get("src", "").startswith("data:image/svg+xml;base64,"):
            svg = base64.b64decode(attributes["src"].partition(",")[2]).decode()
            assert not re.search(r'href="(?!#)', svg)  # only to parts of itself


def test_every_picture_has_a_text_and_the_page_fits_a_phone():
    elements = Reader(made(runs())).elements
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == 4  # three panels and the network
    assert all(len(picture["alt"]) > 20 for picture in pictures)
    assert "h1 of 3" in pictures[-1]["alt"]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements
    assert "overflow-x: auto" in page.STYLE
    assert next(attributes for tag, attributes in elements if tag == "html") == {"lang": "en"}


def test_the_table_holds_the_numbers():
    rows = {row[0]: row for row in Reader(made(runs())).rows[::-1] if row}
    # Seeds score 0.8 and 0.9: a mean of 85 and a sample deviation of 10 / root two; the floor has 50 and 60.
    assert rows["backprop"][1:5] == ["85.00 ± 7.07", "+30.00", "0.50", "50.00"]
    assert rows["backprop"][5:10] == ["1.5k", "768", "20", "7", "400"]
    assert "<b>&own" in rows
    assert rows["setting: lr"][1] == "0.1"
    alone = {row[0]: row for row in Reader(made(runs(seeds=1))).rows[::-1] if row}
    assert alone["backprop"][1] == "80.00"
    numbers = {row[0]: row for row in Reader(made(runs(numbers=True))).rows[::-1] if row}
    assert numbers["backprop"][1:3] == ["0.1500 ± 0.0707", "+0.3000"]


def test_command_and_band_are_said_and_escaped():
    text = made(runs())
    assert "mpgraph compare --task &#x27;a&lt;b&#x27;" in text
    assert "<b>&own" not in text
    assert "from the worst to the best seed" in text
    assert "no spread" in made(runs(seeds=1))


def test_words_for_pictures_hold_their_numbers():
    assert alternative("steps", runs()) == (
        "Lines: test accuracy against steps. readout only ends at 55.0 %, backprop ends at 85.0 %, "
        "<b>&own ends at 75.0 %."
    )
    assert "backprop +30.0, <b>&own +20.0" in alternative("above", runs())
    assert [short(n) for n in (7, 1500.0, 2.5e6, 3e12)] == ["7", "1.5k", "2.5M", "3T"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_opens_it_without_a_complaint(tmp_path):
    good = made(runs())
    bad = good.replace("</body>", '<img alt="" src="http://127.0.0.1:9/none.png"></body>')  # the policy forbids it
    for name, text in (("good", good), ("bad", bad)):
        path = tmp_path / f"{name}.html"
        path.write_text(text, "utf-8")
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={tmp_path / name}", "--enable-logging=stderr", "--v=0",
            "--window-size=390,900", f"--screenshot={tmp_path / f'{name}.png'}", path.as_uri(),
        ]  # fmt: skip
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("the browser does not come to an end here")
        if not (tmp_path / f"{name}.png").is_file():
            pytest.skip(f"the browser does not run here: {result.stderr[-300:]}")
        complaints = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        assert bool(complaints) == (name == "bad"), complaints
