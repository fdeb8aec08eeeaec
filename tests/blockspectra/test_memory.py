"""Only this file sees memory: a budget that is exceeded, room that is there and not used, a process
that the kernel would kill.

Peaks are those of whole processes, of models whose graphs or bases fill hundreds of MiB.
"""

import ctypes
import multiprocessing
import resource
import sys

import pytest
import torch
from torch import nn

from blockspectra import Problem, block_spectra, partition
from blockspectra.hessian import BlockHessians
from blockspectra.memory import available, free, groups, in_bytes, in_use, readable

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
    assert in_bytes(written) == wanted


@pytest.mark.parametrize("written", ["much", "4GIB", "4 G", "-1GiB", "1.2.3GiB", "", "GiB"])
def test_what_is_no_amount_is_refused_in_one_sentence(written):
    with pytest.raises(ValueError, match="is no amount: write it like '4GiB'"):
        in_bytes(written)


def test_amounts_are_written_as_people_read_them():
    assert [readable(n) for n in (0, 1.5 * MIB, 2**30, 13.25 * 2**30)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.0 GiB",
        "13.2 GiB",
    ]


def test_without_an_amount_most_of_what_is_free_may_be_taken():
    assert available(None, CPU) == pytest.approx(0.8 * free(CPU), rel=0.2)  # others come and go


def test_an_amount_is_for_the_whole_process():
    room = available("100GiB", CPU)
    assert 100 * 2**30 - room / 0.8 == pytest.approx(in_use(CPU), rel=0.1)
    assert available(1, CPU) < 0


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


def test_limits_bound_what_is_free(monkeypatch):
    found = [(8 * MIB, MIB), (9 * MIB, 4 * MIB)]
    monkeypatch.setattr("blockspectra.memory.groups", lambda: found)
    assert free(CPU) == 5 * MIB
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


def child(tell, sizes, count, extra, settings):
    """Compute the first blocks within a budget of ``extra`` MiB beside what is in use."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, MIB)  # M_MMAP_THRESHOLD: else glibc keeps up to 64 MiB, by chance
    seen, problem, products = {"at once": 0}, chain(*sizes), BlockHessians.products

    def counted(hessians, wanted):
        seen["at once"] = max(seen["at once"], len(wanted))
        seen["kept"] = hessians.kept
        return products(hessians, wanted)

    BlockHessians.products = counted
    seen["budget"] = in_use(CPU) + extra * MIB
    blocks = partition(problem.model, vectors=True)[:count]
    block_spectra(problem, blocks, memory=seen["budget"], **settings)
    seen["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tell.send(seen)


CASES = {  # layers, width, rows, batches; blocks; settings
    "large graphs": ((4, 64, 60_000, 4), 2, {"steps": 2, "probes": 1}),  # 190 MiB each
    "many runs": ((3, 1_000_000, 1, 6), 2, {"steps": 2, "probes": 5}),  # 61 MiB each, graphs 50
    "large bases": ((2, 2_000_000, 1, 1), 2, {"steps": 12, "probes": 2}),  # 183 MiB each
}


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured as Linux does")
@pytest.mark.parametrize(
    ("case", "extra", "kept", "at_once"),
    [
        ("large graphs", 1700, True, 1),
        ("large graphs", 900, False, 2),
        ("many runs", 1300, True, 1),
        ("many runs", 460, False, 4),
        ("many runs", 280, False, 1),
        ("large bases", 700, True, 1),
    ],
)
def test_the_peak_of_the_process_stays_within_the_budget(case, extra, kept, at_once):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "blockspectra.slq", "sympy"])
    told, tell = context.Pipe(duplex=False)
    sizes, count, settings = CASES[case]
    process = context.Process(target=child, args=(tell, sizes, count, extra, settings))
    process.start()
    tell.close()  # so that a child that fails is no wait forever
    seen = told.recv()
    process.join()
    assert seen["peak"] < 1.05 * seen["budget"]
    assert (seen["kept"], seen["at once"]) == (kept, at_once)
