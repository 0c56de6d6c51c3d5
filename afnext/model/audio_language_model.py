"""The whole model: audio in, text logits out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .adapter import merge_adapter
from .adaptor import Adaptor
from .audio_batch import AudioBatch
from .config import ModelConfig
from .decoder import DecoderOutput, LanguageModel
from .encoder import AudioEncoder, sinusoids
from .rote import RotaryTimeEmbedding


class AudioLanguageModel(nn.Module):
    """Encoder, adaptor and decoder; the names of its parameters are those on disk.

    Weights are random until loaded: normal with deviation 0.02, Whisper's sinusoids as positions.

    Attributes:
        config: geometry.
        generation_config: what the folder's ``generation_config.json`` holds, or None.
    """

    generation_config: dict[str, Any] | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = AudioEncoder(config.audio)
        self.rote = RotaryTimeEmbedding(
            config.rote, config.audio.hidden_size, config.audio.window_tokens
        )
        self.multi_modal_projector = Adaptor(config)
        self.language_model = LanguageModel(config.text)
        if not self.audio_tower.embed_positions.weight.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        table = self.audio_tower.embed_positions.weight
        table.copy_(sinusoids(*table.shape))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        integers_alone: bool | str = False,
        adapter: str | Path | None = None,
    ) -> AudioLanguageModel:
        """Read a folder in transformers' layout, ``musicflamingo`` or ``audioflamingo3``.

        Weights stay memory-mapped where dtype and device match the file's. Pickle is never read and
        no code of the folder is run.

        Args:
            folder: holds ``config.json`` and ``model.safetensors``, or shards with their index.
            dtype: float32 or bfloat16; by default the file's (float32 for one in float16).
            device: where the weights go.
            integers_alone: weights that the folder holds as integers stay so, for the engine alone: the
                network's own parameters of them have no values. By default they have, in ``dtype``. A text
                is the beginning of the names of those that stay so.
            adapter: a folder with a LoRA adapter, to be merged into the weights; see ``merge_adapter``.

        Raises:
            CheckpointError: when something is missing, corrupt, mis-shaped or impossible.
        """
        config = ModelConfig.from_folder(folder)
        weights = checkpoint.Weights.open(folder)
        with torch.device("meta"):
            model = cls(config)
        weights.load_into(
            model, dtype=dtype, device=torch.device(device), integers_alone=integers_alone
        )
        if adapter is not None:
            merge_adapter(model, adapter)
        model.generation_config = checkpoint.read_json(Path(folder) / "generation_config.json")
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, *, max_shard_bytes: int = checkpoint.SHARD_BYTES
    ) -> None:
        """Write a folder that transformers loads back bit-equal; nothing is left half-written.

        Args:
            folder: created if need be; its model files are replaced.
            max_shard_bytes: weights beyond this are cut into several files with an index.
        """
        checkpoint.save(self, folder, max_shard_bytes)

    def encode(self, audio: AudioBatch) -> Tensor:
        """Audio tokens of a batch, packed in its order: ``[audio.num_tokens, text hidden]``."""
        device = self.multi_modal_projector.linear_2.weight.device
        if audio.features.device != device:
            audio = audio.to(device)
        pieces = []
        for plan in audio.plans:
            features = self.audio_tower(audio.features[plan.frames], plan)
            features = self.rote(features, plan.window_start, plan.token_index)
            pieces.append(self.multi_modal_projector(features))
        if pieces:
            return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        weight = self.multi_modal_projector.linear_2.weight
        return weight.new_zeros(0, weight.shape[0])

    def embed(
        self,
        input_ids: Tensor,
        audio: AudioBatch | None = None,
        inputs_embeds: Tensor | None = None,
        encode: Callable[[AudioBatch], Tensor] | None = None,
    ) -> Tensor:
        """Token embeddings ``[B, S, hidden]`` with audio tokens in place of ``<sound>``.

        ``encode`` stands in for the model's own ``encode``.

        Raises:
            ValueError: when a row's placeholders and audio tokens differ in number.
        """
        if inputs_embeds is None:
            inputs_embeds = self.language_model.model.embed_tokens(input_ids)
        placeholders = input_ids == self.config.audio_token_id
        self._check_placeholders(placeholders, audio)
        if audio is None or audio.num_tokens == 0:
            return inputs_embeds
        tokens = (encode or self.encode)(audio).to(inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(placeholders[..., None], tokens)

    def _check_placeholders(self, placeholders: Tensor, audio: AudioBatch | None) -> None:
        rows = placeholders.shape[0]
        wanted = audio.row_tokens if audio is not None else (0,) * rows
        if len(wanted) != rows:
            raise ValueError(f"audio holds {len(wanted)} rows, input_ids {rows}")
        if torch.compiler.is_compiling():
            return
        for row, (found, expected) in enumerate(
            zip(placeholders.sum(-1).tolist(), wanted, strict=True)
        ):
            if found != expected:
                raise ValueError(
                    f"input_ids: row {row} has {found} <sound> placeholders (token "
                    f"{self.config.audio_token_id}) but its audio makes {expected} tokens"
                )

    def forward(
        self,
        input_ids: Tensor | None,
        audio: AudioBatch | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Tensor | DecoderOutput:
        """Logits of every position.

        Args:
            input_ids: int64 ``[B, S]``; may be None where ``inputs_embeds`` is given without audio.
            audio: of the same rows, with as many tokens as a row has ``<sound>`` placeholders.
            attention_mask: ``[B, S]`` nonzero where valid, padding left or right; or bool
                ``[B, 1, S, S]`` (see ``LanguageModel.forward``).
            position_ids: int ``[B, S]``; by default 0, 1, ... over each row's valid tokens.
            inputs_embeds: ``[B, S, hidden]``, instead of the embeddings of ``input_ids``.
            output_hidden_states: return ``DecoderOutput`` instead of logits.

        Returns:
            ``[B, S, vocab]``.

        Raises:
            ValueError: naming the argument that is missing or does not fit.
        """
        if input_ids is not None:
            if input_ids.dim() != 2 or input_ids.shape[1] == 0:
                raise ValueError(f"input_ids must be [B, S], got {list(input_ids.shape)}")
            inputs_embeds = self.embed(input_ids, audio, inputs_embeds)
        elif inputs_embeds is None:
            raise ValueError("give input_ids or inputs_embeds")
        elif audio is not None:
            raise ValueError("inputs_embeds with audio needs input_ids, to say where it goes")
        return self.language_model(
            inputs_embeds, position_ids, attention_mask, output_hidden_states=output_hidden_states
        )
