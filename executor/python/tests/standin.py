"""A GPU for tests: torch computes on the host, and a stand-in for the driver has a GPU's order and time.

    work of a layer ---> torch, on the host              the numbers
                   \\---> stand-in, in a stream           when a device would have been through with them
"""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from adaptis import card

BUILT = Path(os.environ.get("ADAPTIS_COMMAND", "adaptis")).parent / "libadaptis_standin_cuda.so"
"""Beside the command, where Cargo puts both."""


def stage(folder: Path, lacking: str | None = None, script: str = "") -> dict[str, str]:
    """Variables by which a process finds the stand-in as its driver, without one of the functions if so wanted."""
    bytes = BUILT.read_bytes()
    if lacking is not None:
        name = b"\0" + lacking.encode() + b"\0"
        assert name in bytes, f"the stand-in has no {lacking} to lack"
        bytes = bytes.replace(name, b"\0_" + name[2:])
    folder.mkdir()
    (folder / "libcuda.so.1").write_bytes(bytes)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    (folder / "script").write_text(script)
    path = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    return {"LD_LIBRARY_PATH": path, "ADAPTIS_STANDIN_SCRIPT": str(folder / "script")}


class Device:
    """The stand-in of this process."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.standinGet.restype = ctypes.c_int64
        stream = ctypes.c_void_p()
        assert self._driver.cuStreamCreate(ctypes.byref(stream), 1) == 0
        assert stream.value is not None
        self.stream = stream.value

    def set(self, knob: str, value: int) -> None:
        """Says how it behaves."""
        self._driver.standinSet(knob.encode(), ctypes.c_int64(value))

    def get(self, knob: str) -> int:
        """What was asked of it."""
        return int(self._driver.standinGet(knob.encode()))

    def work(self, ns: int) -> None:
        """Puts work into the stream."""
        self._driver.standinWork(ctypes.c_void_p(self.stream), ctypes.c_uint64(ns))

    def finish(self) -> bool:
        """Waits, as a job does that looks at its loss. Whether the driver could."""
        return self._driver.cuStreamSynchronize(ctypes.c_void_p(self.stream)) == 0

    def adopt(self) -> None:
        """From now on this process's layers are on it."""
        device = self

        class StandIn(card.Cuda):
            def __init__(self, of: torch.device) -> None:
                self.index = 0
                card.Host.__init__(self, of)

            def kind_and_memory(self) -> tuple[str, int]:
                return "standin-80g", 80 << 30

            def stream(self) -> int:
                return device.stream

            def entered(self) -> AbstractContextManager[Any]:
                return nullcontext()

            def finish(self) -> None:
                device.finish()

            def fetch(self, number: Tensor) -> Callable[[], float | None]:
                # On its way until it was asked for twice.
                answers = [float(number), None]
                return lambda: answers.pop() if len(answers) > 1 else answers[0]

            def _figures(self) -> dict[str, int]:
                return {
                    "reserved_bytes.all.peak": 9 << 30,
                    "allocated_bytes.all.peak": 7 << 30,
                    "reserved_bytes.all.current": 8 << 30,
                    "allocated_bytes.all.current": 1 << 30,
                }

        card.KINDS["cpu"] = StandIn


class _Timed(torch.autograd.Function):
    """Nothing, but for the device's time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.layer.device.work(ctx.layer.backward_ns)
        return gradients[0], None


class Layer(nn.Module):
    """A product that takes a device so long forwards, and so long backwards."""

    def __init__(self, device: Device, width: int, forward_ns: int, backward_ns: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.device, self.forward_ns, self.backward_ns = device, forward_ns, backward_ns

    def extra_repr(self) -> str:
        """What tells its class of costs from others'."""
        return f"{self.forward_ns}, {self.backward_ns}"

    def forward(self, x: Tensor) -> Tensor:
        self.device.work(self.forward_ns)
        return torch.relu(self.linear(_Timed.apply(x, self)))
