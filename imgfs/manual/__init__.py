"""The user's and the developer's book: Markdown files in the package, shown by `imgfs help TOPIC`.

A topic is a file's name. Its first line is its title; the title of each topic is listed by `imgfs help`.
"""

from __future__ import annotations

from importlib.resources import files

# In the order of the list: what a user needs first.
TOPICS = (
    "installing",
    "questions",
    "mounting",
    "looking",
    "python",
    "configuration",
    "registries",
    "scratch",
    "store",
    "indexes",
    "containers",
    "engines",
    "kubernetes",
    "drivers",
    "monitoring",
    "security",
    "images",
    "limits",
    "speed",
    "internals",
    "contributing",
    "changelog",
)


def text(topic: str) -> str:
    """Return a topic's Markdown; raises KeyError if there is no such topic."""
    if topic not in TOPICS:
        raise KeyError(topic)
    return (files(__name__) / f"{topic}.md").read_text(encoding="utf-8")


def title(topic: str) -> str:
    """Return the title of a topic."""
    return text(topic).partition("\n")[0].removeprefix("# ")
