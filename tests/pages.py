"""The lab's pages, as a reader and as a browser have them."""

import html
import json
import re
import shutil
import subprocess

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

HOSTILE = (
    "</script><script>console.error(1)</script>",
    "<img src=x onerror=console.error(2)>",
    "a & b <b>c</b> <!--<script>",
)


def without_plotly(path):
    """A page's text without plotly's own code."""
    text = path.read_text("utf-8")
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def words_of(page):
    """What a reader sees, in one line."""
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def charts_of(page):
    """The charts' figures by name, checked by plotly itself."""
    specs = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])

    def coloured(value):
        if isinstance(value, dict):
            return "#123456" if list(value) == ["css"] else {key: coloured(item) for key, item in value.items()}
        return [coloured(item) for item in value] if isinstance(value, list) else value

    specs = coloured(specs)
    figures = {chart["name"]: go.Figure(chart["figure"]) for chart in specs["charts"]}
    for figure in figures.values():
        figure.update_layout(template=specs["template"])
    return figures


BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def browse(page, folder):
    """Opens a page in a browser; returns its final DOM, its console's lines and the requests it made."""
    log, profile = folder / "net.json", folder / "profile"
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    quiet += " disable-component-update disable-sync enable-logging=stderr v=0 dump-dom virtual-time-budget=10000"
    command = [BROWSER, *(f"--{flag}" for flag in quiet.split()), f"--user-data-dir={profile}", f"--log-net-log={log}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    # The browser has errands of its own, on behalf of "not an origin". Whatever else starts comes from the page.
    started = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    requests = [p["url"] for p in started if p.get("initiator", "not an origin") != "not an origin" and "url" in p]
    return done.stdout, console, requests


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
