# SPDX-License-Identifier: Apache-2.0
"""Make the long description from README.md, for pages that do not show the repository's other files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# The README links to files beside it. A package index has none of them, so only the link's text stays.
_RELATIVE = r"\((?!https?:)[^)]*\)"
_PICTURE = re.compile(rf"^!\[[^\]]*\]{_RELATIVE}\n+", re.MULTILINE)
_LINK = re.compile(rf"(?<!!)\[([^\]]*)\]{_RELATIVE}")


class LongDescription(MetadataHookInterface):
    """Hatch's hook that fills in the dynamic field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the long description."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = _LINK.sub(r"\1", _PICTURE.sub("", readme))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
