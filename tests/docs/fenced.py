"""What stands in the code blocks of a document."""

from __future__ import annotations

import re

from tests.structure.modules import ROOT


def blocks(document: str, language: str) -> list[str]:
    """Those of a language, in order."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
