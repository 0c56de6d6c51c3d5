"""A checkpoint as a model's folder: also of a run that was stopped, or is still going on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from afnext.errors import CheckpointError
from afnext.hub import find_model
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.training.network.lora import merged
from afnext.training.recipe import load_recipe
from afnext.training.run import kept_recipe
from afnext.training.run.checkpoints import CHECKPOINTS, newest, read
from afnext.training.run.export import model_config, save_model

TOKENIZER = "tokenizer"
"""Of a run's folder that began with no model."""
NET = "weights/net."


def export_checkpoint(source: Path, folder: Path) -> Path:
    """Write a model's folder as a run does at its end, with the weights of a checkpoint; adapters are merged.

    Args:
        source: a run's folder, of which the newest checkpoint is taken, or the folder of one.
        folder: a new one.

    Raises:
        CheckpointError: there is no checkpoint, it is broken, or its run's recipe or tokenizer is gone.
    """
    path = newest(source / CHECKPOINTS) if (source / CHECKPOINTS).is_dir() else source
    if path is None:
        raise CheckpointError(f"{source}: the run has kept no checkpoint yet")
    run = path.absolute().parent.parent
    said = run / kept_recipe.NAME
    if not said.is_file():
        raise CheckpointError(f"{path}: {said} is not there, which says what it is a checkpoint of")
    recipe = load_recipe(said)
    init = find_model(recipe.init) if recipe.init else None
    if init is not None:
        tokenizer = Tokenizer.from_file(str(init / "tokenizer.json"))
        net = AudioLanguageModel.from_pretrained(init, dtype=torch.float32)
    else:
        kept = run / TOKENIZER / "tokenizer.json"
        if not kept.is_file():
            raise CheckpointError(f"{path}: the run has no tokenizer at {kept}")
        tokenizer = Tokenizer.from_file(str(kept))
        net = AudioLanguageModel(ModelConfig.from_dict(model_config(recipe.model, tokenizer)))
    weights = {n.removeprefix(NET): w for n, w in read(path, NET).items()}
    try:
        net.load_state_dict(merged(weights, recipe.lora))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is of another network than its run's recipe says: {error}"
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_model(net, init, tokenizer, folder, recipe.export_dtype)
