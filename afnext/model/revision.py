"""Which training of a model a folder holds, told in a moment, and the same wherever the folder is copied."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from afnext.errors import CheckpointError

# Files that answers depend on, beside the weights.
BESIDE = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
SAMPLE = 64  # bytes of each tensor


def revision(folder: str | Path) -> str:
    """Twelve hexadecimal digits that another training of the model, or another quantization, changes.

    Of the weights the headers count and a few numbers from the middle of every tensor: what was trained on
    differs everywhere. A bit that flipped is not seen; ``verify`` sees it.

    Raises:
        CheckpointError: a file of weights cannot be read.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for name in BESIDE:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)};".encode() + content)
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name};".encode())
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = file.read(size)
                digest.update(header)
                for name, entry in sorted(json.loads(header).items()):
                    if name != "__metadata__":
                        begin, end = entry["data_offsets"]
                        file.seek(8 + size + (begin + end) // 2)
                        digest.update(file.read(min(SAMPLE, end - (begin + end) // 2)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return digest.hexdigest()[:12]
