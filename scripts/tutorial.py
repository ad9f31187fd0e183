"""Runs docs/tutorial.ipynb and writes it back with what came out: `python scripts/tutorial.py`."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def executed(folder: Path) -> nbformat.NotebookNode:
    """Returns the tutorial as it comes out when it is run in a folder, without times of execution."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    """Writes the tutorial with new outputs."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), TUTORIAL)


if __name__ == "__main__":
    main()
