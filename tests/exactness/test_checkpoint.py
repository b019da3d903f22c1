"""A checkpoint that is read from its files is the one that transformers reads, and a damaged one is refused by name."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_making import base_folder

from prefix_engine import load_base
from prefix_engine.base import from_transformers
from prefix_engine.checkpoint import CARRIED, BaseError
from prefix_engine.testing import base_over, tiny_model

SHAPE = {"layers": 2, "heads": 2, "width": 32, "positions": 64, "vocab": 300}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """In float32, as `save_pretrained` leaves it."""
    place = tmp_path_factory.mktemp("whole")
    base_folder(place, **SHAPE)
    return place


@pytest.fixture
def place(whole, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(whole, tmp_path / "tiny")


def read_by_transformers(place):
    from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: PLC0415 - slow

    model = GPT2LMHeadModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
    return from_transformers(str(place), model, AutoTokenizer.from_pretrained(place, use_fast=True), "cpu")


def changed(place, **config):
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def weights(place, change):
    path = place / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, {"format": "pt"})


def as_it_is(place):
    pass


def bfloat16(place):
    weights(place, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})


def with_head_and_masks(place):
    """As OpenAI's on the hub, and one whose head was saved beside the embedding."""

    def add(tensors):
        masks = len(tensors["transformer.wpe.weight"])
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, masks, masks).tril()
        tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
        return {name: tensor.half() for name, tensor in tensors.items()}

    weights(place, add)


def of_the_body(place):
    weights(place, lambda tensors: {n.removeprefix("transformer."): tensor for n, tensor in tensors.items()})


def without_what_has_defaults(place):
    path = place / "config.json"
    told = json.loads(path.read_text())
    for name in (
        "activation_function",
        "scale_attn_weights",
        "tie_word_embeddings",
        "layer_norm_epsilon",
        "n_inner",
    ):
        told.pop(name, None)
    path.write_text(json.dumps(told))


def in_several_files(place):
    from transformers import GPT2LMHeadModel  # noqa: PLC0415 - slow

    model = GPT2LMHeadModel.from_pretrained(place)
    (place / "model.safetensors").unlink()
    model.save_pretrained(place, max_shard_size="40KB")
    assert (place / "model.safetensors.index.json").is_file()


def with_vocabulary_and_merges(place):
    told = json.loads((place / "tokenizer.json").read_text())
    (place / "tokenizer.json").unlink()
    (place / "tokenizer_config.json").unlink()
    vocab = told["model"]["vocab"] | {"<|endoftext|>": 256}
    (place / "vocab.json").write_text(json.dumps(vocab))
    (place / "merges.txt").write_text("#version: 0.2\n")


def with_a_post_processor(place):
    path = place / "tokenizer.json"
    processor = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))


def with_tokenizer_config(place, **told):
    path = place / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def without_a_tokenizer_config(place):
    """So that transformers makes a GPT2Tokenizer."""
    (place / "tokenizer_config.json").unlink()


def of_the_class_gpt2_tokenizer(place):
    with_tokenizer_config(place, tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


def with_a_token_that_is_named_beside(place):
    with_tokenizer_config(place, pad_token="[PAD]")


def in_other_models_words(place):
    path = place / "config.json"
    told = json.loads(path.read_text())
    told |= {"num_attention_heads": 4, "num_hidden_layers": 1, "hidden_size": told.pop("n_embd")}
    path.write_text(json.dumps(told))


def with_the_head_alone(place):
    """As safetensors' save_model leaves two names of one tensor."""
    weights(place, lambda tensors: {n.replace("transformer.wte.", "lm_head."): t for n, t in tensors.items()})


def with_what_others_add(place):
    more = {"v_head.weight": torch.ones(3), "nothing": torch.zeros(0), "position_ids": torch.arange(64)}
    weights(place, lambda tensors: tensors | more)


def with_what_texts_were_cut_and_padded_to(place):
    """As `save_pretrained` leaves the tokenizer of who called it so last."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - beside what it is for

    path = str(place / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(path)


def with_a_gap_in_its_token_ids(place):
    path = place / "tokenizer.json"
    told = json.loads(path.read_text())
    told["model"]["vocab"]["ab"] = 290
    told["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(told))


FORMS = [
    as_it_is, bfloat16, with_head_and_masks, of_the_body, without_what_has_defaults, in_several_files,
    with_vocabulary_and_merges, with_a_post_processor, without_a_tokenizer_config, of_the_class_gpt2_tokenizer,
    with_a_token_that_is_named_beside, in_other_models_words, with_the_head_alone, with_what_others_add,
    with_what_texts_were_cut_and_padded_to, with_a_gap_in_its_token_ids,
]  # fmt: skip
UNSHARED = (in_several_files, in_other_models_words)
AS_IT_LIES = (
    as_it_is, of_the_body, with_the_head_alone, with_what_others_add, with_what_texts_were_cut_and_padded_to,
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_is_the_base_that_transformers_reads(form, place, cache):
    form(place)
    own, theirs = load_base(str(place), "cpu"), read_by_transformers(place)
    assert own.config == theirs.config
    for (name, one), (_, other) in zip(own.weights.named(), theirs.weights.named(), strict=True):
        assert one.dtype is torch.float32, name
        assert torch.equal(one, other), name
    assert own.fingerprint == theirs.fingerprint
    for text in ("é <|endoftext|> a", "abc"):
        assert own.tokenizer.encode(text) == theirs.tokenizer.encode(text)
        assert own.tokenizer.decode(own.tokenizer.encode(text)).removeprefix(" ") == text
    assert (own.mapping is None) == (form in UNSHARED)
    if form in AS_IT_LIES:
        assert not (cache / "prefixserve").exists()


def test_the_carried_base_is_the_one_that_transformers_reads():
    assert (
        load_base("gpt2-mini", "cpu").fingerprint == read_by_transformers(CARRIED / "gpt2-mini").fingerprint
    )


def test_a_name_on_the_hub_is_read_from_where_the_hub_s_library_keeps_it(whole, tmp_path):
    kept = tmp_path / "hub" / "models--acme--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(whole, kept / "snapshots" / ("0" * 40))
    # The hub's listing names more than was fetched, as when only the files that are needed were.
    files = {name: {"size": 1, "blob_id": "0"} for name in ("vocab.json", "merges.txt", "config.json")}
    (kept / "trees").mkdir()
    (kept / "trees" / f"{'0' * 40}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    program = "from prefix_engine import load_base; print(load_base('acme/tiny', 'cpu').fingerprint)"
    settings = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == load_base(str(whole), "cpu").fingerprint


def test_who_serves_or_trains_never_imports_transformers(whole):
    """Which would take longer than all else before the first token; see `prefix_engine.checkpoint`."""
    program = (
        "import sys; import service.start, trainer_worker.child; from prefix_engine import load_base\n"
        f"load_base({str(whole)!r}, 'cpu'); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def without_a_weight(place):
    weights(
        place, lambda t: {name: one for name, one in t.items() if name != "transformer.h.1.mlp.c_fc.bias"}
    )


def narrower(place):
    def cut(tensors):
        return tensors | {"transformer.wpe.weight": tensors["transformer.wpe.weight"][:32].clone()}

    weights(place, cut)


def a_weight_by_two_names(place):
    weights(place, lambda tensors: tensors | {"wte.weight": tensors["transformer.wte.weight"] + 1})


def a_head_of_its_own(place):
    def add(tensors):
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}

    weights(place, add)


def a_head_of_its_own_in_other_models_words(place):
    a_head_of_its_own(place)
    changed(place, hidden_size=SHAPE["width"])


def cut_off(place):
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def a_header_of_nonsense(place):
    (place / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def pickled_alone(place):
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def nothing_for_weights(place):
    (place / "model.safetensors").write_bytes(b"")


def a_broken_tokenizer(place):
    (place / "tokenizer.json").write_text("{}")


def a_broken_tokenizer_of_another_class(place):
    a_broken_tokenizer(place)
    (place / "tokenizer_config.json").unlink()


def tokens_of_nonsense(place):
    (place / "tokenizer.json").write_text('{"added_tokens": ["<|endoftext|>"]}')


def a_broken_config(place):
    (place / "config.json").write_text("{")


def a_list_for_a_config(place):
    (place / "config.json").write_text("[1]")


DAMAGES = [
    (without_a_weight, "no weight is named h.1.mlp.c_fc.bias"),
    (narrower, r"wpe.weight must be \[64, 32\] by config.json, it is \[32, 32\]"),
    (a_weight_by_two_names, "a weight has two names"),
    (a_head_of_its_own, "lm_head.weight must be the token embedding"),
    (a_head_of_its_own_in_other_models_words, "lm_head.weight must be the token embedding"),
    (cut_off, "no GPT-2 checkpoint in safetensors"),
    (a_header_of_nonsense, "no GPT-2 checkpoint in safetensors"),
    (nothing_for_weights, "no GPT-2 checkpoint in safetensors"),
    (pickled_alone, "no GPT-2 checkpoint in safetensors"),
    (a_broken_tokenizer, "tokenizer.json: "),
    (a_broken_tokenizer_of_another_class, "tokenizer.json: "),
    (tokens_of_nonsense, "tokenizer.json: "),
    (a_broken_config, "no GPT-2 checkpoint in safetensors"),
    (a_list_for_a_config, "no GPT-2 checkpoint in safetensors"),
    (lambda place: changed(place, model_type="llama"), "model_type must be gpt2"),
    (lambda place: changed(place, activation_function="relu"), "activation_function must be gelu_new"),
    (lambda place: changed(place, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    (lambda place: changed(place, tie_word_embeddings=False), "tie_word_embeddings must be true"),
    (lambda place: changed(place, eos_token_id=None), "eos_token_id must be set"),
    (lambda place: changed(place, n_head=3), r"n_embd \(32\) must be a multiple of n_head \(3\)"),
    (lambda place: changed(place, n_layer="2"), "n_layer must be a positive integer"),
    (lambda place: changed(place, n_head=True), "n_head must be a positive integer"),
    (lambda place: changed(place, layer_norm_epsilon="1e-5"), "layer_norm_epsilon must be a number"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_what_is_damaged_or_no_gpt2_is_refused_with_what_is_wrong(damage, told, place):
    damage(place)
    with pytest.raises(BaseError, match=told):
        load_base(str(place), "cpu")


def test_a_name_that_is_nowhere_is_refused(tmp_path):
    program = (
        "from prefix_engine.checkpoint import *\n"
        "for name in ('acme/absent', 'no such name', '../..'):\n"
        "    try: read_checkpoint(name, mapped=True)\n"
        "    except BaseError as error: print('refused', repr(str(error)))"
    )
    settings = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * 3
    assert "acme/absent" in done.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_format_is_taken_over_in_float32(dtype):
    base = base_over(tiny_model().to(dtype))
    assert {tensor.dtype for _, tensor in base.weights.named()} == {torch.float32}
    same = base_over(tiny_model().to(dtype).float())
    assert base.fingerprint == same.fingerprint
    for (_, one), (_, other) in zip(base.weights.named(), same.weights.named(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("end", [-1, 300, 50256])
def test_an_end_token_that_the_vocabulary_lacks_is_refused(end, place):
    changed(place, eos_token_id=end)
    with pytest.raises(BaseError, match=r"eos_token_id .* must be less than vocab_size \(300\)"):
        load_base(str(place), "cpu")


def unpacked(cache):
    (copy,) = (cache / "prefixserve").glob("base-*")
    return copy


@pytest.mark.parametrize("spoil", [lambda copy: copy.chmod(0o664), lambda copy: copy.chmod(0o602)])
def test_an_unpacked_copy_that_others_may_write_is_made_anew(spoil, place, cache):
    bfloat16(place)
    load_base(str(place), "cpu")
    before = unpacked(cache).stat()
    assert not before.st_mode & 0o022
    spoil(unpacked(cache))
    assert load_base(str(place), "cpu").mapping is not None
    after = unpacked(cache).stat()
    assert not after.st_mode & 0o022
    assert after.st_ino != before.st_ino


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_an_unpacked_copy_of_somebody_else_is_made_anew(place, cache):
    bfloat16(place)
    load_base(str(place), "cpu")
    copy, before = unpacked(cache), unpacked(cache).stat().st_ino
    os.chown(copy, 12345, -1)
    assert load_base(str(place), "cpu").mapping is not None
    assert (copy.stat().st_uid, copy.stat().st_ino != before) == (0, True)


@pytest.mark.parametrize(
    ("device", "told"), [("cuda", "finds no CUDA device"), ("gpu", "knows no device 'gpu'")]
)
def test_a_device_that_is_not_there_is_named(device, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BaseError, match=f"PREFIX_DEVICE.*{told}"):
        load_base(CARRIED / "gpt2-mini", device)
