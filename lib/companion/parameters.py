"""Parameters of chapters: what a notebook annotates, what a preset sets, and checks of both."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from companion.store import repository

#: the types that a parameters cell may annotate, by how they are written there
KINDS = {kind.__name__: kind for kind in (str, int, float, bool)}
KINDS |= {str(kind): kind for kind in (list[int], list[float], list[str], dict[str, int])}


def fits(value: Any, kind: Any) -> bool:
    """Say whether a value has an annotated type; an int passes for a float, nothing else does."""
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def preset_file(chapter: str, preset: str) -> Path:
    """Return the YAML file of a chapter's parameters at a preset."""
    return (repository() or Path()) / "notebooks" / "presets" / preset / f"{chapter}.yaml"


def at_preset(chapter: str, preset: str) -> dict:
    """Read a chapter's parameters at a preset: the laptop's, with what the preset changes."""
    found = {}
    for name in dict.fromkeys(("laptop", preset)):
        found |= yaml.safe_load(preset_file(chapter, name).read_text(encoding="utf-8"))
    return found
