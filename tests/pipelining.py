"""Loads exported schedules into torch.distributed.pipelining and trains on them. Started by tests/torch.

1. A dataset: every named schedule and searched plans, on problems with equal and unequal layers and devices, one and
   few microbatches, and memory that forces recomputation. The dataset is counted, so that no kind of plan is missing.
2. Each schedule is loaded on every rank of a group without communication: torch validates it, infers the placement,
   adds sends and receives, and walks the result. Schedules broken on purpose must be refused.
3. Those for four devices are trained on for one step by four processes over gloo; the gradients of every layer must
   equal those of one process.
4. What is written for torchtitan is run on a configuration, and its schedule's rows must lie as torchtitan places
   stages.
"""
import csv
import itertools
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import types

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

ADAPTIS = sys.argv[1] if len(sys.argv) > 1 else ""
DATA = pathlib.Path(__file__).resolve().parent / "data"
SCHEDULES = ["gpipe", "1f1b", "i1f1b", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min"]
SEEDS = [1, 2, 3]
EVALUATIONS = 1500
WIDTH, BATCH = 8, 2
RELATIVE_ERROR_MAX = 1e-4


# -- the dataset -------------------------------------------------------------------------------------------------------


def problem(devices, layers, microbatches, memory, unequal):
    """Layers named as a torchtitan model's modules."""
    names = ["tok_embeddings"] + [f"layers.{at}" for at in range(layers - 3)] + ["norm", "lm_head"]

    def cost(at, factor):
        time = factor * (1000 + (at * 700 % 1900 if unequal else 0))
        return {
            "forward_ns": time,
            "input_gradient_ns": time,
            "weight_gradient_ns": time * 4 // 5,
            "activation_bytes": 1000,
            "weight_gradient_bytes": 400,
        }

    kinds = ["fast", "slow"] if unequal else ["fast"]
    return {
        "format": "adaptis.problem/1",
        "microbatches": microbatches,
        "layers": [{"name": name, "signature": "block/unit", "state_bytes": 100, "output_bytes": 50} for name in names],
        "devices": [
            {"name": f"gpu{at}", "kind": kinds[at * len(kinds) // devices], "memory_bytes": memory}
            for at in range(devices)
        ],
        "costs": {kind: [cost(at, 1 + 2 * place) for at in range(layers)] for place, kind in enumerate(kinds)},
        "links": {"default": {"latency_ns": 20, "bytes_per_second": 1e9}},
    }


def problems():
    made = {
        "equal": problem(4, 12, 8, 10**6, False),
        "unequal": problem(4, 11, 6, 10**6, True),
        "tight": problem(4, 12, 8, 6500, False),
        "tight-unequal": problem(4, 11, 8, 6000, True),
        "one-microbatch": problem(4, 8, 1, 10**6, False),
        "few-microbatches": problem(4, 9, 3, 10**6, True),
        "two-devices": problem(2, 5, 4, 10**6, True),
        "many": problem(6, 24, 16, 10**6, True),
    }
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*_p?_m*.json"))}
    return made | kept


def adaptis(*arguments):
    return subprocess.run([ADAPTIS, *map(str, arguments)], capture_output=True, text=True)


def succeed(*arguments):
    ended = adaptis(*arguments)
    if ended.returncode:
        sys.exit(f"adaptis {' '.join(map(str, arguments))}: exit code {ended.returncode}\n{ended.stderr}")
    return ended.stdout


def make(folder):
    """Plans of every kind, each with its schedule."""
    dataset, refused = [], 0
    for title, contents in problems().items():
        file = folder / f"{title}.json"
        file.write_text(json.dumps(contents))
        ways = [(name, ["--schedule", name]) for name in SCHEDULES]
        ways += [(f"seed {seed}", ["--evaluations", EVALUATIONS, "--seed", seed]) for seed in SEEDS]
        for way, options in ways:
            stem = f"{title}.{way.replace(' ', '-')}"
            plan, schedule = folder / f"{stem}.plan.json", folder / f"{stem}.csv"
            ended = adaptis("plan", file, *options, "--out", plan)
            if ended.returncode == 1 and way in SCHEDULES:
                continue  # A named schedule that has no partition here; whether all occur is counted below.
            if ended.returncode:
                sys.exit(f"{title}, {way}: {ended.stderr}")
            ended = adaptis("export", file, plan, "--to", "torch", "--out", schedule)
            contents_of_plan = json.loads(plan.read_text())
            idle = set(range(len(contents_of_plan["devices"]))) - {of["device"] for of in contents_of_plan["stages"]}
            if idle:
                assert ended.returncode == 1 and "plan.stages" in ended.stderr, ended.stderr
                refused += 1
                continue
            assert ended.returncode == 0, f"{title}, {way}: {ended.stderr}"
            dataset.append(
                {"title": f"{title}, {way}", "way": way, "problem": contents, "problem_file": str(file),
                 "plan_file": str(plan), "plan": contents_of_plan, "schedule": str(schedule)}
            )
    return dataset, refused


def held(plan):
    return [sum(stage["device"] == device for stage in plan["stages"]) for device in range(len(plan["devices"]))]


def count(dataset):
    """How many plans are of each kind; none may be missing."""
    def actions(plan):
        return {text.strip("0123456789") for program in plan["programs"] for text in program}

    kinds = {f"schedule {name}": lambda row, name=name: row["way"] == name for name in SCHEDULES}
    kinds |= {
        "searched": lambda row: row["way"].startswith("seed"),
        "recomputing": lambda row: any(stage.get("recompute") for stage in row["plan"]["stages"]),
        "recomputing some layers of a stage": lambda row: any(
            0 < len(stage.get("recompute", [])) < stage["layers"][1] - stage["layers"][0]
            for stage in row["plan"]["stages"]
        ),
        "several stages a device": lambda row: max(held(row["plan"])) > 1,
        "unequal numbers of stages": lambda row: len(set(held(row["plan"]))) > 1,
        "stages of unequal length": lambda row: len(
            {stage["layers"][1] - stage["layers"][0] for stage in row["plan"]["stages"]}
        ) > 1,
        "devices not in order": lambda row: [stage["device"] for stage in row["plan"]["stages"]]
        != sorted(stage["device"] for stage in row["plan"]["stages"]),
        "B and I and W": lambda row: {"B", "I", "W"} <= actions(row["plan"]),
        "B alone": lambda row: actions(row["plan"]) == {"F", "B"},
    }
    for kind, is_of in kinds.items():
        found = sum(map(is_of, dataset))
        print(f"  {found:>4}  {kind}")
        assert found, f"the dataset has no plan: {kind}"


# -- loading -----------------------------------------------------------------------------------------------------------


def on_every_rank(dataset, folder):
    """A group of one process that believes to be one of many, in turn each of them."""
    for world in sorted({len(row["plan"]["devices"]) for row in dataset}):
        rows = [row for row in dataset if len(row["plan"]["devices"]) == world]
        for rank in range(world):
            dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
            for row in rows:
                validate(row, rank)
                if rank == 0:
                    refuse_broken(row, folder)
            dist.destroy_process_group()
    # Each group made put its rank before every line of a traceback.
    sys.excepthook = sys.__excepthook__


def load(row, rank, schedule):
    plan = row["plan"]
    mine = [at for at, stage in enumerate(plan["stages"]) if stage["device"] == rank]
    stages = [PipelineStage(torch.nn.Identity(), at, len(plan["stages"]), torch.device("cpu")) for at in mine]
    runtime = _PipelineScheduleRuntime(stages, row["problem"]["microbatches"], loss_fn=torch.nn.functional.mse_loss)
    runtime._load_csv(schedule)
    return runtime


def validate(row, rank):
    runtime = load(row, rank, row["schedule"])
    placed = {at: stage["device"] for at, stage in enumerate(row["plan"]["stages"])}
    assert runtime.stage_index_to_group_rank == placed, row["title"]
    order = [str(action) for action in runtime.pipeline_order[rank]]
    assert order == row["plan"]["programs"][rank], row["title"]
    # Walk the rows with sends and receives, without what is FSDP's.
    for of, actions in runtime.pipeline_order_with_comms.items():
        walked = [action for action in actions if not any(name in str(action) for name in ("SHARD", "REDUCE_GRAD"))]
        runtime.pipeline_order_with_comms[of] = walked
    runtime._simulate()


def refuse_broken(row, folder):
    """A schedule with two actions swapped, and one with an action missing, must not load: else this test sees nothing."""
    rows = [list(map(str, program)) for program in row["plan"]["programs"]]
    first = rows[0]
    backward = next(at for at, text in enumerate(first) if not text.strip("0123456789") == "F")
    partner = first.index(first[backward].replace("I", "F").replace("B", "F"))
    swapped = [list(program) for program in rows]
    swapped[0][backward], swapped[0][partner] = first[partner], first[backward]
    missing = [list(program) for program in rows]
    missing[-1].pop()
    for broken in (swapped, missing):
        file = folder / "broken.csv"
        with open(file, "w", newline="") as out:
            csv.writer(out).writerows(broken)
        try:
            load(row, 0, str(file))
        except (AssertionError, ValueError, IndexError):
            continue  # torch stumbles over the text of its own refusal where rows differ in length: an IndexError.
        sys.exit(f"{row['title']}: torch loaded a broken schedule")


# -- training ----------------------------------------------------------------------------------------------------------


def layer(at):
    with torch.random.fork_rng():
        torch.manual_seed(100 + at)
        return torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH * (1 + at % 3)), torch.nn.Tanh(), torch.nn.Linear(WIDTH * (1 + at % 3), WIDTH)
        )


class Stage(torch.nn.Module):
    def __init__(self, layers, recompute):
        super().__init__()
        self.layers = torch.nn.ModuleDict({str(at): layer(at) for at in layers})
        self.recompute = set(recompute)

    def forward(self, x):
        for at, of in self.layers.items():
            x = x + (checkpoint(of, x, use_reentrant=False) if int(at) in self.recompute else of(x))
        return x


def batch(microbatches):
    generator = torch.Generator().manual_seed(7)
    shape = (BATCH * microbatches, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def reference(row):
    """Gradients of all layers, from one process without a pipeline."""
    microbatches = row["problem"]["microbatches"]
    whole = Stage(range(row["plan"]["layers"]), [])
    for x, y in zip(*(of.chunk(microbatches) for of in batch(microbatches))):
        (torch.nn.functional.mse_loss(whole(x), y) / microbatches).backward()
    return {name: parameter.grad for name, parameter in whole.named_parameters()}


def step(row, rank):
    """One training step of this rank; the largest error of a gradient."""
    plan, microbatches = row["plan"], row["problem"]["microbatches"]
    last = len(plan["stages"]) - 1
    mine = [at for at, stage in enumerate(plan["stages"]) if stage["device"] == rank]
    modules = {at: Stage(range(*plan["stages"][at]["layers"]), plan["stages"][at].get("recompute", [])) for at in mine}
    inner, outer = torch.empty(BATCH, WIDTH, requires_grad=True), torch.empty(BATCH, WIDTH)
    stages = [
        PipelineStage(
            modules[at], at, last + 1, torch.device("cpu"), input_args=inner if at else outer, output_args=inner
        )
        for at in mine
    ]
    runtime = _PipelineScheduleRuntime(stages, microbatches, loss_fn=torch.nn.functional.mse_loss)
    runtime._load_csv(row["schedule"])
    x, y = batch(microbatches)
    target = {"target": y, "losses": []} if last in mine else {}
    runtime.step(*([x] if 0 in mine else []), **target, return_outputs=False)
    expected, worst = reference(row), 0.0
    for module in modules.values():
        for name, parameter in module.named_parameters():
            error = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
            worst = max(worst, error.item())
    return worst


def train(rank, world, port, dataset, errors):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for at, row in enumerate(dataset):
        worst = torch.tensor([step(row, rank)])
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        errors[at] = worst.item()
    dist.destroy_process_group()


def trained(dataset, world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors = multiprocessing.get_context("spawn").Array("d", [-1.0] * len(dataset))
    multiprocessing.spawn(train, (world, port, dataset, errors), nprocs=world)
    for row, error in zip(dataset, errors):
        assert 0.0 <= error <= RELATIVE_ERROR_MAX, f"{row['title']}: gradients are off by {error:.1e}"
    return max(errors)


# -- torchtitan --------------------------------------------------------------------------------------------------------


def check_torchtitan(row, folder):
    """The schedule's name if it was written, none if torchtitan cannot express the plan."""
    out = folder / "parallelism.py"
    ended = adaptis("export", row["problem_file"], row["plan_file"], "--to", "torchtitan", "--out", out)
    if ended.returncode:
        assert ended.returncode == 1 and "plan." in ended.stderr, ended.stderr
        return None
    module = types.ModuleType("torchtitan.distributed.activation_checkpoint")
    module.FullAC = types.SimpleNamespace(Config=lambda: "full")
    sys.modules |= {"torchtitan": types.ModuleType("torchtitan"), "torchtitan.distributed": types.ModuleType("d")}
    sys.modules[module.__name__] = module
    written = {}
    exec(out.read_text(), written)
    config = written["apply"](types.SimpleNamespace(parallelism=types.SimpleNamespace()))
    parallelism, plan = config.parallelism, row["plan"]
    names = [of["name"] for of in row["problem"]["layers"]]
    assert list(itertools.chain(*parallelism.pipeline_parallel_module_fqns_per_model_part)) == names
    assert parallelism.num_pp_microbatches == row["problem"]["microbatches"]
    is_recomputing = any(stage.get("recompute") for stage in plan["stages"])
    assert config.activation_checkpoint == ("full" if is_recomputing else None)
    world, stages = parallelism.pipeline_parallel_degree, len(plan["stages"])
    with open(folder / parallelism.pipeline_parallel_schedule_csv, newline="") as file:
        rows = [{int(text.rstrip("0123456789")[:-1]) for text in line} for line in csv.reader(file)]
    for rank, found in enumerate(rows):
        loop, v = set(range(rank, stages, world)), {rank, stages - 1 - rank}
        assert found == (loop if parallelism.pipeline_parallel_schedule == "PipelineScheduleMulti" else v), row["title"]
    return parallelism.pipeline_parallel_schedule


def main():
    with tempfile.TemporaryDirectory(prefix="adaptis-torch-") as folder:
        folder = pathlib.Path(folder)
        print(f"torch {torch.__version__}: plans and their schedules", flush=True)
        dataset, refused = make(folder)
        count(dataset)
        print(f"  {len(dataset):>4}  in all; {refused} with an idle device, refused", flush=True)
        on_every_rank(dataset, folder)
        print(f"loaded and validated on every rank: {len(dataset)}", flush=True)
        four = [row for row in dataset if len(row["plan"]["devices"]) == 4]
        worst = trained(four, 4)
        print(f"trained by four processes: {len(four)}, gradients off by {worst:.1e} at most", flush=True)
        titan = [check_torchtitan(row, folder) for row in dataset]
        for name in ("PipelineScheduleMulti", "ZBVZeroBubble", None):
            assert name in titan, f"no plan for torchtitan: {name}"
        print(f"written for torchtitan: {len(titan) - titan.count(None)}, refused: {titan.count(None)}")


if __name__ == "__main__":
    main()
