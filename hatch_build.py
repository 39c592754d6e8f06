"""The README as the package index shows it, where links to files beside it would lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Links and images that lead to files beside the README, made whole with the project's home.

    As long as ``project.urls`` names no ``Source``, images are left out, and links are their words.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Gives the text to the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source", "")
        metadata["readme"] = {"content-type": "text/markdown", "text": whole(text, source)}


def whole(text: str, source: str) -> str:
    """The text without relative links.

    Args:
        text: Markdown.
        source: Address of the repository, empty where there is none.
    """
    relative = r"(?!https?:|mailto:|#)([^)\s]+)"
    if source:
        base = source.rstrip("/")
        text = re.sub(rf"!\[([^\]]*)\]\({relative}\)", rf"![\1]({base}/raw/main/\2)", text)
        return re.sub(rf"(?<!!)\[([^\]]+)\]\({relative}\)", rf"[\1]({base}/blob/main/\2)", text)
    text = re.sub(rf"^!\[[^\]]*\]\({relative}\)\n\n?", "", text, flags=re.MULTILINE)
    return re.sub(rf"!?\[([^\]]+)\]\({relative}\)", r"\1", text)
