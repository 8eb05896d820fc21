"""A table in words, written as Markdown or LaTeX (booktabs) with everything escaped; the page renders the same rows."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column head: `title`, `unit` in a second line, `help` where the page explains it."""

    title: str
    unit: str = ""
    help: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What a cell says: the number, and beside it in small type its spread."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    cells: tuple[Cell, ...]
    style: int | None = None
    """Colour index of the method, for the page's swatch."""


@dataclass(frozen=True)
class Table:
    """A table in words; how it looks is the renderer's matter."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def to_plain(table: Table) -> str:
    """Aligned columns for a terminal; `*` at best values."""
    lines = [[c.title for c in table.columns]]
    lines += [[f"{c.text}{'*' if c.best else ''} {c.note}".strip() for c in row.cells] for row in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            t.rjust(w) if c.numeric else t.ljust(w) for t, w, c in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    )


def to_markdown(table: Table) -> str:
    """A GitHub table; best values bold."""
    text = markdown_text

    def cell(c: Cell) -> str:
        main = f"**{text(c.text)}**" if c.best else text(c.text)
        return f"{main} {text(c.note)}".strip()

    lines = [
        "| " + " | ".join(text(c.title) + (f" ({text(c.unit)})" if c.unit else "") for c in table.columns) + " |",
        "| " + " | ".join("---:" if c.numeric else ":---" for c in table.columns) + " |",
        *("| " + " | ".join(map(cell, row.cells)) + " |" for row in table.rows),
    ]
    return f"## {text(table.title)}\n\n" + (f"{text(table.note)}\n\n" if table.note else "") + "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """Plain text on one line with everything escaped that Markdown or HTML could take for markup."""
    safe = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + c if c in "\\`*_{}[]|#~$" else c for c in safe)


def to_latex(table: Table, label: str) -> str:
    """A floating booktabs table; needs `booktabs` and `graphicx` (it is shrunk to the line where too wide)."""

    def cell(c: Cell) -> str:
        main = rf"\textbf{{{latex(c.text)}}}" if c.best else latex(c.text)
        return main + (rf" {{\scriptsize {latex(c.note)}}}" if c.note else "")

    heads = " & ".join(latex(c.title) for c in table.columns)
    units = " & ".join(rf"{{\scriptsize {latex(c.unit)}}}" if c.unit else "" for c in table.columns)
    body = "\n".join("    " + " & ".join(map(cell, row.cells)) + r" \\" for row in table.rows)
    align = "".join("r" if c.numeric else "l" for c in table.columns)
    return (
        "\\begin{table*}[t]\n  \\centering\n"
        f"  \\caption{{{latex(table.title)}. {latex(table.note)}}}\n  \\label{{tab:{label}}}\n"
        "  \\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"  \\begin{{tabular}}{{@{{}}{align}@{{}}}}\n    \\toprule\n    {heads} \\\\\n    {units} \\\\\n    \\midrule\n"
        f"{body}\n    \\bottomrule\n  \\end{{tabular}}}}\n\\end{{table*}}\n"
    )


def latex_head(body: str) -> str:
    """Comment and definitions that a file of tables opens with."""
    head = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}. Same figures as index.html and points.csv.\n"
    return head + (LATEX_UNICODE if BEYOND in body else "")


BEYOND = r"\beyondlatin"
LATEX_UNICODE = (
    "% Compile with xelatex or lualatex and a font that has these characters; pdflatex shows their code points.\n"
    rf"\providecommand{{{BEYOND}}}[2]{{\ifdefined\Umathcode #1\else [U+#2]\fi}}" + "\n"
)
LATIN = 0x180
"""Characters below this code point pdflatex knows."""
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "…": r"\dots{}",
    "†": r"\dag{}",
}


def latex(text: str) -> str:
    """Plain text with every special character escaped; brackets are grouped so that no command takes them."""
    escaped = "".join(LATEX.get(c) or _latin(c) for c in " ".join(text.split()))
    return "{" + escaped + "}" if escaped.startswith("[") else escaped


def _latin(character: str) -> str:
    code = ord(character)
    return character if code < LATIN else rf"{BEYOND}{{{character}}}{{{code:04X}}}"
