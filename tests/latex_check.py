"""A reader of the LaTeX that tables are made of: what does not balance, or would not compile, is an error."""

from __future__ import annotations

import re
import shutil

TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}$&#%_^~]|[^\\{}$&#%_^~]", re.DOTALL)
KNOWN = {
    *("begin", "end", "centering", "caption", "resizebox", "ifdim", "else", "fi", "width", "textwidth", "toprule"),
    *("midrule", "bottomrule", "cmidrule", "multicolumn", "textbf", "textcolor", "emph", "par", "smallskip"),
    *("footnotesize", "dagger", "leq", "geq", "times", "pm", "textbackslash", "textasciicircum", "textasciitilde"),
    *("textless", "textgreater", "textbar", "textasciigrave", "textquotesingle", "textquotedbl"),
}
ENGINE = next(filter(None, map(shutil.which, ("lualatex", "xelatex", "pdflatex", "tectonic"))), None)


def check_latex(text: str) -> list[list[list[str]]]:
    """Read it.

    Returns:
        The rows of every ``tabular``, as cells of LaTeX.

    Raises:
        AssertionError: braces, environments, mathematics or columns do not balance, a command is not one that tables
            need, or a sign stands bare that means something to LaTeX.
    """
    text = "\n".join(line for line in text.splitlines() if not line.startswith("%")).replace("{!}{%\n", "{!}{")
    open_: list[str] = []
    depth, mathematics = 0, False
    tokens = TOKEN.findall(text)
    assert "".join(tokens) == text
    for index, token in enumerate(tokens):
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            assert depth >= 0, "a brace too many"
        elif token == "$":
            mathematics = not mathematics
        elif token in "#%~":
            raise AssertionError(f"a bare {token!r}")
        elif token in "_^":
            assert mathematics, f"a bare {token!r}"
        elif token == "&":
            assert open_[-1:] == ["tabular"], "a bare '&'"
        elif token[0] == "\\" and token[1].isalpha():
            assert token[1:] in KNOWN, f"an unknown {token}"
            if token in ("\\begin", "\\end"):
                name = "".join(tokens[index + 2 : tokens.index("}", index)])
                if token == "\\begin":
                    open_.append(name)
                else:
                    assert open_.pop() == name, f"{name} ends in another environment"
    assert (depth, open_, mathematics) == (0, [], False)
    return [_rows(match[1], match[2]) for match in re.finditer(TABULAR, text)]


TABULAR = re.compile(r"\\begin\{tabular\}\{([lrc]+)\}\n(.*?)\\end\{tabular\}", re.DOTALL)


def _rows(columns: str, body: str) -> list[list[str]]:
    rows = []
    for line in body.splitlines():
        if re.fullmatch(r"\\(top|mid|bottom)rule|(\\cmidrule\(lr\)\{\d+-\d+\} ?)*", line):
            continue
        assert line.endswith(" \\\\"), line
        cells = re.split(r"(?<!\\)&", line.removesuffix("\\\\"))
        spans = [int(found[1]) if (found := re.search(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells]
        assert sum(spans) == len(columns), line
        assert not re.match(r"\s*[\[*]", line), "would be an argument of the row above"
        rows.append([cell.strip() for cell in cells])
    return rows


def document(text: str) -> str:
    """A whole document of the tables."""
    packages = r"\usepackage[T1]{fontenc} \usepackage{textcomp,booktabs,xcolor,graphicx}"
    return f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{text}\n\\end{{document}}\n"
