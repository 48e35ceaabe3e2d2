"""Pages that stand alone: one file, no script, and a policy that forbids every request."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 62rem; }
h1, h2, h3 { line-height: 1.2; }
img { width: 100%; height: auto; }
figure { margin: 1rem 0; }
figure.panel { max-width: 40rem; }
figcaption, p.caption { color: #555; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; text-align: left; }
pre { overflow-x: auto; background: #f4f4f4; padding: 0.7rem; }
""".strip()
# The browser itself refuses whatever is not in the file; an icon is given, so that it asks for none.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page around its parts, which are HTML."""
    return HEAD.format(title=escape(title), style=STYLE) + "\n".join(parts) + "\n</body>\n</html>\n"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Preformatted text; the keyboard scrolls it where it is wide."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def picture(svg: bytes, alternative: str, caption: str = "", *, panel: bool = True) -> str:
    """A picture within the page, with a text for those who cannot see it; a panel is not drawn larger than its text."""
    source = base64.b64encode(svg).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="panel"' if panel else ""
    return f'<figure{kind}><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{source}">{below}</figure>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, long: Sequence[str] = ()) -> str:
    """A table that scrolls by itself on a narrow screen.

    Args:
        caption: above it.
        head: names of the columns.
        rows: of cells; what is not text is shown as ``str`` has it.
        long: columns whose text may be broken into lines.
    """
    lines = [f'<p class="caption">{escape(caption)}</p>']  # outside, so that it does not scroll
    lines += ['<div class="scroll" tabindex="0" role="region" aria-label="' + escape(caption) + '">']
    lines += ["<table>", "<thead><tr>"]
    lines += [f'<th scope="col">{escape(name)}</th>' for name in head]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        cells = []
        for name, cell in zip(head, row, strict=True):
            kind = ' class="long"' if name in long else ""
            cells.append(f"<td{kind}>{escape(str(cell))}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])
