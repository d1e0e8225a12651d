"""A report as one HTML file that opens without a network: text, tables, key figures, inline SVG, pictures.

A `Page` is filled from top to bottom and rendered once. All text is escaped; only `chart` takes markup.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal

Mood = Literal["good", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A number worth a tile of its own."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is in its file; `mime` such as `image/png`."""

    data: bytes
    mime: str
    caption: str = ""


class Page:
    """One report."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts = [f"<header><h1>{escape(title)}</h1>"]
        self._parts.append(f"<p class=lead>{escape(subtitle)}</p></header>" if subtitle else "</header>")

    def section(self, title: str, text: str = "") -> None:
        """Start a section."""
        self._parts.append(f"<h2>{escape(title)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def verdict(self, mood: Mood, headline: str, lines: Sequence[str] = ()) -> None:
        """A coloured box: what came of it all, and why."""
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        self._parts.append(
            f"<div class='verdict {mood}'><b>{escape(headline)}</b>{f'<ul>{items}</ul>' if items else ''}</div>"
        )

    def figures(self, figures: Sequence[KeyFigure]) -> None:
        """Tiles in a row."""
        tiles = "".join(
            f"<div class=tile><span class=label>{escape(f.label)}</span><span class=value>{escape(f.value)}</span>"
            f"<span class=note>{escape(f.note)}</span></div>"
            for f in figures
        )
        self._parts.append(f"<div class=tiles>{tiles}</div>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """A table; cells that are numbers, or look like one with a unit, are set to the right."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
        note = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f"<div class=wide><table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def pairs(self, pairs: Mapping[str, object]) -> None:
        """Names and values, one pair a line."""
        items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
        self._parts.append(f"<dl>{items}</dl>")

    def chart(self, svg: str, caption: str = "") -> None:
        """An SVG from `loadtest.plots`, as it is."""
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{svg}{note}</figure>")

    def pictures(self, pictures: Sequence[Picture]) -> None:
        """Images side by side."""
        shown = "".join(
            f"<figure><img alt='{escape(p.caption, quote=True)}' src='data:{escape(p.mime, quote=True)};base64,"
            f"{b64encode(p.data).decode()}'><figcaption>{escape(p.caption)}</figcaption></figure>"
            for p in pictures
        )
        self._parts.append(f"<div class=pictures>{shown}</div>")

    def render(self) -> str:
        style = (files("loadtest") / "page.css").read_text()
        return (
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width,initial-scale=1'>"
            f"<title>{escape(self._title)}</title><style>{style}</style></head><body><main>"
            f"{''.join(self._parts)}</main></body></html>\n"
        )

    def write(self, file: Path) -> None:
        file.write_text(self.render())


def _cell(value: object) -> str:
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    is_number = isinstance(value, (int, float)) or text == "–" or text[:1].isdigit()
    return f"<td class=n>{escape(text)}</td>" if is_number else f"<td>{escape(text)}</td>"
