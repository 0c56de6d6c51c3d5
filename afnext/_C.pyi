"""The compiled module, as the stub sees it. Use ``afnext.ops``, which checks and allocates.

Tensors are torch tensors or anything that speaks DLPack; outputs come last and are written in place.
Every function raises ``ValueError`` naming the argument that does not fit.
"""

from typing import Any

__version__: str
has_cuda: bool

_Tensor = Any

def isa() -> str: ...
def detected_isa() -> str: ...
def compiled_isas(op: str, /) -> list[str]: ...
def can_run(isa: str, /) -> bool: ...
def set_isa(name: str, /) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int, /) -> None: ...
def empty(*tensors: _Tensor) -> None: ...
def peak_read(buffer: _Tensor, /) -> int: ...
def peak_arithmetic(dtype: str, operands: _Tensor, steps: int, /) -> float: ...
def log_mel(
    samples: _Tensor, cu_samples: list[int], frames: list[int], out: _Tensor, /
) -> None: ...
def rotate(
    x: _Tensor,
    times: _Tensor | None,
    inv_freq: _Tensor | None,
    angles: _Tensor | None,
    interleaved: bool,
    inverse: bool,
    out: _Tensor,
    /,
) -> None: ...
def all_to_all_pack(
    x: _Tensor,
    head_offsets: list[int],
    heads: list[int],
    out: _Tensor | None,
    peers: list[int],
    first_token: int,
    /,
) -> None: ...
def all_to_all_unpack(
    x: _Tensor | None,
    head_offsets: list[int],
    heads: list[int],
    out: _Tensor,
    peers: list[int],
    first_token: int,
    /,
) -> None: ...
def attention(
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    cu_seqlens_q: _Tensor | None,
    cu_seqlens_k: _Tensor | None,
    key_lengths: _Tensor | None,
    times_q: _Tensor | None,
    times_k: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    out: _Tensor,
    lse: _Tensor,
    /,
) -> None: ...
def attention_tiles(
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    cu_seqlens_q: _Tensor | None,
    cu_seqlens_k: _Tensor | None,
    key_lengths: _Tensor | None,
    times_q: _Tensor | None,
    times_k: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    out: _Tensor,
    lse: _Tensor,
    /,
) -> None: ...
def attention_backward(
    grad_out: _Tensor,
    grad_lse: _Tensor | None,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    out: _Tensor,
    lse: _Tensor,
    cu_seqlens_q: _Tensor | None,
    cu_seqlens_k: _Tensor | None,
    key_lengths: _Tensor | None,
    times_q: _Tensor | None,
    times_k: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    grad_q: _Tensor,
    grad_k: _Tensor,
    grad_v: _Tensor,
    /,
) -> None: ...
def attention_backward_tiles(
    grad_out: _Tensor,
    grad_lse: _Tensor | None,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    out: _Tensor,
    lse: _Tensor,
    cu_seqlens_q: _Tensor | None,
    cu_seqlens_k: _Tensor | None,
    key_lengths: _Tensor | None,
    times_q: _Tensor | None,
    times_k: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    grad_q: _Tensor,
    grad_k: _Tensor,
    grad_v: _Tensor,
    /,
) -> None: ...
def merge_attention(
    out_a: _Tensor,
    lse_a: _Tensor,
    out_b: _Tensor,
    lse_b: _Tensor,
    out: _Tensor,
    lse: _Tensor,
    /,
) -> None: ...
def paged_append(
    k: _Tensor,
    v: _Tensor,
    k_pages: _Tensor,
    v_pages: _Tensor,
    page_table: _Tensor,
    cu_seqlens: _Tensor,
    start: _Tensor,
    times: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    k_scales: _Tensor | None,
    v_scales: _Tensor | None,
    /,
) -> None: ...
def paged_attention(
    q: _Tensor,
    k_pages: _Tensor,
    v_pages: _Tensor,
    page_table: _Tensor,
    cu_seqlens_q: _Tensor,
    kv_lengths: _Tensor,
    times: _Tensor | None,
    inv_freq: _Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    k_scales: _Tensor | None,
    v_scales: _Tensor | None,
    out: _Tensor,
    lse: _Tensor,
    /,
) -> None: ...
def linear(x: _Tensor, weight: _Tensor, bias: _Tensor | None, out: _Tensor, /) -> None: ...
def linear_tiles(x: _Tensor, weight: _Tensor, bias: _Tensor | None, out: _Tensor, /) -> None: ...
def layer_norm(
    x: _Tensor,
    weight: _Tensor,
    bias: _Tensor,
    eps: float,
    pooled: _Tensor | None,
    out: _Tensor,
    /,
) -> None: ...
def packed_bytes(format: str, n: int, k: int, gate_up: bool, cuda: bool, /) -> int: ...
def pack(weight: _Tensor, format: str, gate_up: bool, data: _Tensor, /) -> None: ...
def expect_huge_pages(data: _Tensor, /) -> None: ...
def pack_quantized(
    values: _Tensor,
    scales: _Tensor,
    zeros: _Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    data: _Tensor,
    /,
) -> None: ...
def unpack(data: _Tensor, format: str, n: int, k: int, gate_up: bool, out: _Tensor, /) -> None: ...
def packed_linear(
    x: _Tensor,
    data: _Tensor,
    bias: _Tensor | None,
    residual: _Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
    out: _Tensor,
    /,
) -> None: ...
def packed_linear_tiles(
    x: _Tensor,
    data: _Tensor,
    bias: _Tensor | None,
    residual: _Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
    out: _Tensor,
    /,
) -> None: ...
def quantize(
    weight: _Tensor, format: str, values: _Tensor, scales: _Tensor, zeros: _Tensor | None, /
) -> None: ...
def rms_norm(
    x: _Tensor,
    residual: _Tensor | None,
    weight: _Tensor,
    eps: float,
    out: _Tensor,
    total: _Tensor | None,
    /,
) -> None: ...
def sample(
    logits: _Tensor,
    temperature: _Tensor,
    top_k: _Tensor,
    top_p: _Tensor,
    min_p: _Tensor,
    uniform: _Tensor,
    tokens: _Tensor,
    logprobs: _Tensor,
    /,
) -> None: ...
def silu_mul(gate: _Tensor, up: _Tensor, out: _Tensor, /) -> None: ...

class PagedAttentionPlan:
    def __init__(
        self,
        k_pages: _Tensor,
        heads: int,
        requests: int,
        pages: int,
        queries: int,
        tokens: int,
        splits: int,
        causal: bool,
        window_left: int,
        window_right: int,
        /,
    ) -> None: ...
    def update(
        self, k_pages: _Tensor, page_table: _Tensor, cu_seqlens: _Tensor, kv_lengths: _Tensor, /
    ) -> None: ...
    def append(
        self,
        k: _Tensor,
        v: _Tensor,
        k_pages: _Tensor,
        v_pages: _Tensor,
        times: _Tensor | None,
        inv_freq: _Tensor | None,
        interleaved: bool,
        k_scales: _Tensor | None,
        v_scales: _Tensor | None,
        /,
    ) -> None: ...
    def attend(
        self,
        q: _Tensor,
        k_pages: _Tensor,
        v_pages: _Tensor,
        times: _Tensor | None,
        inv_freq: _Tensor | None,
        interleaved: bool,
        scale: float,
        k_scales: _Tensor | None,
        v_scales: _Tensor | None,
        out: _Tensor,
        lse: _Tensor,
        /,
    ) -> None: ...
    def check(self, k_pages: _Tensor, /) -> None: ...
    def words(self) -> tuple[int, int]: ...

class Decoder:
    def __init__(
        self,
        layers: list[_Tensor],
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        inv_freq: _Tensor,
        /,
    ) -> None: ...
    def run(
        self,
        hidden: _Tensor,
        k_pages: list[_Tensor],
        v_pages: list[_Tensor],
        k_scales: list[_Tensor],
        v_scales: list[_Tensor],
        page_table: _Tensor,
        cu_seqlens: _Tensor,
        start: _Tensor,
        /,
    ) -> None: ...
