"""The executed lessons as a static site: `make site` writes site/, which needs no server, no network and no kernel.

Lessons, their solutions and the papers of docs/ that they link to become pages of the same look. Formulas become MathML,
which browsers draw themselves, so that nothing is fetched from anywhere.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from mmlora.paths import NOTEBOOKS, PACKAGE
from tools import colab
from tools.figures import shown

SITE = PACKAGE.parent / "site"
DOCS = ("glossary", "workshop", "install", "data", "architecture", "recipe")
PROMISE = re.compile(r"\*\*What you will learn\.\*\*\s*(.*?)(?:\n\n|$)", re.DOTALL)
MATH = re.compile(r"(?<![\\$`\w])(\$\$?)(?!\s)([^$`]+?)(?<!\s)\1(?![\w$])", re.DOTALL)
HEADING = re.compile(r'(<h[1-6][^>]* id="|class="anchor-link" href="#)([^"]*)"')
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
STYLE = """<style>
body.jp-Notebook { max-width: 960px; margin: 0 auto; padding: 1em; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.jp-OutputArea-output pre, .jp-RenderedText pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.highlight pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; max-width: 100%; }
.jp-RenderedHTMLCommon pre { white-space: pre-wrap; }
[data-mime-type="application/vnd.jupyter.stderr"] { background: none; color: #777; }
img { max-width: 100%; height: auto; }
nav { font: 14px sans-serif; margin-bottom: 1em; }
</style>"""


def build(folder: Path = SITE) -> list[Path]:
    """Write all pages into `folder`, which is made anew, and return them; index.html is the first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lessons = {path.stem: nbformat.read(path, as_version=4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    solved = {
        path.stem: nbformat.read(path, as_version=4) for path in sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
    }
    papers = {name: PACKAGE.parent / "docs" / f"{name}.md" for name in DOCS}
    pages = {"index": _index(lessons, solved)} | lessons
    pages |= {f"{name}_solutions": notebook for name, notebook in solved.items()}
    pages |= {name: _words(path.read_text(encoding="utf-8")) for name, path in papers.items()}
    written = []
    for name, notebook in pages.items():
        written.append(folder / f"{name}.html")
        written[-1].write_text(_page(name, notebook, set(pages)), encoding="utf-8")
    return written


def _page(name: str, notebook: NotebookNode, pages: set[str]) -> str:
    """A notebook as HTML: links lead to pages of the site or to the repository, formulas are MathML."""
    base = "docs" if name in DOCS else "notebooks/solutions" if name.endswith("_solutions") else "notebooks"
    formulas: list[str] = []  # put in at the end, for the exporter takes tags out that it does not know
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = _without_formulas(shown(colab.BADGES.sub("", cell.source)), formulas)
            cell.source = _linked(text, pages, base)
    notebook.metadata.pop("widgets", None)
    exporter = HTMLExporter(
        template_name="lab", mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", embed_images=True,
        exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    body = re.sub(r"<script[^>]*\bsrc=.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r'<script type="module">.*?</script>', "", body, flags=re.DOTALL)  # mermaid, from a network
    body = HEADING.sub(lambda found: f'{found[1]}{_slug(found[2])}"', body)
    body = re.sub(r"formula(\d+)formula", lambda mark: formulas[int(mark[1])], body)
    links = [page for page in sorted(pages) if page[:2].isdigit() and not page.endswith("_solutions")]
    listed = " · ".join(f'<a href="{page}.html">{page[:2]}</a>' for page in links)
    body = body.replace("</head>", f"{STYLE}</head>", 1)
    return re.sub(r"(<body[^>]*>)", rf'\1<nav><a href="index.html">mmlora</a> · {listed}</nav>', body, count=1)


def _slug(heading: str) -> str:
    """A heading's name in links as the repository's pages have it, from the name that nbconvert gives it."""
    return re.sub(r"[^\w-]", "", unquote(heading).lower())


def _index(lessons: dict[str, NotebookNode], solved: dict[str, NotebookNode]) -> NotebookNode:
    """The first page: each lesson with what one learns there, and the papers."""
    lines = ["# mmlora: the lessons, executed\n"]
    for name, notebook in lessons.items():
        first = notebook.cells[0].source
        found = PROMISE.search(shown(first))
        title = first.splitlines()[0].removeprefix("# ")
        solution = f" ([solutions]({name}_solutions.ipynb))" if name in solved else ""
        lines.append(f"**[{title}]({name}.ipynb)**{solution}  \n{' '.join(found[1].split()) if found else ''}\n")
    lines.append("Beside them: " + ", ".join(f"[{name}](../docs/{name}.md)" for name in DOCS) + ".")
    return _words("\n".join(lines))


def _words(text: str) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def _linked(text: str, pages: set[str], base: str) -> str:
    """The text, which lies in the folder `base`, with links between files turned into links between pages."""

    def turn(link: re.Match) -> str:
        target, _, anchor = link[1].partition("#")
        if target.startswith("http") or not target:
            return link[0]
        path = PurePosixPath(normpath(f"{base}/{target}"))
        page = f"{path.stem}_solutions" if path.parent.name == "solutions" else path.stem
        if path.suffix in (".ipynb", ".md") and page in pages:
            return f"]({page}.html{'#' + anchor if anchor else ''})"
        return f"]({colab.repository()}/blob/main/{path}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", turn, text)


def _without_formulas(text: str, formulas: list[str]) -> str:
    """The text with a mark for each $formula$, which goes into `formulas` as MathML; code is left alone."""

    def take(math: re.Match) -> str:
        formulas.append(convert(math[2], display="block" if math[1] == "$$" else "inline"))
        return f"formula{len(formulas) - 1}formula"

    return "".join(part if part.startswith("`") else MATH.sub(take, part) for part in CODE.split(text))


if __name__ == "__main__":
    print(build()[0])
