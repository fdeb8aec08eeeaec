"""Only this file sees memory: a budget that is exceeded, room that is there and not used, a process
that the kernel would kill.

Peaks are those of whole processes, of models whose graphs or bases fill hundreds of MiB.
"""

import multiprocessing
import resource
import sys
from functools import cache

import pytest
import torch
from torch import nn

from blockspectra import Problem, block_spectra, partition
from blockspectra.hessian import BlockHessians
from blockspectra.lockstep import Lockstep
from blockspectra.memory import at_most, free, groups, in_bytes, in_use, readable

CPU = torch.device("cpu")
MIB = 2**20

# amounts


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("4GiB", 4 * 2**30),
        (" 1.5 MiB ", 1.5 * MIB),
        ("250KB", 250_000),
        ("0.5GB", 500_000_000),
        ("512", 512),
        (512, 512),
        (5e8, 500_000_000),
    ],
)
def test_amounts_are_read_as_people_write_them(written, wanted):
    assert in_bytes(written, CPU) == wanted


@pytest.mark.parametrize("written", ["much", "4GIB", "4 G", "-1GiB", "1.2.3GiB", "", "GiB"])
def test_what_is_no_amount_is_refused_in_one_sentence(written):
    with pytest.raises(ValueError, match="is no amount: write it like '4GiB'"):
        in_bytes(written, CPU)


def test_amounts_are_written_as_people_read_them():
    assert [readable(n) for n in (0, 1.5 * MIB, 2**30, 13.25 * 2**30)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.0 GiB",
        "13.2 GiB",
    ]


def test_without_an_amount_nine_tenths_of_what_is_free_may_be_taken():
    room = in_bytes(None, CPU) - in_use(CPU)
    assert room == pytest.approx(0.9 * free(CPU), rel=0.2)  # others come and go


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere allocators differ")
def test_what_was_freed_is_not_in_use():
    before = in_use(CPU)
    tensors = [torch.zeros(MIB // 8) for _ in range(400)]  # half a MiB each, kept by the allocator
    between = tensors[::2]
    assert in_use(CPU) > before + 190 * MIB
    del tensors
    assert in_use(CPU) < before + 120 * MIB
    del between
    assert in_use(CPU) < before + 10 * MIB


def limits(tmp_path, own, **given):
    """A tree of control groups as the kernel shows it; each with 1 MiB used, half of it cache."""
    for name, limit in given.items():
        folder = tmp_path / "mount" / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{MIB}\n")
        (folder / "memory.stat").write_text(f"anon {MIB // 2}\ninactive_file {MIB // 2}\n")
    (tmp_path / "own").write_text(own)
    return groups(tmp_path / "mount", tmp_path / "own")


def test_limits_of_all_groups_around_the_process_count(tmp_path):
    found = limits(
        tmp_path, "0::/job/step/task\n", job=8 * MIB, job__step=4 * MIB, job__step__task="max"
    )
    assert sorted(found) == [(4 * MIB, MIB // 2), (8 * MIB, MIB // 2)]


def test_a_container_sees_its_limit_at_the_root(tmp_path):
    assert limits(tmp_path, "0::/\n", **{"": 2 * MIB}) == [(2 * MIB, MIB // 2)]


@pytest.mark.parametrize("own", ["", "5:memory:/user\n", "0::/elsewhere\n"])
def test_without_limits_there_are_none(tmp_path, own):
    assert limits(tmp_path, own) == []


def test_limits_bound_what_is_free_and_what_there_is(monkeypatch):
    found = [(8 * MIB, MIB), (9 * MIB, 4 * MIB)]
    monkeypatch.setattr("blockspectra.memory.groups", lambda: found)
    assert free(CPU) == 5 * MIB
    assert at_most(None, CPU) == 8 * MIB
    assert at_most("3MiB", CPU) == 3 * MIB
    found.append((10 * MIB, 11 * MIB))  # used up
    assert free(CPU) == 0


# budgets


class Chain(nn.Module):
    """Cheap layers, each of which keeps several tensors as large as the batch."""

    def __init__(self, layers, width):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weights = (1 + 0.1 * torch.randn(width, generator=generator) for _ in range(layers))
        self.weights = nn.ParameterList(weights)

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x * weight)
        return x


def chain(layers, width, rows, batches):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(rows, width, generator=generator) for _ in range(batches)]
    return Problem(Chain(layers, width), lambda model, batch: model(batch).pow(2).mean(), data)


def child(tell, sizes, count, extra, limit, settings):
    """Compute the first blocks within a budget of ``extra`` MiB beside what is in use."""
    torch.set_num_threads(1)
    seen = {"products": 0, "at once": 0}
    problem, products, _chunk = chain(*sizes), BlockHessians.products, Lockstep._chunk

    def counted(hessians, wanted):
        seen["products"] += len(wanted)
        seen["at once"] = max(seen["at once"], len(wanted))
        seen["kept"] = hessians.kept
        return products(hessians, wanted)

    BlockHessians.products = counted
    if limit:
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limit * MIB,) * 2)
    budget = in_use(CPU) + extra * MIB
    try:
        blocks = partition(problem.model, vectors=True)[:count]
        spectra = block_spectra(problem, blocks, memory=budget, **settings)
        seen["bits"] = spectra.alpha.tobytes() + spectra.beta.tobytes()
    except ValueError as error:
        seen["refused"] = str(error)
    seen["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seen["budget"] = budget
    tell.send(seen)


@cache
def compute(case, extra, limit=None, **settings):
    """Run `child` in a process from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "blockspectra.slq", "sympy"])
    told, tell = context.Pipe(duplex=False)
    sizes, count, usual = CASES[case]
    arguments = (tell, sizes, count, extra, limit, usual | settings)
    process = context.Process(target=child, args=arguments)
    process.start()
    seen = told.recv()
    process.join()
    return seen


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured as Linux does")
CASES = {  # layers, width, rows, batches; blocks; settings
    "large graphs": ((4, 64, 60_000, 4), 2, {"steps": 2, "probes": 1}),  # 190 MiB each
    "many runs": ((3, 1_000_000, 1, 6), 2, {"steps": 2, "probes": 5}),  # 61 MiB each, graphs 50
    "large bases": ((2, 2_000_000, 1, 1), 2, {"steps": 12, "probes": 2}),  # 183 MiB each
}
BUDGETS = [
    ("large graphs", 1700),
    ("large graphs", 900),
    ("many runs", 1300),
    ("many runs", 460),
    ("large bases", 700),
]


@LINUX
@pytest.mark.parametrize(("case", "extra"), BUDGETS)
def test_the_peak_of_the_process_stays_within_the_budget(case, extra):
    seen = compute(case, extra)
    assert "refused" not in seen
    assert seen["peak"] < 1.2 * seen["budget"]
