"""The optimiser: torch's AdamW bit for bit, without what importing that brings."""

import subprocess
import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_worker.adam import AdamW

TESTS = str(Path(__file__).parents[2])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(1e-6, 1.0), st.integers(0, 15)), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.integers(0, 2**31),
)
def test_it_moves_parameters_as_torchs_class_does(shapes, updates, weight_decay, seed):
    """An update is its learning rate, and bits that say which parameters have no gradient."""
    generator = torch.Generator().manual_seed(seed)
    own = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [parameter.detach().clone().requires_grad_() for parameter in own]
    optimizer = AdamW(own, weight_decay)
    reference = torch.optim.AdamW(theirs, weight_decay=weight_decay, fused=True)
    for rate, without in updates:
        for place, (one, other) in enumerate(zip(own, theirs, strict=True)):
            if not without >> place & 1:
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.step(rate)
        reference.step()
        optimizer.forget_gradients()
        reference.zero_grad()
        assert all(parameter.grad is None for parameter in own)
        for one, other in zip(own, theirs, strict=True):
            assert torch.equal(one, other)


def test_a_training_imports_neither_transformers_nor_torchs_compiler():
    """They would take most of the time that a process needs to start, and 225 MB."""
    program = (
        f"import sys; sys.path.append({TESTS!r}); import trainer_worker.child; from prefix_engine import load_base\n"
        "from trainer_making import order, train, dataset\n"
        "trained = train(load_base('gpt2-mini', 'cpu'), order(dataset(12, 0), wishes={'max_steps': 2, 'eval_steps': 1}))\n"
        "print([name for name in ('torch._dynamo', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
