from typing import Any, Protocol, Sequence

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
    def is_alike(self, other: Plan) -> bool:
        """Whether both have the same stages and programs, whatever their numbers."""
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

class Timer:
    """Times works of a CUDA device for the ring of its session, in streams by their numbers."""

    def share(self, parts: list[tuple[int, int, int]]) -> int | None:
        """Names works that share intervals: layer, phase and weight of each. None where there is no room for more."""
    def begin(self, on: int, shares: int, microbatch: int) -> int:
        """Begins to time works in a stream; 0 if they are not timed now."""
    def begin_after(self, on: int, ended: int, shares: int, microbatch: int) -> int:
        """The same where nothing was sent or received since works ended, whose number is `ended`."""
    def end(self, on: int, number: int) -> None:
        """Ends them."""
    def pass_on(self, on: int, number: int, shares: int, microbatch: int) -> int:
        """Ends works and begins others that follow at once; 0 if these are not timed."""
    def begin_within(self, on: int, outer: int, shares: int, microbatch: int) -> int:
        """Begins works that interrupt others; if those are timed, these are as well."""
    def forget(self, number: int) -> None:
        """Nothing is recorded of what began."""
    def end_within(self, on: int, number: int, outer: int) -> None:
        """Ends works that interrupted others, whose time is then without theirs."""
    def boundary(self, on: int) -> None:
        """Asks for what was timed before, and times the iteration that ends in this stream."""
    def knows(self, step: int, loss: float) -> None:
        """The loss of an iteration has come from the device; from the first one on, iterations are recorded with theirs."""
    def forget_iteration(self) -> None:
        """Nothing of the iteration under way is recorded as one."""
    @property
    def counters(self) -> dict[str, int]:
        """What became of the works: begun = recorded + given_up + abandoned + unplaced + lost + pending."""

class Session:
    """A rank's conversation with the coordinator, and its samples."""

    NUMBERS: int
    """Numbers in a word."""

    def __init__(
        self,
        *,
        coordinator: str,
        ring: str,
        run: str,
        rank: int,
        devices: list[str],
        card: tuple[str, int, int],
        layers: list[tuple[str, str, int, int, int, int]],
        microbatches: int,
        plan: Plan,
        pinned: list[tuple[int, int]],
        together: list[list[int]],
        hosts: list[tuple[list[int], float]] = ...,
        mode: str | None = None,
        is_fixed: bool = False,
        keys: str | None = None,
    ) -> None:
        """Makes the ring and begins to introduce this rank."""
    def time(self, events: int, budget_share: float) -> Timer:
        """Makes a timer for the CUDA device whose context is current."""
    def word(self) -> list[int]:
        """What to tell all other ranks at a boundary; the answers go to `hear`."""
    def hear(self, words: Sequence[Sequence[int]], step: int) -> tuple[str, Plan | None, str | None]:
        """What the words of all ranks come to: `nothing`, `begin`, `switch` or `left`, with a plan or a reason."""
    def settled(self, start_ns: int, end_ns: int, layers_moved: int, bytes_received: int) -> None:
        """The layers of a switch have moved."""
    @property
    def epoch(self) -> int | None:
        """Epoch of the plan in force, if this rank takes part."""
    @property
    def is_first(self) -> bool:
        """Whether this is the first iteration since the start or the last change."""
    def works(self, works: list[tuple[int, int, int, int, int]]) -> None:
        """Records works of layers: layer, phase, microbatch, start and duration."""
    def between(self, instructions: int, own_ns: int, transfers: int) -> None:
        """Records what passed between so many instructions of the iteration that ends, waiting excluded."""
    def probed(self, sender: int, bytes: int, start_ns: int, duration_ns: int) -> None:
        """Records how long bytes took from a device."""
    def layer_memory(self, layer: int, activation_bytes: int, weight_gradient_bytes: int) -> None:
        """Records what a layer holds for one microbatch."""
    def device_memory(self, peak_bytes: int, reserved_bytes: int) -> None:
        """Records the device's memory in the iteration that ends."""
    def iteration(self, start_ns: int, duration_ns: int, loss: float) -> None:
        """Records the iteration that ends."""
    def finish(self, layers: list[tuple[int, str]], seconds: float) -> bool:
        """Training is over. Whether the coordinator has recorded it, or had not to."""
    def fail(self, reason: str, seconds: float) -> bool:
        """Training failed."""

def kind_of(name: str, memory_bytes: int) -> str | None:
    """The kind of a GPU by its driver's name and memory; None if it is not in the table."""

def log(level: str) -> None:
    """Lets the conversation's warnings be read on standard error."""

def digest(bytes: bytes) -> str:
    """The digest of a state's bytes, by which both ends of a move are compared."""
