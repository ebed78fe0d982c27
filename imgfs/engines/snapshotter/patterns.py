r"""Regular expressions from outside, as containerd's filters have them: of RE2, which never takes long.

Python's `re` tries one possibility after the other instead. So only what both understand alike is taken, no
group is repeated, and how many steps a search takes at most is known before: for each place to begin at, as
many as the text is long for each repetition, and two for each thing that may be there or not.
"""

from __future__ import annotations

import re
from typing import Self

from imgfs.engines.refusal import Code, Refusal

_PART = re.compile(
    r"(?P<plain>\\(?:[dswDSWbBAfnrtv\W_]|x[\da-fA-F]{2})|[^\\[\](){}*+?|$])"
    r"|(?P<set>\[\^?\]?(?:\\[dswDSWfnrtv\W_]|(?!--|&&|~~|\|\|)[^][\\])*\])"
    r"|(?P<end>\$)"
    r"|(?P<open>\((?:\?:|(?!\?)))"
    r"|(?P<close>\))(?![*+{])"
    r"|(?P<many>(?:[*+]|\{\d{1,3}(?:,\d{0,3})?\})\??)(?![*+{])"
    r"|(?P<maybe>\?\??)(?![*+{])"
    r"|(?P<either>\|)",
    re.DOTALL,
)
_LONGEST = 1000  # characters of an expression
_MOST_STEPS = 1 << 25  # a second or less


class Pattern:
    """A regular expression."""

    def __init__(self, compiled: re.Pattern[str], repetitions: int, choices: int) -> None:
        self._compiled = compiled
        self._repetitions = repetitions
        self._choices = choices

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression; raises Refusal if it is none, or has something that is not taken."""
        if len(text) > _LONGEST:
            raise _refused(f"{text[:40]}…", "too long")
        at, found, counts = 0, "", dict.fromkeys(("many", "maybe", "either"), 0)
        while at < len(text):
            part = _PART.match(text, at)
            if part is None:
                raise _refused(text, f"what is not taken at character {at}")
            found += r"\Z" if part["end"] else part[0]  # Python's $ is before a last newline, too
            for kind in counts:
                counts[kind] += part[kind] is not None
            at = part.end()
        try:
            compiled = re.compile(found, re.ASCII)
        except re.error as error:
            raise _refused(text, str(error)) from error
        return cls(compiled, counts["many"], counts["maybe"] + counts["either"])

    def is_in(self, value: str) -> bool:
        """Return True if it is found in a value; raises Refusal if that might take long."""
        if max(len(value), 1) ** (self._repetitions + 1) << self._choices > _MOST_STEPS:
            raise _refused(self._compiled.pattern, f"what may take long in {len(value)} characters")
        return self._compiled.search(value) is not None


def _refused(text: str, why: str) -> Refusal:
    return Refusal(Code.INVALID_ARGUMENT, f"regular expression {text!r}: {why}")
