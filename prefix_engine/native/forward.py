"""All blocks of a network in one call of the compiled kernels: `gpt2.hidden_states` without Python between its parts."""

import ctypes
from typing import ClassVar, cast

import torch
from torch import Tensor

from prefix_engine.gpt2 import Network
from prefix_engine.native.attention import PagedAttention
from prefix_engine.native.floats import float32, floats
from prefix_engine.native.linear import PackedInt8, PackedLinear
from prefix_engine.native.norm import NativeNorm

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
PARTS = ("products", "attention", "norms", "rest")


class _Matrix(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _LONG) for name in ("inputs", "outputs")),
        *((name, _POINTER) for name in ("packed", "bias", "scales", "sums")),
    ]


class _Norm(ctypes.Structure):
    _fields_: ClassVar = [("weight", _POINTER), ("bias", _POINTER)]


class _Block(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _Norm) for name in ("ln_1", "ln_2")),
        *((name, _Matrix) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")),
    ]


class _Model(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _LONG) for name in ("layers", "width", "heads", "head_dim", "vocab", "context")),
        ("eps", ctypes.c_float),
        *((name, _POINTER) for name in ("tokens", "positions", "blocks")),
        ("ln_f", _Norm),
    ]


class _Memory(ctypes.Structure):
    _fields_: ClassVar = [
        ("content", _POINTER),
        *((name, _LONG) for name in ("stride", "page", "bf16")),
        *((name, _POINTER) for name in ("tables", "tokens", "tasks")),
        ("count", _LONG),
    ]


class Forward:
    """See `kernels.Forward`; for one thread at a time.

    Attributes:
        spent: nanoseconds that the last call took for each of `PARTS`.
    """

    def __init__(self, library: ctypes.CDLL, network: Network) -> None:
        """For a network whose norms and matrices the compiled kernels made."""
        self._library = library
        self._network = network  # holds the memory that the structures below point into
        self._tables = [float32(table).contiguous() for table in (network.tokens, network.positions)]
        config = network.config
        self._blocks = (_Block * config.layers)(
            *(
                _Block(
                    *(_norm(norm) for norm in (block.ln_1, block.ln_2)),
                    *map(_matrix, (block.qkv, block.attention_out, block.mlp_in, block.mlp_out)),
                )
                for block in network.blocks
            )
        )
        self._model = _Model(
            *(config.layers, config.width, config.heads, config.head_dim, config.vocab, config.positions),
            config.layer_norm_eps,
            *(table.data_ptr() for table in self._tables),
            ctypes.addressof(self._blocks),
            _norm(network.ln_f),
        )
        inner = self._blocks[0].mlp_in.outputs
        # Residual twice, normed, mixed, the widest product, and for int8 its rows rounded with their scales.
        self._scratch_of_a_token = (
            4 * config.width + max(3 * config.width, inner) + max(config.width, inner) // 4 + 2
        )
        self._scratch = floats(0)
        self.spent = (ctypes.c_int64 * len(PARTS))()

    def __call__(
        self, tokens: Tensor, positions: Tensor, attend: PagedAttention, wanted: Tensor | None = None
    ) -> Tensor:
        """See `gpt2.hidden_states`.

        Raises:
            IndexError: a token or a position that the model does not have.
        """
        n, count = len(tokens), len(tokens) if wanted is None else len(wanted)
        room = max(n, count) * self._scratch_of_a_token
        if len(self._scratch) < room:
            self.wipe()  # what is freed keeps what it held
            self._scratch = floats(room)
        out = floats(count, self._network.config.width)
        memory = _Memory(*attend.memory())
        ctypes.memset(self.spent, 0, ctypes.sizeof(self.spent))
        failed = self._library.forward(
            ctypes.addressof(self._model),
            tokens.data_ptr(),
            positions.data_ptr(),
            n,
            ctypes.addressof(memory),
            None
            if wanted is None
            else (wanted if count else tokens).data_ptr(),  # an empty tensor has no address
            count,
            self._scratch.data_ptr(),
            out.data_ptr(),
            ctypes.addressof(self.spent),
            torch.get_num_threads(),
        )
        if failed:
            raise IndexError("a token or a position that the model does not have")
        return out

    def wipe(self) -> None:
        """See `kernels.Forward`: keys, values and activations of the steps before lie in the scratch."""
        ctypes.memset(self._scratch.data_ptr(), 0, self._scratch.nbytes)


def _norm(norm: object) -> _Norm:
    made = cast(NativeNorm, norm)
    return _Norm(made.weight.data_ptr(), made.bias.data_ptr())


def _matrix(linear: object) -> _Matrix:
    return _Matrix(*cast(PackedLinear | PackedInt8, linear).matrix())
