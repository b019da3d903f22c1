"""Decode steps as CUDA graphs: one for each bucket of rows and blocks, recorded when it is first needed.

On a CPU the same function on the same buffers runs as it stands; the exactness suite tests it there.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prefix_engine.cuda import Recorder, Staging
from prefix_engine.fixed import Bucket, Buckets, Inputs, blocks_of, decode_step, numbers_of
from prefix_engine.gpt2 import Network
from prefix_engine.kv import PagedMemory
from prefix_engine.pages import pages_for
from prefix_engine.prefix import LONGEST
from prefix_engine.sequence import Sequence

log = logging.getLogger(__name__)


class GraphedDecode:
    """The model over one token of each of at most `rows` rows.

    Steps with a chunk of a prompt do not come here: their shapes hardly repeat, and a second pass for the
    decode rows beside the chunk would read all weights twice.
    """

    def __init__(self, network: Network, memory: PagedMemory, rows: int) -> None:
        self._network, self._memory = network, memory
        blocks = pages_for(network.config.positions, memory.page) + pages_for(LONGEST, memory.page)
        self._buckets = Buckets(rows, blocks)
        self._staging = Staging(self._buckets.largest.numbers, network.device)
        self._recorder = Recorder(network.device)
        self._graphs: dict[Bucket, Callable[[], None]] = {}
        # Outside the pool that the graphs share, so that no other graph's run overwrites it.
        self._logits = torch.zeros(rows, network.config.vocab, device=network.device)

    @property
    def buckets(self) -> int:
        """Shapes that have come up so far."""
        return len(self._graphs)

    def __call__(self, sequences: tuple[Sequence, ...]) -> Tensor:
        """Logits `[rows, vocab]` of the next token of each row; overwritten by the next call.

        The rows' keys and values are in memory afterwards.
        """
        blocks = max(blocks_of(sequence, self._memory.page) for sequence in sequences)
        bucket = self._buckets.holding(len(sequences), blocks)
        self._staging.send(numbers_of(sequences, bucket, self._memory))
        if bucket not in self._graphs:
            self._graphs[bucket] = self._recorder.record(partial(self._run, bucket))
            log.debug("graphs.recorded rows=%d blocks=%d", bucket.rows, bucket.blocks)
        self._graphs[bucket]()
        return self._logits[: len(sequences)]

    def _run(self, bucket: Bucket) -> None:
        inputs = Inputs.of(self._staging.device, bucket)
        self._logits[: bucket.rows].copy_(decode_step(self._network, self._memory, inputs))
