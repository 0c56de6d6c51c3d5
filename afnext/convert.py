"""Write a model folder anew: another dtype, weights in fewer bits, other shards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .errors import AudioError, AudioWarning, CheckpointError
from .hub import copy_companions, find_adapter, find_model

if TYPE_CHECKING:
    from torch import Tensor

    from .assistant import Assistant

# What the model is asked about recordings that it is calibrated on, as far as it was trained for it.
CALIBRATION_TASKS = ("caption", "transcribe", "timestamps")
CALIBRATION_SECONDS, CALIBRATION_TOKENS = 60.0, 128


def convert(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    calibrate: Sequence[str | Path] = (),
    adapter: str | Path | None = None,
    told: Callable[[str, float], None] = lambda what, share: None,
) -> Path:
    """Write a model in another dtype, or in fewer bits, with its tokenizer and templates.

    Args:
        model: "nano", a folder, or a Hugging Face id. Of a quantised one, the numbers are written that its
            integers stand for. Or a training run's folder, or that of one of its checkpoints: its newest
            weights, also where it was stopped or goes on.
        out: a folder that does not exist yet, or is empty.
        dtype: "float32" or "bfloat16"; by default the model's own.
        quantization: "int8" or "int4": weights of linear layers become integers with scales, as
            ``ops.QuantizedWeight.tensors`` names them; ``dtype`` is that of the rest. Or "fp8", for CUDA
            alone: the decoder's, in 8 bits of floating point.
        calibrate: for int4: recordings like those that the model is for, each used up to its first minute.
            The decoder's layers are then rounded so that what they put out about these changes least. Those
            that cannot be used are left out, with an ``AudioWarning``.
        adapter: a folder with a LoRA adapter over the model, or a Hugging Face id of one: merged first.
        told: of what is done, and its share.

    Returns:
        ``out``; in the layout that transformers reads where there is no ``quantization``. Where there is, and
        the model is large, its weights are also in afnext's cache as this machine's kernels read them.

    Raises:
        CheckpointError: the model cannot be read, or ``out`` is in use.
        AudioError: no recording can be used; what is wrong with the last.
        ValueError: an unknown dtype or quantization, or ``calibrate`` with another than int4.
    """
    from .assistant import DTYPES
    from .chat.variants import detect_variant, mark_variant
    from .engine.packed import FORMATS, require_stored
    from .engine.quantize_network import quantize_network
    from .model import AudioLanguageModel
    from .model.checkpoint import read_json
    from .model.quantized import forget_in, kept_in

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if quantization is not None:
        require_stored(quantization)
    if calibrate and quantization != "int4":
        raise ValueError(f"calibrate: is for quantization int4, got {quantization}")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already; give a new folder")
    if _is_trained(run := Path(model).expanduser()):
        from .training.run.export_checkpoint import export_checkpoint

        if dtype is quantization is adapter is None:
            return export_checkpoint(run, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            made = export_checkpoint(run, Path(beside) / "model")
            return convert(
                made, out, dtype=dtype, quantization=quantization, calibrate=calibrate,
                adapter=adapter, told=told,
            )  # fmt: skip
    source = find_model(model)
    added = None if adapter is None else find_adapter(adapter)
    net = AudioLanguageModel.from_pretrained(
        source, dtype=DTYPES[dtype] if dtype else None, adapter=added
    )
    if quantization is not None:
        if kept_in(net):
            raise CheckpointError(f"{source}: is quantised already; convert the model it came from")
        heard = _conversations(source, added, calibrate, told) if calibrate else ()
        quantize_network(
            net, quantization, heard, lambda share: told("rounding", share), integers_alone=True
        )
    else:
        forget_in(net)  # transformers cannot read integers
    net.save_pretrained(target)
    mark_variant(target, detect_variant(source, read_json(source / "config.json")).name)
    copy_companions(source, target)
    if quantization in FORMATS:
        del net
        _keep_packed(target, quantization)
    return target


def _is_trained(folder: Path) -> bool:
    """Whether it is a training run's, or one of its checkpoints."""
    if (folder / "config.json").exists():
        return False
    return (folder / "checkpoints").is_dir() or (folder / "progress.json").is_file()


def _keep_packed(folder: Path, quantization: str) -> None:
    """Have the weights as this machine's kernels read them, so that the first load maps them, too."""
    from .cache import cache_root
    from .engine.packed import PackedModel
    from .engine.packed_cache import PackedCache
    from .model import AudioLanguageModel

    if (root := cache_root()) is None:
        return
    net = AudioLanguageModel.from_pretrained(folder, integers_alone=True)
    dtype, files = net.language_model.lm_head.weight.dtype, sorted(folder.glob("*.safetensors"))
    PackedModel(net, quantization, PackedCache(files, quantization, dtype, root))


def _conversations(
    source: Path,
    adapter: Path | None,
    recordings: Sequence[str | Path],
    told: Callable[[str, float], None],
) -> list[Tensor]:
    """Embeddings of what the model is asked about recordings, and of what it answers."""
    from .assistant import Assistant

    assistant = Assistant.from_folder(source, adapter=adapter)
    prompts = [
        assistant.variant.prompts[t] for t in CALIBRATION_TASKS if t in assistant.variant.prompts
    ]
    found: list[Tensor] = []
    broken: list[AudioError] = []
    for index, recording in enumerate(recordings):
        told(f"listening to {Path(recording).name}", index / len(recordings))
        try:
            found += [_conversation(assistant, recording, prompt) for prompt in prompts]
        except AudioError as error:
            broken.append(error)
    if broken and not found:
        raise broken[-1]
    for reason in broken:
        warnings.warn(f"not calibrated on: {reason}", AudioWarning, stacklevel=3)
    return found


def _conversation(assistant: Assistant, recording: str | Path, question: str) -> Tensor:
    import torch

    from .audio import load
    from .chat import Message, build_prompt
    from .model import AudioBatch

    windows = load(recording, max_seconds=CALIBRATION_SECONDS, truncate=True)
    message = Message("user", question, recording)
    ids = build_prompt([message], [windows], assistant.tokenizer, assistant.template).ids
    reply = assistant.reply(
        message, max_seconds=CALIBRATION_SECONDS, truncate=True, max_tokens=CALIBRATION_TOKENS
    )
    answer = [*assistant.tokenizer.encode_plain(reply.text), min(assistant.tokenizer.eos_ids)]
    with torch.no_grad():
        tokens = torch.tensor([[*ids, *answer]])
        return assistant.net.embed(tokens, AudioBatch.collate([windows]))[0]
