"""For the site: the recipes' page beside these pages, and links to files that the site lacks.

On GitHub a link to such a file works as it is. On the site it becomes the file's path in the
repository.
"""

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

RECIPES = "recipes/README.md"
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs with the files of the site: add the recipes' page."""
    recipes = Path(config.config_file_path).parent / RECIPES
    files.append(File.generated(config, "recipes.md", content=recipes.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page."""
    folder = "recipes" if page.file.src_uri == "recipes.md" else "docs"
    return LINK.sub(lambda link: _on_the_site(link, folder), markdown)


def _on_the_site(link: re.Match[str], folder: str) -> str:
    text, path, anchor = link["text"], normpath(f"{folder}/{link['target']}"), link["anchor"] or ""
    if path == RECIPES:
        return f"[{text}](recipes.md{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    if text.strip("`") in path:  # a recipe's name is what `neft recipes` takes
        return f"`{text if folder == 'recipes' else path}`"
    return f"{text} (`{path}`)"
