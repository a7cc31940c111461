from typing import Any, Protocol

class PlanError(ValueError):
    """A plan that can't be read, is not valid, or can't run here."""

class Row:
    """One device's program with its transfers."""

    def __len__(self) -> int: ...

class Plan:
    """Who runs what, in which order: partition, placement, schedule and recomputation."""

    @staticmethod
    def read(text: str) -> Plan:
        """Reads the text of an `adaptis.plan/1`."""
    @staticmethod
    def even(
        layers: int,
        devices: list[str],
        microbatches: int,
        schedule: str | None = None,
        together: list[list[int]] = ...,
    ) -> Plan:
        """As many layers on each device as on any other, under 1F1B or a named schedule."""
    def write(self) -> str:
        """As text."""
    @property
    def epoch(self) -> int:
        """Its number."""
    @property
    def layers(self) -> int:
        """Number of layers of the model."""
    @property
    def devices(self) -> list[str]:
        """Names of its devices."""
    @property
    def stages(self) -> list[tuple[int, int, int, list[int]]]:
        """`(first layer, end of its layers, device, recomputed layers)` of each stage."""
    def device_of_layers(self) -> list[int]:
        """The device of each layer."""
    def findings(self, microbatches: int, together: list[list[int]] = ...) -> list[str]:
        """What is wrong with it for so many microbatches and layers that must stay together."""
    def row(self, device: int) -> Row:
        """The row of a device."""
    def moves(self, next: Plan) -> list[tuple[int, int, int]]:
        """`(layer, from, to)` of each layer that changes device on the way to another plan, in layer order."""

class Backend(Protocol):
    def forward(self, stage: int, microbatch: int, value: Any | None) -> Any | None: ...
    def input_gradient(self, stage: int, microbatch: int, gradient: Any | None) -> Any | None: ...
    def weight_gradient(self, stage: int, microbatch: int) -> None: ...
    def backward(self, stage: int, microbatch: int, gradient: Any | None) -> Any | None: ...

class Transport(Protocol):
    def post(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> None: ...
    def take(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> Any: ...
    def send(self, device: int, is_gradient: bool, stage: int, microbatch: int, tensor: Any) -> None: ...

def run(row: Row, backend: Backend, transport: Transport) -> None:
    """Runs one iteration of a row."""

def digest(bytes: bytes) -> str:
    """The digest of a state's bytes, by which both ends of a move are compared."""
