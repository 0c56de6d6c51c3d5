"""The conversation: messages, the chat template, the tokenizer, variants, thinking and timestamps.

Importing this package loads neither torch, jinja2 nor tokenizers.
"""

from afnext.chat.messages import Message, as_messages
from afnext.chat.prompt import AudioSpan, PromptIds, build_prompt
from afnext.chat.streaming import StreamDecoder
from afnext.chat.subtitles import to_srt, to_vtt
from afnext.chat.template import ChatTemplate, render
from afnext.chat.thinking import ThinkingSplitter, split_thinking
from afnext.chat.timestamps import Segment, parse_timestamps
from afnext.chat.tokenizer import Tokenizer
from afnext.chat.variants import (
    TASKS,
    VARIANTS,
    Sampling,
    Variant,
    detect_variant,
    get_variant,
)

__all__ = [
    "TASKS",
    "VARIANTS",
    "AudioSpan",
    "ChatTemplate",
    "Message",
    "PromptIds",
    "Sampling",
    "Segment",
    "StreamDecoder",
    "ThinkingSplitter",
    "Tokenizer",
    "Variant",
    "as_messages",
    "build_prompt",
    "detect_variant",
    "get_variant",
    "parse_timestamps",
    "render",
    "split_thinking",
    "to_srt",
    "to_vtt",
]
