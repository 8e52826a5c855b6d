"""An HTML page with everything inside: styles, charts, pictures; no script, no address that anything is loaded from."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from inf_nerf.render.colourmap import Picture

JPEG_QUALITY = 85

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #202226; background: #fafaf8; margin: 0; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 27px; margin: 0; }
h2 { font-size: 20px; margin: 44px 0 10px; border-bottom: 1px solid #d8d8d2; padding-bottom: 5px; }
h3 { font-size: 15px; margin: 0 0 4px; }
p { max-width: 78ch; }
nav { margin: 12px 0 0; font-size: 14px; }
nav a { color: #2f6db5; margin-right: 14px; text-decoration: none; }
.faint, figcaption { color: #6c7078; font-size: 13px; }
.missing { color: #8a5a14; background: #fbf3e2; border-left: 3px solid #d9a441; padding: 6px 12px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.cards div { background: #fff; border: 1px solid #e3e3dd; border-radius: 6px; padding: 8px 16px; min-width: 96px; }
.cards b { display: block; font-size: 21px; font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 22px 28px; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
img { max-width: 100%; display: block; border-radius: 3px; }
svg { max-width: 100%; height: auto; font: 11.5px system-ui, sans-serif; background: #fff; }
svg text { fill: #494d55; }
svg .grid { stroke: #e6e6e0; }
.legend { font-size: 12.5px; color: #494d55; }
.legend span { margin-right: 14px; white-space: nowrap; }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: 5px; vertical-align: middle; }
table { border-collapse: collapse; font-size: 14px; background: #fff; }
th, td { border: 1px solid #e3e3dd; padding: 3px 10px; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
th { background: #f2f2ed; font-weight: 600; }
code { font-size: 13px; }
.scroll { overflow-x: auto; max-width: 100%; }
"""


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    content: str  # HTML

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def page(title: str, subtitle: str, head: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section><h2 id="{section.anchor}">{escape(section.title)}</h2>{section.content}</section>\n'
        for section in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{STYLE}</style>'
        f'</head><body><main><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p>{head}'
        f"<nav>{links}</nav>\n{body}"
        "</main></body></html>\n"
    )


def cards(entries: Sequence[tuple[str, str]]) -> str:
    """Large figures, of pairs of what it is and its value."""
    inner = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in entries)
    return f'<div class="cards">{inner}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of text; columns whose first row looks like a number are set to the right."""
    numeric = [bool(rows) and (rows[0][column][:1] or "x") in "0123456789-−" for column in range(len(head))]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if is_number else ''}>{escape(cell)}</{tag}>"
            for cell, is_number in zip(cells, numeric, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line(head, "th")}</tr>{body}</table></div>'


def figure(content: str, caption: str, title: str = "") -> str:
    """A chart or a picture with what it shows."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{head}{content}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(parts: Sequence[str]) -> str:
    """Figures beside each other."""
    return f'<div class="figures">{"".join(parts)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def missing(sentence: str) -> str:
    """Says that a section has nothing to show, and why."""
    return f'<p class="missing">{escape(sentence)}</p>'


def picture(pixels: Picture, alt: str, width: int | None = None) -> str:
    """Pixels [h, w, 3] as an image of the page; PNG where it has few colours, else JPEG."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    few = image.getcolors(256) is not None
    buffer = BytesIO()
    image.save(buffer, "PNG" if few else "JPEG", **({"optimize": True} if few else {"quality": JPEG_QUALITY}))
    return _image(buffer.getvalue(), "png" if few else "jpeg", alt, width)


def _image(data: bytes, kind: str, alt: str, width: int | None) -> str:
    size = f' width="{width}"' if width is not None else ""
    return f'<img alt="{escape(alt)}"{size} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
