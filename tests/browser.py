"""A headless browser for tests: opens a page without a network and says what is on it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the page itself may be asked for, not even by name.
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr"),
    *("--virtual-time-budget=4000", "--window-size=1200,1600"),
]
# Runs in a copy of the page: notes errors, and at the end what was asked of a network and how large each picture is.
PROBE = """<script>
const errors = []; addEventListener("error", e => errors.push(String(e.message || e.target?.src || e.type)), true);
addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const all = q => [...document.querySelectorAll(q)];
  const seen = {title: document.title, text: document.body.innerText, errors,
    asked: performance.getEntriesByType("resource").map(e => e.name),
    charts: all("svg").map(s => ({size: box(s), drawn: [...s.querySelectorAll("path, rect, use, line")].filter(
      e => box(e).some(x => x > 0)).length, text: s.textContent})),
    pictures: all("img").map(i => [i.naturalWidth, i.naturalHeight]), width: document.documentElement.scrollWidth};
  const out = document.createElement("pre"); out.id = "seen"; out.hidden = true;
  out.textContent = JSON.stringify(seen); document.body.append(out);
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """A page as a person would find it: sizes are CSS pixels; `asked` are addresses that something was fetched from."""

    title: str
    text: str
    errors: list[str]
    asked: list[str]
    charts: list[dict]
    pictures: list[list[int]]
    width: int
    log: str


def browser() -> str:
    """The browser on PATH; the test is skipped without one."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return found or pytest.skip(f"no browser on PATH: looked for {', '.join(NAMES)}")


def look_at(page: str, *, picture: Path | None = None, hosts: str = "MAP * ~NOTFOUND") -> Seen:
    """Open `page`, HTML text; with `picture`, a PNG of it is written there."""
    program = browser()
    with tempfile.TemporaryDirectory(prefix="prism-browser-") as folder:
        file = Path(folder) / "page.html"
        file.write_text(page.replace("<head>", f"<head>{PROBE}", 1))
        command = [program, *FLAGS, f"--user-data-dir={folder}/profile", f"--host-resolver-rules={hosts}"]
        if picture is not None:
            command.append(f"--screenshot={picture}")
        done = subprocess.run(
            [*command, "--dump-dom", file.as_uri()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
    found = re.search(r'<pre id="seen" hidden="">(.*?)</pre>', done.stdout, re.S)
    assert found, f"the browser showed no page: {done.returncode}\n{done.stderr[-2000:]}"
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), log="\n".join(said))
