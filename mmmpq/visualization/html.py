"""Pages that need no other file and no script, and what they are made of."""

import base64
from collections.abc import Iterable, Mapping, Sequence

from mmmpq.visualization.theme import DPI

CSS = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1c2128;
  --soft: #59626e; --line: #dfe3e8; --good: #0b6e4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #171b21;
  --ink: #e3e7ec; --soft: #9aa4b0; --line: #2c333c; --good: #4cc38a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
main { max-width: 1140px; margin: auto; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; max-width: 75ch; }
.soft, caption { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin: 1.1rem 0; }
.budget { font-weight: 600; font-variant-numeric: tabular-nums; max-width: none; }
.good { color: var(--good); } .bad { color: var(--bad); }
.budget small { font-weight: 400; color: var(--soft); display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; max-width: 75ch; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .9rem; }
tr.searched td { font-weight: 650; }
td p { margin: 0; min-width: 34ch; white-space: normal; }
td p, th:has(p) { text-align: left; }
td small { color: var(--soft); font-weight: 400; display: block; }
img { display: block; max-width: 100%; height: auto; }
.figure { position: relative; width: fit-content; max-width: 100%;
  margin: .8rem auto 0; }
.tips span { position: absolute; left: 0; width: 100%; overflow: hidden;
  font-size: 8px; line-height: 1; color: transparent; }
.tips span:hover { outline: 1px solid var(--soft); }
summary { cursor: pointer; font-weight: 600; }
"""


def document(title: str, facts: str, *sections: str) -> str:
    """A page; all arguments are HTML.

    Args:
        title: Its heading.
        facts: One line below that.
        *sections: The rest.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><style>{CSS}</style></head>'
        f'<body><main><header><h1>{title}</h1><p class="soft">{facts}</p></header>'
        f'{"".join(sections)}</main></body></html>\n'
    )


def figure(
    name: str, title: str, caption: str, themes: Mapping[str, bytes], over: str = ''
) -> str:
    """The section of a picture, which is part of the page.

    Args:
        name: Its id.
        title, caption: As HTML.
        themes: Theme name -> PNG bytes; the light one is needed.
        over: HTML that lies over the picture.
    """
    # a PNG's width in pixels is the big-endian number in its bytes 16 to 19
    width = round(int.from_bytes(themes['light'][16:20], 'big') / DPI * 100)
    data = {
        theme: 'data:image/png;base64,' + base64.b64encode(png).decode()
        for theme, png in themes.items()
    }
    dark = ''
    if 'dark' in data:
        query = 'media="(prefers-color-scheme: dark)"'
        dark = f'<source srcset="{data["dark"]}" {query}>'
    return (
        f'<section id="{name}"><h2>{title}</h2><p class="soft">{caption}</p>'
        '<div class="figure"><picture>'
        f'{dark}<img src="{data["light"]}" width="{width}" alt="{title}"></picture>'
        f'{over}</div></section>'
    )


def html_table(
    heads: Iterable[str],
    rows: Iterable[Sequence[str]],
    caption: str = '',
    bold: tuple[str, ...] = (),
) -> str:
    """A table that scrolls sideways where the window is narrow.

    Args:
        heads: Of the columns.
        rows: Cells, as HTML.
        caption: As HTML.
        bold: What the first cells of rows in bold begin with.
    """
    head = ''.join(f'<th scope="col">{name}</th>' for name in heads)
    body = ''
    for row in rows:
        kind = ' class="searched"' if row[0].startswith(bold) else ''
        body += f'<tr{kind}>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
    caption = caption and f'<caption>{caption}</caption>'
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>'
    )
