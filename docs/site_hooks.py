"""For the site only: links out of the documents, to sources, become the names of these files."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[[^\]]*\]\(\.\./([^)#]*)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of every page."""
    return OUTSIDE.sub(r"`\1`", markdown)
