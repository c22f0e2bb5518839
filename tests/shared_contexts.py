"""Programs share an MLIR context, as from JAX 0.12 on: to make one is a quarter of the time in which a small program compiles."""

import threading

from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir

USES = 10  # then there is another one, since it keeps what it has seen


class Shared(threading.local):
    """The context of a thread, and how many programs it has made."""

    made, count = None, USES


def share_contexts():
    """For this process, if its version of JAX does not do so by itself."""
    make, shared = mlir.make_ir_context, Shared()

    def reused():
        if ir.Context.current is not None:  # a program within another one's making
            return make()
        if shared.count == USES:
            shared.made, shared.count = make(), 0
        shared.count += 1
        return shared.made

    if not hasattr(mlir, "_thread_local_context"):
        mlir.make_ir_context = reused
