"""YAML as people write it: a key that is there twice is a mistake, and a date is a text.

This module imports no torch.
"""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["YAMLError", "parse_yaml"]

YAMLError = yaml.YAMLError
_DATE = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"
# By libyaml where it is there: ten times as fast, and every command reads manifests.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """The safe loader, without dates, which no setting is, and with unique keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != _DATE]
        for first, found in _Safe.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: list[Any] = []
        for key, _ in node.value:
            name = None if key.tag == _MERGE else self.construct_object(key, deep=True)
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is there twice", key.start_mark
                )
            seen.append(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text, by the safe loader.

    Raises:
        YAMLError: not YAML, or a mapping with one key twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
