"""A network compiled by OpenVINO for this processor, for use by several threads at once.

Every input runs by itself, on one core: that is as fast as batches on a processor (benchmarks/speed.py), and a
result then depends neither on what stood beside an input nor on the number of threads. Throughput comes from as
many inputs at a time as there are cores.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt


def cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def threads() -> int:
    """Number of pictures at a time that keeps the cores busy: each waits now and then, for a network or a file."""
    return 2 * cores()


_STARTING = threading.Lock()
_TELEMETRY, _CONVERTER = "openvino_telemetry", "openvino.tools.ovc"


def core() -> Any:
    """OpenVINO itself: a tenth of a second to load, so not before a network is needed."""
    with _STARTING:
        return _core()


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Modules that cannot be imported meanwhile, unless they are there already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def load_openvino() -> Any:
    """The package openvino, without its telemetry, and with its converter of models once somebody asks for it.

    The telemetry tells a server of each import, writes below the user's home, and starts a process, which under
    `spawn` runs a script without a main guard twice. The converter takes longer to import than all the rest.
    OpenVINO does without either.
    """
    if "openvino" in sys.modules:  # by somebody else, and perhaps not yet whole: importing waits for that
        import openvino  # noqa: PLC0415

        return openvino
    with _hidden(_TELEMETRY, _CONVERTER):
        import openvino  # noqa: PLC0415

    def late(name: str) -> Any:
        if name != "convert_model":
            raise AttributeError(f"module 'openvino' has no attribute {name!r}", name=name, obj=openvino)
        with _hidden(_TELEMETRY):
            openvino.convert_model = import_module(_CONVERTER).convert_model
        return openvino.convert_model

    openvino.__getattr__ = late
    return openvino


@cache
def _core() -> Any:
    openvino = load_openvino()
    # Its first array makes OpenVINO's binding initialise NumPy's: two threads that do so at once wait for ever
    # (2 of 25 processes hung; pybind11 gives up the GIL while it holds the guard of a static variable).
    openvino.Tensor(np.zeros(1, dtype=np.float32), shared_memory=True)
    return openvino.Core()


def check_process(started: int) -> None:
    """Raise RuntimeError unless this is still the process of that number: a child waits for threads that a fork
    has left behind, for ever."""
    if os.getpid() != started:
        raise RuntimeError("a detector does not outlast a fork: load it in the process that uses it")


class Graph:
    """A network with one input, ready to run. Threads share the weights; each has requests of its own."""

    def __init__(self, model: Any) -> None:
        """Compile `model`, an OpenVINO model or the path of one. Raises RuntimeError where OpenVINO can't."""
        # float32, not the bfloat16 of some processors: a p-value must not depend on the machine.
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": cores(),
            "INFERENCE_NUM_THREADS": cores(),
            # Else a thread waits for its own core where another process has it, though others are free.
            "ENABLE_CPU_PINNING": False,
        }
        self._model = core().compile_model(model, "CPU", config)
        self._own = threading.local()
        self._process = os.getpid()

    def one(self, array: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        """Run one input; its outputs by name, in memory that the thread's next call writes over.

        Raises RuntimeError in a process that was forked since.
        """
        check_process(self._process)
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        found = self._own.request.infer({0: array}, share_inputs=True, share_outputs=True)
        return {port.any_name: value for port, value in found.items()}

    def rows(self, array: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """Run each row of `array` (N, ...) by itself, on all cores; its first output becomes that row of `out`.

        Raises RuntimeError in a process that was forked since.
        """
        check_process(self._process)
        if len(array) == 1:  # as most pictures have one face: no queue, and no copy of the input
            out[0] = next(iter(self.one(array).values()))[0]
            return
        if not hasattr(self._own, "queue"):
            from openvino import AsyncInferQueue  # noqa: PLC0415

            self._own.queue = AsyncInferQueue(self._model, cores())
        queue = self._own.queue

        def keep(request: Any, row: int) -> None:
            out[row] = request.get_output_tensor(0).data[0]

        queue.set_callback(keep)
        for row in range(len(array)):
            queue.start_async({0: array[row : row + 1]}, userdata=row)
        queue.wait_all()
