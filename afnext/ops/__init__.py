"""Fast ops for audio language models: C++ kernels on CPU, plain torch where there are none.

Torch tensors or NumPy arrays in, the same out: the first argument decides, and beside a tensor the others
must be tensors, too. Shapes are tokens first; every op's docstring gives its contract, and
``afnext.ops.reference`` states each one in a few lines of torch.
"""

from ._library import force_reference
from .all_to_all import all_to_all_pack, all_to_all_unpack
from .attention import attention
from .decoder import Decoder, DecoderLayer
from .layer_norm import layer_norm
from .linear import linear
from .log_mel import log_mel
from .merge_attention import merge_attention
from .pack import PackedWeight, pack
from .packed_file import fingerprint, load_packed, save_packed
from .paged_append import paged_append
from .paged_attention import paged_attention
from .paged_plan import PagedAttentionPlan
from .quantize import QuantizedWeight, quantize
from .rms_norm import rms_norm
from .rotate import Rotation, rotate
from .sample import sample
from .silu_mul import silu_mul

__all__ = [
    "Decoder",
    "DecoderLayer",
    "PackedWeight",
    "PagedAttentionPlan",
    "QuantizedWeight",
    "Rotation",
    "all_to_all_pack",
    "all_to_all_unpack",
    "attention",
    "fingerprint",
    "force_reference",
    "layer_norm",
    "linear",
    "load_packed",
    "log_mel",
    "merge_attention",
    "pack",
    "paged_append",
    "paged_attention",
    "quantize",
    "rms_norm",
    "rotate",
    "sample",
    "save_packed",
    "silu_mul",
]
