"""Tables in the terminal: columns as wide as their longest cell, numbers to the right."""

from collections.abc import Sequence

from pipelines.console.output import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the header, then the rows.

    Args:
        header: titles of the columns.
        rows: cells, as many in each as there are columns. Columns of numbers only are aligned to
            the right.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [
        bool(rows) and all(_is_number(row[index]) for row in cells[1:])
        for index in range(len(header))
    ]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def size_in_words(size: int) -> str:
    """``512 B``, ``3.4 kB``, ``1.2 GB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _is_number(cell: str) -> bool:
    return bool(cell) and (cell[0].isdigit() or cell[0] == "-") and cell[-1].isalnum()
