"""YAML documents, as programs in Go read them: a name that a mapping has twice is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yaml.nodes import Node


def parse_yaml(body: bytes) -> object:
    """Return the document; raises ValueError, with the line, or RecursionError."""
    import yaml  # here: few commands meet such a file

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(body)
        try:
            document = loader.get_single_node()
            _check_names(document)
            found: object = None if document is None else loader.construct_document(document)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"no YAML{where}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {str(error).partition(chr(10))[0]}") from error
    return found


def _check_names(document: Node | None) -> None:
    """Raise ValueError for a mapping that has a name twice; an alias is looked at once."""
    from yaml.nodes import CollectionNode, MappingNode, ScalarNode

    seen: set[int] = set()
    pending: list[object] = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, tuple):  # a name and its value
            pending += node
        elif isinstance(node, CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            pending += node.value
            names = [name for name, _ in node.value] if isinstance(node, MappingNode) else []
            texts = set()
            for name in (name for name in names if isinstance(name, ScalarNode)):
                if (name.tag, name.value) in texts:
                    where = f", line {name.start_mark.line + 1}" if name.start_mark else ""
                    raise ValueError(f"no YAML{where}: {name.value!r:.60} is there twice")
                texts.add((name.tag, name.value))
