"""llama.cpp on the same decoder, in a process of its own; needs the packages llama_cpp and gguf.

The files that it reads are written here: the weights of a model of ours as BF16, Q8_0 or Q4_0.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afnext.model import AudioLanguageModel

from .released import NO_AUDIO, geometry, random_model

FORMATS = {None: "BF16", "int8": "Q8_0", "int4": "Q4_0"}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def installed() -> bool:
    """Whether llama.cpp can run here."""
    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def write_gguf(path: Path, net: AudioLanguageModel, quantization: str | None) -> None:
    """Write the decoder of ``net``; every layer gets the first one's weights, which are random anyway."""
    from gguf import GGMLQuantizationType, GGUFWriter

    text = net.config.text
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(names: Sequence[str], weight: Any, format: str) -> None:
        exact = weight.detach().float().numpy()
        if exact.ndim == 1:
            for name in names:
                writer.add_tensor(name, exact)
            return
        kind = GGMLQuantizationType[format]
        data = _rounded(exact, kind)
        for name in names:
            writer.add_tensor(name, data, raw_dtype=kind)

    model, format = net.language_model.model, FORMATS[quantization]
    add(["token_embd.weight"], model.embed_tokens.weight, "BF16")
    add(["output_norm.weight"], model.norm.weight, "F32")
    # As with ours, four bits are for the layers alone.
    add(["output.weight"], net.language_model.lm_head.weight, "Q8_0" if quantization else format)
    for name, parameter in model.layers[0].named_parameters():
        module, _, kind = name.rpartition(".")
        layers = range(text.num_hidden_layers)
        add([f"blk.{i}.{NAMES[module]}.{kind}" for i in layers], parameter, format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rounded(weight: NDArray[np.float32], kind: Any) -> NDArray[Any]:
    """The weight in blocks of ``kind``, some rows at a time: gguf's own code takes much memory."""
    from gguf.quants import quantize

    return np.concatenate(
        [quantize(weight[i : i + 1024], kind) for i in range(0, len(weight), 1024)]
    )


class LlamaCpp:
    """One step of a model, over and over, in a process of its own; a context manager.

    Args:
        net: whose decoder it runs.
        quantization: None, "int8" or "int4": BF16, Q8_0 or Q4_0.
        ids: the tokens of the step.
        context: how many others the cache holds before it.
        threads: how many compute.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        quantization: str | None,
        ids: Sequence[int],
        context: int,
        threads: int,
    ) -> None:
        self._held = ExitStack()
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        path, small = folder / "model.gguf", folder / "small.gguf"
        write_gguf(path, net, quantization)
        write_gguf(small, _same_cache(net), None)
        spawn = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(theirs, path, small, list(ids), context, threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._held.callback(self._stop)
        self._pipe.recv()
        path.unlink()  # mapped by now

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _stop(self) -> None:
        self._pipe.close()
        self._process.join()

    def __call__(self) -> None:
        """The step."""
        self._pipe.send("run")
        self._pipe.recv()

    def logits(self) -> Tensor:
        """``[vocab]``, of the last token."""
        self._pipe.send("logits")
        return torch.from_numpy(self._pipe.recv())


def _same_cache(net: AudioLanguageModel) -> AudioLanguageModel:
    """A model of next to no size whose cache has the shape of ``net``'s: to fill it in a moment."""
    text = net.config.text
    heads = text.num_key_value_heads
    small = replace(
        text,
        hidden_size=heads * text.head_dim,
        num_attention_heads=heads,
        intermediate_size=64,
        vocab_size=1024,
    )
    return random_model(geometry(small, NO_AUDIO))


def _serve(
    pipe: Connection, path: Path, small: Path, ids: list[int], context: int, threads: int
) -> None:
    """The child: one word in, one answer out, until the pipe closes."""
    tokens = context + len(ids)
    model = _Context(path, tokens, threads)
    if context:
        filled = _Context(small, tokens, threads)
        filled.run([token % 1000 for token in range(context)])
        model.restore(filled.save(small.with_suffix(".state")))
    pipe.send(None)
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        if what == "run":
            model.forget(context)
            model.run(ids)
        pipe.send(model.logits() if what == "logits" else None)


class _Context:
    """A model file and one sequence, through llama.cpp's C interface."""

    def __init__(self, path: Path, tokens: int, threads: int) -> None:
        import llama_cpp

        self.c: Any = llama_cpp
        llama_cpp.llama_log_set(_silent(), ctypes.c_void_p())
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = tokens
        params.n_threads = params.n_threads_batch = threads
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp does not read {path}")
        self.memory = llama_cpp.llama_get_memory(self.context)

    def run(self, ids: list[int]) -> None:
        """Append tokens; logits of all of them.

        With those of the last one alone, the last layer would skip most of its work on the others.
        """
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = self.c.llama_batch_get_one(tokens, len(ids))
        wanted = (ctypes.c_int8 * len(ids))(*([1] * len(ids)))
        batch.logits = ctypes.cast(wanted, type(batch.logits))
        if self.c.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp: llama_decode failed")
        self.c.llama_synchronize(self.context)

    def forget(self, length: int) -> None:
        """Keep that many tokens."""
        self.c.llama_memory_seq_rm(self.memory, 0, length, -1)

    def logits(self) -> NDArray[np.float32]:
        """Of the last token."""
        size = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))
        pointer = self.c.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (size,)).copy()

    def save(self, path: Path) -> Path:
        """The cache as a file; the model is freed."""
        self.c.llama_state_seq_save_file(
            self.context, str(path).encode(), 0, (ctypes.c_int32 * 1)(), 0
        )
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)
        return path

    def restore(self, path: Path) -> None:
        """Take a saved cache."""
        count = ctypes.c_size_t()
        found = self.c.llama_state_seq_load_file(
            self.context, str(path).encode(), 0, (ctypes.c_int32 * 1)(), 1, ctypes.byref(count)
        )
        if not found:
            raise RuntimeError("llama.cpp does not take the cache")


@cache
def _silent() -> Any:
    """A log callback that says nothing; it must live as long as llama.cpp does."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)
