"""The frozen base of a real training process: a read-only mapping of one file, which others on the machine share."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_making import base_folder, order

from prefix_engine import Engine, EngineConfig, load_base
from trainer_worker.child_process import Child

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
SHAPE = {"layers": 3, "heads": 4, "width": 128, "positions": 256, "vocab": 4000}  # 4.5 MB in float32
LONG = {"max_steps": 1_000_000, "eval_steps": 1_000_000}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefixserve"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The same numbers in float32, and in float16 as the carried base has them."""
    from transformers import GPT2LMHeadModel  # noqa: PLC0415 - slow

    whole, half = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("half")
    shutil.copytree(base_folder(whole, **SHAPE), half, dirs_exist_ok=True)
    GPT2LMHeadModel.from_pretrained(whole, dtype=torch.float16).save_pretrained(half)
    return {"float32": whole, "float16": half}


def mapped(pid, path):
    """Permissions, and bytes of each kind, of a process's mapping of a file; its parts added up."""
    kinds, rights, inside = {}, set(), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1] == str(path)
            rights |= {words[1]} if inside else set()
        elif inside and words[-1] == "kB":
            kinds[words[0][:-1]] = kinds.get(words[0][:-1], 0) + 1024 * int(words[1])
    return rights, kinds


def next_update(child):
    while (frame := child.hear(30)) is None or frame.kind != "progress":
        pass
    return frame.fields["update"]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_training_process_reads_its_weights_out_of_the_file_that_others_map_too(kind, checkpoints, cache):
    base = load_base(str(checkpoints[kind]), "cpu")
    path = checkpoints[kind] / "model.safetensors" if kind == "float32" else next(cache.glob("base-*"))
    weights = sum(tensor.nbytes for _, tensor in base.weights.named())
    with Child(order(wishes=LONG).frames(str(checkpoints[kind]), base.fingerprint, 1)) as child:
        begun = next_update(child)
        Path(f"/proc/{child.pid}/clear_refs").write_text("1")
        while next_update(child) < begun + 5:
            pass
        rights, found = mapped(child.pid, path)
    assert rights == {"r--s"}
    assert found["Anonymous"] == 0
    assert (
        found["Shared_Clean"] + found["Shared_Dirty"] >= 0.95 * weights
    )  # dirty: written to disk a little later
    assert found["Pss"] <= 0.55 * found["Rss"]
    # A copy would leave the file unread from here on. Of the embeddings only rows that occur are read, and the head.
    assert found["Referenced"] >= 0.8 * weights


def test_who_writes_to_the_weights_ends_and_changes_nothing(checkpoints):
    place = str(checkpoints["float32"])
    before = (checkpoints["float32"] / "model.safetensors").read_bytes()
    write = f"from prefix_engine import load_base; load_base({place!r}, 'cpu').weights.tokens.fill_(1.0)"
    done = subprocess.run([sys.executable, "-c", write], stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert (checkpoints["float32"] / "model.safetensors").read_bytes() == before


def test_an_engine_that_has_packed_the_weights_keeps_none_of_their_pages(checkpoints):
    base = load_base(str(checkpoints["float32"]), "cpu")
    path = checkpoints["float32"] / "model.safetensors"
    assert mapped("self", path)[1]["Rss"] > 0
    Engine(base, EngineConfig(), lambda _: pytest.fail("nothing is loaded"))
    assert mapped("self", path)[1]["Rss"] == 0
    assert torch.isfinite(base.weights.tokens).all()


def test_all_formats_of_a_checkpoint_unpack_to_the_numbers_that_transformers_reads(checkpoints):
    from transformers import GPT2LMHeadModel  # noqa: PLC0415 - slow

    for place in checkpoints.values():
        base = load_base(str(place), "cpu")
        assert base.mapping is not None
        model = GPT2LMHeadModel.from_pretrained(place, dtype=torch.float32)
        assert torch.equal(base.weights.tokens, model.lm_head.weight)
        assert torch.equal(base.weights.layers[2].mlp_out_weight, model.transformer.h[2].mlp.c_proj.weight)


def test_a_checkpoint_of_the_body_alone_is_mapped_as_it_lies(checkpoints, tmp_path, cache):
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - beside the others

    place = shutil.copytree(checkpoints["float32"], tmp_path / "body")
    tensors = load_file(place / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    save_file(renamed, place / "model.safetensors", {"format": "pt"})
    base = load_base(str(place), "cpu")
    assert base.fingerprint == load_base(str(checkpoints["float32"]), "cpu").fingerprint
    assert mapped("self", place / "model.safetensors")[0] == {"r--s"}
    assert not cache.exists()


@pytest.mark.parametrize("spoil", ["others may write", "another's numbers", "cut off"])
def test_a_copy_that_cannot_be_trusted_is_not_used(spoil, checkpoints, cache, caplog):
    place = str(checkpoints["float16"])
    good = load_base(place, "cpu")
    (copy,) = cache.glob("base-*")
    if spoil == "others may write":
        cache.chmod(0o777)
    elif spoil == "another's numbers":
        numbers = bytearray(copy.read_bytes())
        numbers[-2] ^= 0x40
        renewed(copy, bytes(numbers))
    else:
        renewed(copy, copy.read_bytes()[:-4096])
    with caplog.at_level(logging.WARNING):
        found = load_base(place, "cpu")
    if spoil == "others may write":
        assert found.mapping is None
        assert "base.not_shared" in caplog.text
    else:  # made anew
        assert found.mapping is not None
        assert [path.name for path in cache.glob("*")] == [copy.name]
        assert load_base(place, "cpu").mapping is not None
    assert found.fingerprint == good.fingerprint
    for (_, one), (_, other) in zip(found.weights.named(), good.weights.named(), strict=True):
        assert torch.equal(one, other)


def test_what_a_killed_process_left_half_made_goes_when_the_next_makes_something(checkpoints, cache):
    cache.mkdir(mode=0o700, parents=True)
    left, fresh = (cache / f"making-{name}" for name in ("left", "fresh"))
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    load_base(str(checkpoints["float16"]), "cpu")
    assert {path.name for path in cache.iterdir()} == {fresh.name, next(cache.glob("base-*")).name}


def renewed(path, content):
    """In place of a file that is mapped, never into it."""
    other = path.with_name("renewed")
    other.write_bytes(content)
    other.replace(path)
