"""Small text files of a model folder, read with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afnext.errors import ChatError

MAX_JSON_BYTES = 64 << 20


def read_text(path: Path, limit: int) -> str | None:
    """The text of a file, or None where there is none.

    Raises:
        ChatError: more than ``limit`` bytes, not UTF-8, or not readable.
    """
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > limit:
            raise ChatError(f"{path} is larger than {limit:,} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ChatError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ChatError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file.

    Raises:
        ChatError: the file cannot be read or holds no JSON object.
    """
    text = read_text(path, MAX_JSON_BYTES)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ChatError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
