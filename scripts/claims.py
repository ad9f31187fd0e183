"""Lets the reference show `Guarantee:`, `Assumes:` and `Source:` of a docstring as paragraphs of their own."""

import re
from typing import Any

from griffe import Extension, Object

CLAIM = re.compile(r"\n?^(Guarantee|Assumes|Source):", re.M)


class Claims(Extension):
    """Sets the words apart; docstrings are read as Google's otherwise, in which they would be titles of boxes."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Changes the docstring of one object, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = CLAIM.sub(r"\n\n**\1:**", obj.docstring.value)
