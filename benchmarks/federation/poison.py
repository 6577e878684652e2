"""What ``--poison`` says; poisoners.py does it."""

from typing import NamedTuple

NONE = "none"
KINDS = ("labels", "trigger", "replace")


class Poison(NamedTuple):
    kind: str
    clients: int  # K

    @property
    def stamps(self) -> bool:
        """Whether there is a trigger."""
        return self.kind != "labels"


def parse(spec: str) -> tuple[str, Poison | None]:
    """Returns the canonical spelling, and what it means; None for ``NONE``. K is 1 by default. Raises ValueError."""
    kind, colon, text = spec.partition(":")
    if spec == NONE:
        return spec, None
    if kind not in KINDS:
        raise ValueError(f"--poison: no {spec!r:.40}; there are {', '.join(f'{each}:K' for each in KINDS)} and {NONE}")
    if colon and not text.isdecimal():
        raise ValueError(f"--poison: {spec!r:.40} is not right; what follows {kind}: is a number of clients")
    clients = int(text) if colon else 1
    return f"{kind}:{clients}", Poison(kind, clients)
