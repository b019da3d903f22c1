"""The kernels as they are compiled for narrower vectors than this machine may have: AVX2's, and any processor's.

Each form in a process of its own, since a process loads its kernels once.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from mixes import RowPlan, forced
from oracle import answer

from prefix_engine import EngineConfig
from prefix_engine.testing import base_over, tiny_model

HERE = Path(__file__).resolve().parent
ASKED = (
    "test_a_small_mix_has_the_logits_that_its_rows_have_alone or several_tasks or alone_has_the_bits"
    " or neighbours_prefix or not_finite or same_bits_alone or packed_products or compiled_attention_equals"
    " or best_of_a_row or all_blocks_in_one_call or compiled_norm or compiled_kernels_draw or drawn_together"
    " or never_drawn or drawn_from_alike or drawn_from_nothing or points_at_both_ends or wanted_hidden"
)
RUN = """
import sys, pytest
from prefix_engine.native.library import load
assert load().panel_width() == int(sys.argv[1]), load().panel_width()
sys.exit(pytest.main(["-q", "-x", "-k", sys.argv[2], "-p", "no:cacheprovider", *sys.argv[3:]]))
"""


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT asks transformers by the old name
)
def test_a_small_mix_has_the_logits_that_its_rows_have_alone(tally):
    model = tiny_model(layers=2, heads=2, width=40, positions=640, spread=0.3, seed=4)
    base = base_over(model)
    prompts = [
        tuple(range(n, n + length)) for n, length in ((1, 1), (2, 9), (3, 40), (5, 150), (7, 33), (9, 2))
    ]
    rows = [
        RowPlan(m, m == 45, 0, prompt, 4, place, None)
        for place, (m, prompt) in enumerate(zip((0, 3, 45, 45, 3, 0), prompts, strict=True))
    ]
    config = EngineConfig(rows=4, kv_bytes=8 << 20, pool_bytes=1 << 20, chunk_tokens=140, kernels="native")
    answers = [answer(model, row.prefix(base), row.prompt, row.count) for row in rows]
    compared = list(forced(base, rows, config, answers))
    for expected, logits, tokens in compared:
        tally.compare(expected, logits, tokens)
    assert len(compared) == len(rows)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of compilers for x86-64")
@pytest.mark.parametrize(("flag", "panel"), [("-mno-avx512f", 24), ("-mno-avx2", 12)])
def test_kernels_for_narrower_vectors_are_as_exact(flag, panel, tmp_path):
    names = ("test_kernels.py", "test_kernel_forms.py", "../unit/engine/test_nucleus.py")
    files = [str(HERE / name) for name in names]
    settings = {"CC": f"cc {flag}", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(panel), ASKED, *files],
        env=os.environ | settings,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
