"""The C sources beside this file, compiled once for this machine and loaded.

They are compiled for the very CPU, so the file's name carries a digest of the sources, of the flags and
of what the compiler says of the CPU: another machine on the same home folder makes its own.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from prefix_engine.cache_folder import cache_folder, is_own, making
from prefix_engine.kernels import KernelError

_HERE = Path(__file__).parent
_SOURCES = ("linear.c", "linear_i8.c", "attention.c", "best.c", "draw.c", "norm.c", "forward.c", "threads.c")
_FLAGS = (
    "-O3",
    "-march=native",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-pthread",
)
_WIDE = "-mprefer-vector-width=512"  # understood on x86 only
_COMPILE_S = 300

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_ARGUMENTS = {
    "pack_f32": (_POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _INT),
    "linear_f32": (_POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _INT, _POINTER, _POINTER, _INT),
    "pack_i8": (_POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _INT),
    "linear_i8": (
        *(_POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _INT),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _INT),
    ),
    "norm_f32": (_POINTER, _LONG, _LONG, _POINTER, _POINTER, ctypes.c_float, _POINTER, _INT),
    "best_of_rows": (_POINTER, _LONG, _LONG, _POINTER, _INT),
    "draw_tokens": (_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _INT),
    "attend": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _INT),
        *(_POINTER, _POINTER, _LONG, _POINTER, _LONG, _INT),
    ),
    "forward": (
        *(_POINTER, _POINTER, _POINTER, _LONG, _POINTER, _POINTER, _LONG),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ),
}


@cache
def load() -> ctypes.CDLL:
    """Compile if need be, and load.

    The folder is `cache_folder`'s.

    Raises:
        KernelError: there is no C compiler, it fails, or the folder cannot be written.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or ""]
    except ValueError as error:
        raise KernelError(f"$CC cannot be read: {error}") from error
    if not shutil.which(compiler[0]):
        raise KernelError("there is no C compiler (cc, or what $CC names)")
    try:
        library = _made(compiler)
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or b""
        raise KernelError(f"{compiler[0]} failed: {said.decode(errors='replace').strip()[-500:]}") from error
    except OSError as error:
        raise KernelError(str(error)) from error
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.forward.restype = _INT
    library.panel_width.argtypes, library.panel_width.restype = (), _LONG
    return library


def _made(compiler: list[str]) -> ctypes.CDLL:
    path = cache_folder() / f"kernels-{_digest(compiler)}.so"
    told = path.with_suffix(".sha256")
    there = all(file.is_file() and is_own(file) for file in (path, told))
    if not (there and told.read_bytes() == _sha256(path).encode()):
        _compile(compiler, path)  # also over half a file, which would end the process that loads it
        with making(told) as made:
            made.write_text(_sha256(path))
    return ctypes.CDLL(str(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(compiler: list[str]) -> str:
    macros = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    digest = hashlib.sha256(macros + repr((compiler, _FLAGS, _WIDE, _SOURCES, torch.__version__)).encode())
    for source in sorted(_HERE.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: list[str], path: Path) -> None:
    sources = [str(_HERE / source) for source in _SOURCES]
    wide = [_WIDE] if _accepts(compiler, _WIDE) else []
    with making(path) as made:
        _run([*compiler, *_FLAGS, *wide, "-shared", "-o", str(made), *sources, "-lm"])


def _accepts(compiler: list[str], flag: str) -> bool:
    try:
        _run([*compiler, flag, "-E", "-x", "c", os.devnull])
    except subprocess.CalledProcessError:
        return False
    return True


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S).stdout  # noqa: S603 - fixed
