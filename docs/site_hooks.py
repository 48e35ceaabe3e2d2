"""For the site only: pages that are written from the code, and links out of the documents, which become names."""

import re
from typing import Any

import site_api
import site_gallery
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[[^\]]*\]\(\.\./([^)#]*)[^)]*\)")
GENERATED = re.compile(r"^(api|gallery)/")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Called by mkdocs with the files that it found; the pages that the code writes are added."""
    for address, content in {**site_api.pages(), **site_gallery.pages()}.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of every page."""
    return markdown if GENERATED.match(page.file.src_uri) else OUTSIDE.sub(r"`\1`", markdown)
