"""Text of any origin as a terminal can show it."""


def printable(text: str) -> str:
    """Returns a text whose control characters, and those that turn the direction of writing, are escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
