"""Measures the layers of a training script and changes nothing in it.

    hooks             which works layers do, and in which order
    clock             how long they take: the host's clock, or events in the stream of a GPU
    the optimizer     its step ends an iteration

1. Without a coordinator nothing is hooked, and nothing costs anything.
2. Which part of a whole backward was I and which W can't be told from outside: each is taken for half of it.
3. No collective operation is added: ranks of a pipeline tell one another of their layers by the store of
   torch.distributed, and none waits for another.
4. Where its hooks take more than 0.15% of an iteration, layers are measured in some of them (`governor`); of the others the
   length alone is told, of several at once where there is one rank. Before a coordinator follows, layers are measured in the
   first iterations only.
5. On a GPU nothing waits for the device: what an event tells is asked an iteration later. What a CUDA graph captures is
   left alone.
6. What a hook meets with never fails the job: at the first error the measuring ends.
7. Of replicas that train alike, the first one is measured. A process that was forked is none of the job's.
8. A hook is no part of a model that is copied or stored, and none of what is compiled: layers that are compiled one by one
   are measured; of those that disappear in a larger graph the steps alone.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any, Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from adaptis import _native, auto, card, clock, declare, state, steps
from adaptis.arguments import listed
from adaptis.facts import Fact, form_bytes, told
from adaptis.governor import Governor
from adaptis.guarded import Guarded
from adaptis.hooks import Hooks, Seen
from adaptis.memory import device_of
from adaptis.session import FAREWELL_SECONDS, Settings, in_its_place, last_error
from adaptis.trainers import Trainers

logger = logging.getLogger("adaptis")


LEARNED_FROM = 3
"""Iterations whose layers are measured before a coordinator follows: what the job is made of is learned from them."""
KEPT_NS = 250_000_000
"""The lengths of iterations are kept about so long before the session is told, and those since then are lost with a process
that is killed: what it takes to tell is in no cache by then, and costs several of them as much as one."""
KEPT_MAX = 64
"""Iterations that are told at once, at most."""
NEVER = sys.maxsize
"""No iteration."""
WITHOUT_RUN = 3
"""Steps in which no layer was seen to run, after which this is said."""
STILL_STEPS = 16
"""Steps of the layers' optimizers without a run of theirs, after which they are hooked anew, and then let go of. (The second one
of several that train one model ends no iteration.)"""


@dataclass
class Piece:
    """A stage as this rank holds it: its layers in order."""

    index: int
    layers: list[nn.Module]


class Observation:
    """The measuring of a rank's layers."""

    def __init__(self, pieces: Sequence[Piece], settings: Settings, rank: int, world: int) -> None:
        self.settings = settings
        self.rank = rank
        self.world = world
        self.native: _native.Session | None = None
        self.steps = 0
        self._placed = [(piece.index, layer) for piece in pieces for layer in piece.layers]
        self.layers = [layer for _, layer in self._placed]
        device = device_of(self.layers)
        # Where it is nowhere yet, it will be before it is declared.
        self.card = card.Host(device) if device.type == "meta" else card.of(device)
        self.clock = clock.of(self.card)
        self._hooks = Hooks(self._placed, self.clock, self._guarded)
        self._began_ns = perf_counter_ns()
        self._trainers = Trainers(self.layers)
        # Nothing is measured any more.
        self.has_ended = False
        self._process = os.getpid()
        os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))
        # Steps of each optimizer of ours before any layer ran.
        self._without_run: dict[int, int] = {}
        # Steps of ours since a layer ran.
        self._still = 0
        self._is_alone = False
        self._alone: steps.Steps | None = None
        self._is_sampling = False
        self._reserved_bytes = 0
        self._declaration = declare.Declaration(rank, world)
        # Of the layers that run: their numbers in the model.
        self._places: dict[int, int] = {}
        # Hooks on the optimizer's step.
        self._ends: list[Any] = []
        # What the hooks of this iteration took.
        self._spent_ns = 0
        self._governor = Governor()
        # As of the last time that the session was told.
        self._is_followed = False
        # The next iteration whose layers are measured.
        self._due = 0
        # Iterations that the session was not told of yet: when they began, and how long they took.
        self._ended: list[tuple[int, int]] = []
        # So many are told at once.
        self._at_once = 1
        self._fault: str | None = None
        self.resume()
        atexit.register(self._end)

    @property
    def follows(self) -> bool:
        """The coordinator takes in what is measured."""
        return self.native is not None and self.native.epoch is not None

    @property
    def counters(self) -> dict[str, int]:
        """What became of works on a GPU: begun = recorded + given_up + abandoned + unplaced + lost + pending, and works not
        begun since no event was free (pool_empty) or a graph was captured (capturing). Empty on a host."""
        return self.clock.counters

    def resume(self) -> None:
        """Measures, from the beginning of an iteration on."""
        if self._ends or self.has_ended:
            return
        if not self._is_alone:
            self._hook(self.steps == self._due)
            self._hooks.scales.hook()
        self._ends.append(register_optimizer_step_pre_hook(self._guarded(self._before_optimizer)))
        self._ends.append(register_optimizer_step_post_hook(self._guarded(self._after_optimizer)))
        self._began_ns = perf_counter_ns()

    def _hook(self, is_due: bool) -> None:
        """Has the layers of an iteration measured, or noted only that they run."""
        if self._hooks.are_on and is_due == self._is_sampling:
            return
        self._hooks.take_off()
        self._is_sampling = is_due
        for at in range(len(self.layers)):
            if is_due:
                self._hooks.put_on(at)
            elif not self._places or at in self._places:
                self._hooks.put_on_lightly(at)
                break

    def pause(self) -> None:
        """Measures nothing until it is resumed, and costs nothing. To be called between two iterations, and in a pipeline
        alike on every rank: steps are counted while they are measured."""
        self._hooks.scales.unhook()
        self._hooks.take_off()
        for handle in self._ends:
            handle.remove()
        self._ends.clear()
        self.clock.rest()

    def _guarded(self, hook: Callable[..., None]) -> Guarded:
        return Guarded(hook, self)

    def run_guarded(self, hook: Callable[..., None], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Runs a hook that never fails the job: at the first error nothing is measured any more."""
        began = perf_counter_ns()
        try:
            hook(*arguments, **named)
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        self._spent_ns += perf_counter_ns() - began

    def _fail(self, reason: str) -> None:
        """Measures nothing any more. Called from hooks, so those of the optimizer's step stay where they are, and do nothing:
        torch goes through them one by one."""
        logger.warning("this rank is not observed any longer: %s", reason)
        self._fault = reason
        self._stop()

    def _stop(self) -> None:
        self.has_ended = True
        self._hooks.scales.unhook()
        self._hooks.take_off()
        self._hooks.turn()
        self.clock.rest()

    # Stages of torch.distributed.pipelining.

    def are_stages(self) -> None:
        """Its layers are stages of a pipeline, which says when they run."""
        self._hooks.are_of_stages = True

    def within(self, stage: int, action: str, chunk: int, run: Callable[[], Any]) -> Any:
        """Runs an F, I or B of a stage, whose layers' works are of this microbatch."""
        if self.has_ended or not self._ends:
            return run()
        try:
            return self._hooks.within(stage, action, chunk, run)
        finally:
            self._guarded(self._hooks.check_notes)()

    def weights(self, stage: int, chunk: int, run: Callable[[], Any]) -> Any:
        """Runs a W of a stage, whose time its layers share by their parameters."""
        if self.has_ended or not self._ends:
            return run()
        return self._hooks.weights(stage, chunk, run)

    # The end of an iteration.

    def _before_optimizer(self, *_: Any) -> None:
        if self._is_sampling:
            self._hooks.step_begins()
        else:
            self._hooks.backward_failed()

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        if self._is_alone:
            if self._alone is not None:
                self._alone.ended(optimizer)
            return
        # The second one of several that train one model ends no other iteration.
        is_end = self._trainers.has(optimizer) and self._hooks.has_run
        if self._is_sampling:
            self._hooks.step_ends(is_end)
        if not is_end:
            if self.steps > 0 and not self._hooks.has_run:
                self._look_for_layers(optimizer)
            elif self.steps == 0 and not self._hooks.has_run:
                self._measure_steps_alone(optimizer)
            elif self.steps == 0:
                self._take_for_ours(optimizer)
            return
        now = perf_counter_ns()
        self._still = 0
        is_sampled = self._is_sampling
        self._ended.append((self._began_ns, now - self._began_ns))
        coming = self.steps + 1
        is_long = len(self._ended) >= self._at_once or now - self._ended[0][0] > KEPT_NS
        if is_sampled or coming == self._due or is_long:
            self._boundary(coming, is_sampled)
        if is_sampled and self._is_followed:
            ended = perf_counter_ns()
            self._governor.spent((self._spent_ns + ended - now) / max(1, ended - self._began_ns))
        if self._due < coming:
            self._due = self._due_from(coming)
        self.steps = coming
        # What this hook has taken is counted; its guard adds it to the next iteration.
        self._spent_ns = now - perf_counter_ns()
        if not self.has_ended:
            self._hook(self.steps == self._due)
        self._hooks.turn()
        self._began_ns = perf_counter_ns()

    def _measure_steps_alone(self, optimizer: Optimizer) -> None:
        """Where layers are trained and none of them was seen to run."""
        if not self._trainers.has(optimizer) or torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return
        count = self._without_run[id(optimizer)] = self._without_run.get(id(optimizer), 0) + 1
        if count == WITHOUT_RUN:
            logger.warning(
                "no layer was seen to run in %s steps of the optimizer that trains them, so steps are measured alone: in a "
                "model that is compiled as a whole layers can't be told apart; compile them one by one, as layer = "
                "torch.compile(layer), and observe these", WITHOUT_RUN
            )
            self._hooks.scales.end()
            self._hooks.take_off()
            self._alone = steps.begin([optimizer], self.settings)
            self._is_alone = True

    def _look_for_layers(self, optimizer: Optimizer) -> None:
        """Of layers that ran before and don't any longer: they may have been compiled in their place since."""
        if not self._trainers.has(optimizer):
            return
        self._still += 1
        if self._still == STILL_STEPS:
            self._hooks.take_off()
            self._hook(self.steps == self._due)
        elif self._still == 2 * STILL_STEPS:
            logger.warning(
                "this rank is not observed any longer: its layers do not run any more, as where they are compiled with a larger "
                "graph or others have taken their place; what was measured until then is kept"
            )
            self._stop()

    def _take_for_ours(self, optimizer: Optimizer) -> None:
        """Of one that trains none of the layers' parameters, where none has that does."""
        if not self._trainers.takes(optimizer):
            return
        # What was noted until now is of several iterations.
        self._hooks.turn()
        self.clock.rest()
        self._began_ns = perf_counter_ns()

    def _due_from(self, step: int) -> int:
        """The first iteration from this one on whose layers are measured."""
        if self._is_followed:
            return self._governor.due_from(step)
        return step if step < LEARNED_FROM else NEVER

    def _boundary(self, coming: int, is_sampled: bool) -> None:
        """Tells the session of the iterations that ended before the coming one; the last of them may have been measured."""
        ended, self._ended = self._ended, []
        # The first iteration makes what later ones find, the optimizer's state too.
        if self.native is None and coming >= 2:
            self._tell()
            self._join()
        native = self.native
        if native is None:
            self.clock.turn()
            return
        for step, (began_ns, took_ns) in enumerate(ended, start=coming - len(ended)):
            if self._is_followed:
                if is_sampled and step == coming - 1:
                    self.clock.record(native)
                    native.device_memory(self.card.peak_bytes(), self._reserved_bytes)
                self.clock.iterated(native, began_ns, took_ns)
            # Nobody votes in a job that is only observed: each rank goes by its own word.
            what, _, reason = native.hear([native.word()] * self.world, step + 1)
            if what != "nothing":
                self._is_followed = native.epoch is not None
                self._due = self._due_from(coming)
            if what == "begin":
                self._tell_memories(native)
            if reason is not None:
                logger.warning("the coordinator does not follow this rank: %s", reason)
        self.clock.turn()
        self._at_once = 1
        # Of several ranks, one that tells later than the others would be taken for one that is gone.
        if self.world == 1 and self._is_followed and self.clock.may_be_told_later and ended:
            usual_ns = sum(took_ns for _, took_ns in ended) // len(ended)
            self._at_once = min(max(1, KEPT_NS // max(1, usual_ns)), KEPT_MAX)

    def _tell_memories(self, native: _native.Session) -> None:
        for at, place in self._places.items():
            # What is held from I to W is not seen from here: the gradient of the output, and the input.
            passed = _forms_bytes(self._hooks.seen[at])
            size = self._hooks.scales.bytes.get(at, passed)
            native.layer_memory(place, size, min(size, passed))

    # Declaring the job.

    def _settle(self) -> None:
        """A model may have been moved since it began to be observed, before which nothing was recorded."""
        device = device_of(self.layers)
        ran_on = self._hooks.device
        if ran_on is not None and ran_on.type != device.type:
            # Parameters are fetched from where they lie for each run.
            device = ran_on
        if device != self.card.device:
            self.card = card.of(device)
            self.clock = self._hooks.clock = clock.of(self.card)

    def _tell(self) -> None:
        """Tells the other ranks of the layers here."""
        if self._declaration.is_told:
            return
        self._settle()
        self._hooks.scales.end()
        stages: dict[int, list[Fact]] = {}
        optimizers = self._trainers.known()
        for at, (index, layer) in enumerate(self._placed):
            of_stage = stages.setdefault(index, [])
            seen = self._hooks.seen[at]
            # What only holds something, or stands by for later, is no layer.
            if seen.outputs:
                of_stage.append(Fact.of(at, layer, optimizers, seen.inputs, seen.outputs))
        self._reserved_bytes = self.card.reserved_bytes(sum(fact.state_bytes for of in stages.values() for fact in of))
        self._declaration.tell(declare.word(self.settings.name(), stages, self._hooks.trained()))

    def _join(self) -> None:
        """Opens the session once all ranks have told of their layers."""
        job = self._declaration.of_all()
        if job is None:
            return
        next_of = dict(job.first)
        for at, (index, _) in enumerate(self._placed):
            if self._hooks.seen[at].outputs:
                self._places[at] = next_of[index]
                next_of[index] += 1
        self._open_session(job)

    def _open_session(self, job: declare.Job) -> None:
        try:
            self.native = _native.Session(
                coordinator=self.settings.coordinator,
                ring=self.settings.ring(job.devices[self.rank]),
                run=job.run,
                rank=self.rank,
                devices=job.devices,
                card=(*self.card.kind_and_memory(), self._reserved_bytes),
                layers=[told(fact) for fact in job.layers],
                microbatches=job.microbatches,
                plan=job.plan,
                pinned=[],
                together=[],
                is_fixed=True,
                keys=self.settings.keys,
            )
            self.settings.is_written(job.devices[self.rank])
            self.clock.follow(self.native, self._places, job.microbatches)
        except (OSError, ValueError) as error:
            self._fail(in_its_place(error) or str(error))

    # The end.

    def _end(self) -> None:
        # A process that was forked from this one has no part in the run.
        if os.getpid() == self._process:
            self._leave(last_error())

    def close(self) -> None:
        """Ends the measuring, as the end of the process does."""
        self._leave(sys.exc_info()[1])

    def _leave(self, error: BaseException | None) -> None:
        global _current
        if self._ended and self.native is not None and not self.has_ended:
            self._guarded(self._boundary)(self.steps, False)
        native, self.native = self.native, None
        self.has_ended = True
        if self._alone is not None:
            self._alone.close()
        self.pause()
        atexit.unregister(self._end)
        if _current is self:
            _current = None
        if native is None:
            return
        try:
            reason = self._fault or (None if error is None else f"{type(error).__name__}: {error}")
            if reason is not None:
                native.fail(reason, FAREWELL_SECONDS)
            else:
                self.card.finish()
                digests = state.digests([(place, self.layers[at]) for at, place in self._places.items()], [])
                native.finish(digests, FAREWELL_SECONDS)
            self.clock.tell()
        except Exception as trouble:
            logger.warning("the end of the job was not told: %s: %s", type(trouble).__name__, trouble)


def _forget(of: weakref.ref[Observation]) -> None:
    """In a process that was forked, whose parent has the ring."""
    observation = of()
    if observation is not None:
        observation.has_ended = True


_current: Observation | None = None
"""The one that this process has."""


def begin(
    pieces: Sequence[Piece], settings: Settings, rank: int, world: int, *, is_of_all: bool = False
) -> Observation | None:
    """Begins to observe, unless something is observed already: a process is one rank of one job. What `is_of_all` its ranks
    takes the place of what a script has said of one, before that has begun to be told."""
    global _current
    if _current is not None and is_of_all and _current.native is None and _current.world == 1:
        _current.close()
    if _current is not None:
        logger.warning("this process is observed already: of several models the first one is measured")
        return None
    try:
        _current = Observation(pieces, settings, rank, world)
    except Exception as error:
        # Whatever a model is: it trains.
        logger.warning("this job is not observed: %s", error)
    return _current


def observe(layers: Iterable[nn.Module], *, coordinator: str | None = None) -> Observation | None:
    """Measures these layers while the script trains them, and changes nothing in it.

    `layers` are the model's parts in the order in which they run, as `model.layers`. What each takes and holds goes to the
    agent, if there is a coordinator (`coordinator`, else `ADAPTIS_COORDINATOR`, as `adaptis run` sets it); otherwise
    nothing is done. Of several processes that train alike, the first one is measured. None where nothing is.
    """
    settings = Settings.found(coordinator)
    if settings is None:
        return None
    # Before there is a group, torchrun and Slurm tell.
    has_group = dist.is_available() and dist.is_initialized()
    if not (dist.get_rank() == 0 if has_group else auto.is_first()):
        return None
    own = listed(layers)
    if not own or not all(isinstance(layer, nn.Module) for layer in own):
        logger.warning("nothing is observed: layers is a list of modules in the order in which they run, as model.layers")
        return None
    if len(set(map(id, own))) < len(own):
        logger.warning(
            "nothing is observed: a module stands several times in layers, and its calls can't be told apart from outside "
            "(adaptis.Schedule measures such a model)"
        )
        return None
    return begin([Piece(0, own)], settings, 0, 1)


def _forms_bytes(seen: Seen) -> int:
    return sum(form_bytes(form.shape, form.dtype) for form in (*seen.inputs, *seen.outputs))

