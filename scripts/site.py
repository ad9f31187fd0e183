"""What the site shows beside the pages of docs/: README and its like, the tutorial's notebook, and linked source files.

Pages of docs/ link as a code host wants it: `../examples/corpus.py`, `tutorial.ipynb`. Here such a link leads to a page
that is made of the file. MkDocs calls the functions `on_*` (mkdocs.yml, `hooks`).
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".cff": "yaml"}
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
SOURCE = '<details class="mkdocstrings-source" data-search-exclude>'
PRE = re.compile(r"<pre>(.*?</pre>)", re.S)
FENCE = "~" * 6


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of other files."""
    for source, page in TOP.items():
        files.append(_made(config, page, _from_the_top((ROOT / source).read_text("utf-8"))))
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        files.append(_made(config, f"{notebook.stem}.md", notebook_page(json.loads(notebook.read_text("utf-8")))))
    for path in sorted(_linked_sources(files)):
        files.append(_made(config, _page_of(path), _source_page(path), InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page whose links to such files lead to their pages."""
    folder = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        target = _page_for(folder, match[2])
        if target is None or target == page.file.src_uri:  # the tutorial's own link is to the notebook
            return match[0]
        return f"{match[1]}{posixpath.relpath(target, folder or '.')}{match[3]}"

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page with small terminal tables, on which a search finds no source code."""
    html = html.replace('<details class="mkdocstrings-source">', SOURCE)
    return PRE.sub(lambda match: f'<pre class="terminal">{match[1]}' if "│" in match[1] else match[0], html)


def notebook_page(notebook: dict[str, Any]) -> str:
    """Returns a notebook with the outputs that it holds, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
        parts += [_output(one) for one in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """One output: a picture or a table as it is, text between fences."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="Figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"]).strip()}\n</div>'
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text") or data["text/plain"])
    return f'<div class="output" markdown>\n\n{_fenced(text.rstrip(), "text")}\n\n</div>'


def _fenced(text: str, language: str) -> str:
    """Code between fences that it cannot end."""
    return f"{FENCE}{language}\n{text}\n{FENCE}"


def _from_the_top(text: str) -> str:
    """A page of the top folder, its links as from docs/."""
    return LINK.sub(lambda match: f"{match[1]}{posixpath.relpath(match[2], 'docs')}{match[3]}", text)


def _page_for(folder: str, link: str) -> str | None:
    """The page that a link of a page in docs/`folder` leads to, where it is made of another file."""
    path = posixpath.normpath(posixpath.join("docs", folder, link))
    if path.startswith("docs/"):
        is_notebook = path.endswith(".ipynb") and "/" not in path.removeprefix("docs/")
        return f"{Path(path).stem}.md" if is_notebook else None
    if path in TOP:
        return TOP[path]
    return _page_of(path) if (ROOT / path).is_file() else None


def _linked_sources(files: Files) -> set[str]:
    """Files outside of docs/ that its pages link to."""
    found = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), match[2]))
            if not path.startswith("docs/") and path not in TOP and (ROOT / path).is_file():
                found.add(path)
    return found


def _page_of(path: str) -> str:
    """Where the page of a source file is."""
    return f"source/{path}.md"


def _source_page(path: str) -> str:
    """A source file as a page."""
    file = ROOT / path
    return f"# {path}\n\n{_fenced(file.read_text('utf-8').rstrip(), LANGUAGES.get(file.suffix, 'text'))}\n"


def _made(config: MkDocsConfig, page: str, content: str, inclusion: InclusionLevel = InclusionLevel.UNDEFINED) -> File:
    """A page that is no file of docs/."""
    return File.generated(config, page, content=content, inclusion=inclusion)
