"""Tables of the report."""

from collections.abc import Iterable, Sequence


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
