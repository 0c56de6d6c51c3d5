"""Where models come from: the one in the wheel, folders, and the Hugging Face hub."""

from __future__ import annotations

import json
import re
import shutil
from os import PathLike
from pathlib import Path

from .errors import CheckpointError
from .model.config import ADAPTER_FILES, adapter_of_run, model_of_run

EMBEDDED = {"nano": Path(__file__).parent / "assets" / "nano"}

# Only what a model needs; weights as safetensors alone, never pickles or code.
PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "README.md")
# What stands beside the weights and is true of whatever is made of them.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_model(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        source: "nano", a folder, or a hub id such as ``nvidia/audio-flamingo-next-hf``. A hub id is
            looked up in the local cache first and downloaded when it is not there and the network is.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: there is no such model, or it is neither cached nor reachable.
    """
    if not isinstance(source, str | PathLike):
        got = type(source).__name__
        raise CheckpointError(f"model: must be a name, a folder or a hub id, got {got}")
    if str(source) in EMBEDDED:
        return EMBEDDED[str(source)]
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and (made := model_of_run(path)):
            raise CheckpointError(f"model {source}: is a run's folder; its model is {made}")
        return path
    if path.exists():
        raise CheckpointError(f"model {source}: is a file; give the folder that holds it")
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        names = ", ".join(EMBEDDED)
        raise CheckpointError(
            f"model {source}: no such folder (models that come with afnext: {names}; hub ids look "
            "like nvidia/audio-flamingo-next-hf)"
        )
    return _cached_or_pulled(source, revision)


def _cached_or_pulled(source: str, revision: str | None) -> Path:
    cached = _snapshot(source, revision, offline=True)
    return cached if cached is not None else pull(source, revision=revision)


def find_adapter(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a LoRA adapter: a folder, the folder of a run that trained one, or a hub id.

    Raises:
        CheckpointError: there is none, or it is neither cached nor reachable.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        made = adapter_of_run(path)
        return made if made.is_dir() else path
    if path.exists() or not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"adapter {source}: no such folder, nor a hub id")
    return _cached_or_pulled(source, revision)


def pull(source: str, *, revision: str | None = None) -> Path:
    """Download a hub model into the local cache, or bring it up to date; the folder it is in.

    ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_ENDPOINT`` are honoured.

    Raises:
        CheckpointError: no such model, no access, no network, or offline mode without a cached copy.
    """
    if source in EMBEDDED:
        return EMBEDDED[source]
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"model {source}: a hub id looks like nvidia/audio-flamingo-next-hf")
    folder = _snapshot(source, revision, offline=False)
    assert folder is not None
    return folder


def _snapshot(source: str, revision: str | None, *, offline: bool) -> Path | None:
    """The hub's snapshot; None where ``offline`` and not cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(PATTERNS),
                local_files_only=offline or is_offline_mode(),
            )
        )
    except GatedRepoError:
        reason = "access must be granted first: accept its terms on the hub, then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private (set HF_TOKEN)"
    except RevisionNotFoundError:
        reason = f"the hub has no revision {revision}"
    except LocalEntryNotFoundError:
        if offline:
            return None
        if is_offline_mode():
            reason = "is not in the local cache, and HF_HUB_OFFLINE is set"
        else:
            reason = (
                "is not in the local cache, and the hub cannot be reached: check the network, or "
                "copy the model's folder here and give its path"
            )
    except (HfHubHTTPError, OSError) as error:
        reason = f"download failed ({type(error).__name__}); run it again to resume"
    else:
        if _complete(folder):
            return folder
        if offline:
            return None  # a download that was cut short
        if not is_offline_mode():
            return folder  # what the hub has: whoever reads it says what it lacks
        reason = "is in the local cache in part, and HF_HUB_OFFLINE is set"
    raise CheckpointError(f"model {source}: {reason}")


def _complete(folder: Path) -> bool:
    """Whether a snapshot has all that a model needs, or an adapter."""
    if all((folder / name).is_file() for name in ADAPTER_FILES):
        return True
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():  # a shard alone may have come before it
        return (folder / "model.safetensors").is_file()
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError):
        return True  # whoever reads it says what is wrong
    return all((folder / str(file)).is_file() for file in files)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what a model made of another one shares with it: tokenizer, template, preprocessing."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
