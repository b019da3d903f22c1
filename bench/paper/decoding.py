"""Texts by transformers' `generate`, greedily or by beams, behind whatever a method puts before the answer.

Inputs of like length share a batch; keys and values of the prompt are computed once and repeated for the beams.
Line breaks are never written, by no method: the paper's code bans GPT-2's tokens 198 and 628, which are those.
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from bench.paper.beams import roomy
from bench.paper.host import Host
from bench.paper.methods.method import Method

BATCH = 32  # prompts at once; what is in a batch changes no text


def write(
    method: Method,
    prompts: Sequence[str],
    *,
    beams: int,
    most: int,
    batch: int = BATCH,
    line_breaks: bool = False,
) -> list[str]:
    """One text for each prompt, in order.

    Args:
        method: that writes.
        prompts: that it reads.
        beams: 1 is greedy.
        most: tokens of a text; fewer where the base has no more positions.
        batch: prompts at once.
        line_breaks: let it write them.
    """
    host = method.host
    ids = [host.template.prompt_ids(host.base.tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    found = [""] * len(ids)
    method.model.eval()
    never = [] if line_breaks else banned(host)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        texts = _batch(method, [ids[place] for place in places], beams, most, never)
        for place, text in zip(places, texts, strict=True):
            found[place] = text
    return found


def banned(host: Host) -> list[int]:
    """Tokens of one and of two line breaks, where each is one token."""
    breaks = (host.encode("\n"), host.encode("\n\n"))
    return [ids[0] for ids in breaks if len(ids) == 1]


@torch.no_grad()
def _batch(
    method: Method, ids: Sequence[Sequence[int]], beams: int, most: int, never: Sequence[int]
) -> list[str]:
    host, end = method.host, method.host.template.end_id
    context = method.context([row[:-1] for row in ids])
    rows, slots = context.mask.shape
    room = method.model.config.n_positions - int(context.place.max()) - 1
    tokens = max(1, min(most, room))
    cache = roomy(context.cache(method.model), beams, tokens)
    last = torch.tensor([row[-1] for row in ids], device=host.device)[:, None]
    written = method.model.generate(
        # generate wants an id for each slot of the cache; it reads none of these, only the last token
        input_ids=torch.cat([last.new_full((rows, slots), end), last], 1),
        attention_mask=torch.cat([context.mask, context.mask.new_ones(rows, 1)], 1),
        position_ids=torch.cat([last.new_zeros(rows, slots), context.place[:, None]], 1),
        past_key_values=cache,
        generation_config=GenerationConfig(
            max_new_tokens=tokens,
            num_beams=beams,
            do_sample=False,
            suppress_tokens=list(never) or None,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=end,
        ),
    )
    return [_text(host, row[slots + 1 :].tolist()) for row in written]


def _text(host: Host, tokens: list[int]) -> str:
    end = host.template.end_id
    cut = tokens.index(end) if end in tokens else len(tokens)
    return host.base.tokenizer.decode(tokens[:cut]).strip()
