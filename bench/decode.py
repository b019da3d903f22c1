"""Decode speed of mixed prefixes: this engine, transformers with stacked prefixes, PEFT one by one.

One random GPT-2 of the 124M shape, one distinct random prefix a request, greedy, the same number of new
tokens for all. The contestants take turns within each round of one process; compare the ratios, which
hold on a busy machine, rather than the tokens a second. Every round checks that all chose the same tokens.
A matrix product of fixed size is timed before each turn; turns where it took over 1.3 times its usual
time are reported as disturbed.

Run: python bench/decode.py [--requests 32 --m 10 --prompt 64 --new 32 --rounds 3 --peft-requests 8]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import DynamicCache
from transformers.utils.logging import set_verbosity_error

from prefix_engine import Engine, EngineConfig, Request
from prefix_engine.testing import Collected, base_over, random_prefix, tiny_model

Tokens = list[list[int]]


def main() -> None:
    args = arguments()
    set_verbosity_error()
    warnings.simplefilter("ignore")
    model = tiny_model(layers=12, heads=12, width=768, positions=1024, vocab=50257, spread=0.02)
    base = base_over(model, "gpt2-random")
    prefixes = {f"p{i}": random_prefix(base, args.m, seed=i, spread=0.5) for i in range(args.requests)}
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(50256, (args.requests, args.prompt), generator=generator)
    engine = Engine(
        base, EngineConfig(rows=args.requests, step_tokens=args.step_tokens), prefixes.__getitem__
    )
    engine.start()
    contestants: dict[str, Callable[[], Tokens]] = {
        "engine": lambda: run_engine(engine, prefixes, prompts, args.new),
        "transformers": lambda: run_transformers(model, list(prefixes.values()), prompts, args.new),
    }
    if args.peft_requests:
        peft = with_peft(model, prefixes)
        few = prompts[: args.peft_requests]
        contestants["peft"] = lambda: run_peft(peft, list(prefixes), few, args.new)
    speeds = compare(contestants, args)
    report(speeds, args)
    if args.profile:
        profile(contestants["engine"])
    engine.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--m", type=int, default=10, help="positions of each prefix")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft-requests", type=int, default=8, help="of the requests; 0 leaves PEFT out")
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--profile", action="store_true", help="profile one more round of the engine")
    return parser.parse_args()


def run_engine(engine, prefixes, prompts, new) -> Tokens:
    sinks = []
    for prefix_id, prompt in zip(prefixes, prompts.tolist(), strict=True):
        sinks.append(Collected())
        engine.submit(Request(tuple(prompt), new, None, prefix_id=prefix_id), sinks[-1])
    for sink in sinks:
        sink.wait(600)
    return [list(sink.tokens) for sink in sinks]


def run_transformers(model, prefixes, prompts, new) -> Tokens:
    """One static batch; generate wants ids for the cached positions too, and never reads them."""
    stacked = torch.stack([prefix.tensor for prefix in prefixes])
    cache, m = DynamicCache(), stacked.shape[4]
    for layer in range(stacked.shape[1]):
        cache.update(stacked[:, layer, 0], stacked[:, layer, 1], layer)
    dummy = torch.zeros(len(prompts), m, dtype=torch.long)
    ids = torch.cat([dummy, prompts], 1)
    out = generate(model, ids, new, past_key_values=cache)
    return out[:, ids.shape[1] :].tolist()


def with_peft(model, prefixes):
    config, peft = model.config, None
    for name, prefix in prefixes.items():
        settings = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=prefix.m,
            token_dim=config.n_embd,
            num_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_transformer_submodules=1,
            inference_mode=True,
        )
        if peft is None:
            peft = get_peft_model(model, settings, adapter_name=name)
        else:
            peft.add_adapter(name, settings)
        peft.prompt_encoder[name].embedding.weight.data.copy_(prefix.to_peft())
    return peft.eval()


def run_peft(peft, names, prompts, new) -> Tokens:
    tokens = []
    for name, prompt in zip(names, prompts, strict=False):
        peft.set_adapter(name)
        tokens += generate(peft, prompt[None], new)[:, len(prompt) :].tolist()
    return tokens


def generate(model, ids, new, **more):
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )


def compare(contestants, args) -> dict[str, list[float]]:
    """Tokens a second of each contestant in each round, after one round to warm up."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    usual = min(calibrate() for _ in range(5))
    for number in range(args.rounds + 1):
        answers = {}
        for name, contestant in contestants.items():
            calibration = calibrate() / usual
            start = time.perf_counter()
            with torch.no_grad():
                answers[name] = contestant()
            seconds = time.perf_counter() - start
            speed = sum(map(len, answers[name])) / seconds
            disturbed = "  disturbed" if calibration > 1.3 else ""
            print(f"round {number}  {name:14}{speed:8.1f} tokens/s  {seconds:6.2f} s{disturbed}")
            if number:
                speeds[name].append(speed)
        for name, tokens in answers.items():
            same = sum(a == b for a, b in zip(tokens, answers["engine"], strict=False))
            print(f"round {number}  {name:14}{same} of {len(tokens)} texts equal the engine's")
    return speeds


def calibrate() -> float:
    a = torch.ones(768, 3072)
    start = time.perf_counter()
    for _ in range(10):
        torch.ones(256, 768) @ a
    return time.perf_counter() - start


def report(speeds, args) -> None:
    print(
        f"\n{args.requests} requests, {args.requests} prefixes of m={args.m}, prompt {args.prompt}, {args.new} new, "
        f"fp32, {torch.get_num_threads()} threads, {args.rounds} rounds; PEFT on {args.peft_requests} of them"
    )
    for name, values in speeds.items():
        ratios = [mine / other for mine, other in zip(speeds["engine"], values, strict=True)]
        print(
            f"{name:14}{statistics.median(values):8.1f} tokens/s median; the engine is "
            f"{statistics.median(ratios):5.2f} times as fast ({min(ratios):.2f}..{max(ratios):.2f})"
        )


def profile(run: Callable[[], Tokens]) -> None:
    from torch.profiler import ProfilerActivity  # noqa: PLC0415 - only for this option
    from torch.profiler import profile as torch_profile  # noqa: PLC0415

    with torch_profile(activities=[ProfilerActivity.CPU], experimental_config=None) as found:
        run()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))


if __name__ == "__main__":
    main()
