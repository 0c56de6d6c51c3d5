"""Folders: both layouts in, transformers' layout out, bit for bit; whatever is wrong is one clear line."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from afnext.errors import CheckpointError
from afnext.hub import find_model
from afnext.model import AudioConfig, AudioLanguageModel, ModelConfig, TextConfig, checkpoint

HEAD, EMBEDDING = checkpoint.HEAD, checkpoint.EMBEDDING


@pytest.fixture
def folder(flamingo: Any, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(flamingo.folder, tmp_path / "model")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def test_names_on_disk_are_ours(pair: Any) -> None:
    stored = load_file(pair.folder / "model.safetensors")
    assert same(dict(pair.ours.state_dict()), stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [checkpoint.SHARD_BYTES, 300_000])
def test_transformers_loads_ours_bit_equal(
    pair: Any, tmp_path: Path, dtype: torch.dtype, shard_bytes: int
) -> None:
    ours = AudioLanguageModel.from_pretrained(pair.folder, dtype=dtype)
    ours.save_pretrained(tmp_path / "out", max_shard_bytes=shard_bytes)
    sharded = (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert sharded == (shard_bytes < checkpoint.SHARD_BYTES)
    theirs, report = type(pair.theirs).from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == dtype
    reference = {k: v.to(dtype) for k, v in pair.theirs.state_dict().items()}
    assert same(dict(theirs.state_dict()), reference)
    assert same(
        dict(AudioLanguageModel.from_pretrained(tmp_path / "out").state_dict()),
        dict(ours.state_dict()),
    )
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_names_of_transformers_in_memory(pair: Any, tmp_path: Path) -> None:
    shutil.copy(pair.folder / "config.json", tmp_path)
    state = {k: v.clone() for k, v in pair.theirs.state_dict().items()}
    assert "model.language_model.layers.0.mlp.up_proj.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    loaded = AudioLanguageModel.from_pretrained(tmp_path)
    assert same(dict(loaded.state_dict()), dict(pair.ours.state_dict()))


def test_strays_are_named_and_ignored(folder: Path, flamingo: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["audio_tower.pos_emb.freqs"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"audio_tower\.pos_emb\.freqs"):
        loaded = AudioLanguageModel.from_pretrained(folder)
    assert same(dict(loaded.state_dict()), dict(flamingo.ours.state_dict()))


def test_nothing_is_warned_of_a_clean_folder(flamingo: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AudioLanguageModel.from_pretrained(flamingo.folder)


def test_float16_becomes_float32(folder: Path) -> None:
    tensors = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    loaded = AudioLanguageModel.from_pretrained(folder)
    assert same(dict(loaded.state_dict()), {k: v.float() for k, v in tensors.items()})


def test_tied_head(folder: Path, flamingo: Any, tmp_path: Path) -> None:
    """A tied model shares one weight, stores two (transformers never ties here) and stays tied."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="ties lm_head"):
        untied = AudioLanguageModel.from_pretrained(folder)
    assert torch.equal(untied.language_model.lm_head.weight, flamingo.ours.state_dict()[HEAD])
    tensors = load_file(folder / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, folder / "model.safetensors")
    tied = AudioLanguageModel.from_pretrained(folder)
    assert tied.language_model.lm_head.weight is tied.language_model.model.embed_tokens.weight
    tied.save_pretrained(tmp_path / "out")
    theirs = type(flamingo.theirs).from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(tied(ids), theirs(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    again = AudioLanguageModel.from_pretrained(tmp_path / "out")
    assert again.language_model.lm_head.weight is again.language_model.model.embed_tokens.weight


def test_missing_and_mis_shaped_are_errors(folder: Path) -> None:
    good = load_file(folder / "model.safetensors")
    bad = {k: v for k, v in good.items() if "layers.1.mlp" not in k}
    save_file(bad, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\.mlp\.down_proj\.weight"):
        AudioLanguageModel.from_pretrained(folder)
    name = "multi_modal_projector.linear_1.bias"
    save_file({**good, name: torch.zeros(7)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} is \[7\], config.json asks for \[256\]"):
        AudioLanguageModel.from_pretrained(folder)
    save_file({**good, name: torch.zeros(256, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} has dtype I8"):
        AudioLanguageModel.from_pretrained(folder)
    save_file({**good, "model." + name: torch.zeros(256)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} is stored twice"):
        AudioLanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 5000, 0.5, 0.999])
def test_truncated(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        AudioLanguageModel.from_pretrained(folder)


def entry(shape: list[int], end: int, dtype: str = "F32", start: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"a": 1}',
        json.dumps({"a": entry([10**12, 10**12], 8)}).encode(),
        json.dumps({"a": entry([2], 10**15)}).encode(),
        json.dumps({"a": entry([2], -8)}).encode(),
        json.dumps({"a": entry([4], 8)}).encode(),
        json.dumps({"a": entry([2], 8, "F1")}).encode(),
        json.dumps({"a": entry([2], 8), "b": entry([2], 8)}).encode(),
        json.dumps({"a": entry([1], 5, start=1)}).encode(),
        b"\xff" * 64,
    ],
)
def test_hostile_headers(folder: Path, header: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError):
        AudioLanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 1, 10**12, 2**63, 2**64 - 1])
def test_absurd_header_length(folder: Path, size: int) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + bytes(100))
    with pytest.raises(CheckpointError, match="truncated"):
        AudioLanguageModel.from_pretrained(folder)


def test_misaligned_weights_still_load(folder: Path, flamingo: Any) -> None:
    """Nothing in the format makes a writer align; such weights are read or refused, never garbled."""
    tensors = load_file(folder / "model.safetensors")
    body, header, at = b"", {"pad": entry([1], 1, "U8")}, 1
    body = b"\0"
    for name, t in tensors.items():
        raw = t.numpy().tobytes()
        header[name] = entry(list(t.shape), at + len(raw), "F32", at)
        body, at = body + raw, at + len(raw)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = AudioLanguageModel.from_pretrained(folder)
        except CheckpointError:
            return
    assert same(dict(loaded.state_dict()), dict(flamingo.ours.state_dict()))


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../model-1.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "weights.bin"}}',
        '{"weight_map": {"a": 7}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
        '{"weight_map": {"a": "present.safetensors"}}',
    ],
)
def test_hostile_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "present.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError):
        AudioLanguageModel.from_pretrained(folder)


def test_pickle_and_remote_code_are_never_touched(folder: Path, flamingo: Any) -> None:
    trap = folder / "sprung"
    code = f"open({str(trap)!r}, 'w').write('x')\n"
    (folder / "modeling_trap.py").write_text(code)
    (folder / "sitecustomize.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_trap.Trap", "AutoConfig": "modeling_trap.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    AudioLanguageModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> Any:
            return exec, (code,)

    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never loaded"):
        AudioLanguageModel.from_pretrained(folder)
    assert not trap.exists()


def test_a_failed_save_leaves_the_old_folder(
    folder: Path, flamingo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        flamingo.ours.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_saving_over_itself(folder: Path, flamingo: Any) -> None:
    """The mapped file is replaced, not overwritten; shards and single file supersede each other."""
    net = AudioLanguageModel.from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    net.save_pretrained(folder, max_shard_bytes=300_000)
    assert not (folder / "model.safetensors").exists()
    assert same(dict(net.state_dict()), dict(flamingo.ours.state_dict()))
    net.save_pretrained(folder)
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.json", "digests.json", "generation_config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    again = AudioLanguageModel.from_pretrained(folder)
    assert same(dict(again.state_dict()), dict(flamingo.ours.state_dict()))


MEASURE = """
import sys, torch
from afnext.model import AudioLanguageModel

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * next(int(l.split()[1]) for l in status if l.startswith("RssAnon"))

import threading, time
peak, stop = 0, False
def watch():
    global peak
    while not stop:
        peak = max(peak, anonymous())
        time.sleep(0.001)

AudioLanguageModel.from_pretrained(sys.argv[3])  # what torch imports on first use is not counted
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
net = AudioLanguageModel.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
held = sum(p.nbytes for p in net.parameters())
touched = sum(float(p.float().sum()) for p in net.language_model.model.norm.parameters())
stop = True
thread.join()
print(max(peak, anonymous()) - before, held)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB of float32."""
    folder = tmp_path_factory.mktemp("large")
    text = TextConfig(
        vocab_size=5000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, head_dim=128,
    )  # fmt: skip
    audio = AudioConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=2)
    config = ModelConfig(
        text=text, audio=audio, audio_token_id=1, audio_bos_token_id=2, audio_eos_token_id=3
    )
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in AudioLanguageModel(config).state_dict().items()}
    save_file({k: torch.rand(v) for k, v in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.15), ("bfloat16", 1.15)])
def test_memory(large: Path, dtype: str, limit: float) -> None:
    """Mapped as they are, weights cost next to nothing; converted, at most 1.15 times what is held
    (anonymous memory; the mapped file is page cache).
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), dtype, str(find_model("nano"))],
        capture_output=True,
        text=True,
        check=True,
    )
    used, held = map(int, done.stdout.split())
    assert held > (250e6 if dtype == "float32" else 125e6)
    assert used <= limit * held
