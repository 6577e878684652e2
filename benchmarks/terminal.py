"""Text for a person's terminal, whoever wrote the names in it."""


def printable(text: object) -> str:
    """Returns ``text`` on one line, with an escape for each character that a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
