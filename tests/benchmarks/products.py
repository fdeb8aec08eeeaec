"""Cost of one product with a Hessian block, as a ratio to one gradient, and of other ways to it.

The gradient (forward and backward over all parameters) is the floor. Every way's result is checked
against the library's before it is timed. ``make bench`` keeps the numbers in
``results/products.json``.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import bench
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from blockspectra import Problem, block_spectra, cross_entropy, partition
from blockspectra.blocks import Block, whole
from blockspectra.checks import check_unchanged, checked
from blockspectra.fast_derivatives.mode import OURS
from blockspectra.hessian import BlockHessians, parameters_of

VECTORS = 4  # taken at once by vmap
STEPS = 100  # of Lanczos, with re-orthogonalisation
COMPILING = 90  # seconds that torch.compile may take for a way


class Loss(nn.Module):
    """The loss as a module, for `functional_call`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return cross_entropy(self.model, batch)


def value(problem: Problem, block: Block) -> Callable[[Tensor], Tensor]:
    """Return the loss as a function of one parameter."""
    parameter, loss = block.parameters[0], Loss(problem.model)
    name = next(n for n, p in loss.named_parameters() if p is parameter)
    return lambda weight: functional_call(loss, {name: weight}, (problem.batches[0],))


def forward_over_reverse(problem: Problem, block: Block) -> Callable[[Tensor], Tensor]:
    """Tangent of the gradient, (size,) to (size,)."""
    loss, at = value(problem, block), block.parameters[0].detach()

    def product(vector: Tensor) -> Tensor:
        return block.flatten([jvp(grad(loss), (at,), (block.expand(vector)[0],))[1]])

    return product


def reverse_over_reverse(problem: Problem, block: Block) -> Callable[[Tensor], Tensor]:
    """Gradient of the gradient times a vector, (size,) to (size,)."""
    loss, at = value(problem, block), block.parameters[0].detach()

    def product(vector: Tensor) -> Tensor:
        weight = at.detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
        return block.flatten(torch.autograd.grad(first, weight, block.expand(vector)[0]))

    return product


def shared_graph(problem: Problem, block: Block) -> Callable[[Tensor], Tensor]:
    """Return the library's way: the gradient's graph is made once, here."""
    return partial(BlockHessians(problem, [block]).product, block)


STATELESS = {  # nothing is kept from product to product
    "reverse over reverse": reverse_over_reverse,
    "forward over reverse": forward_over_reverse,
}
COMPILED = {"shared graph": shared_graph, "forward over reverse": forward_over_reverse}


def captured(product: Callable[[Tensor], Tensor], vector: Tensor) -> Callable[[], Tensor]:
    """Record a product as a CUDA graph; the vector stays where it was."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            product(vector)
    torch.cuda.current_stream().wait_stream(side)
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        result = product(vector)

    def replay() -> Tensor:
        recording.replay()
        return result

    return replay


def ways(problem: Problem, hessians: BlockHessians, block: Block, place: bench.Place) -> dict:
    """Ways to a block's product: name → (call, vectors in one call), or the reason for none."""
    device = block.parameters[0].device
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(VECTORS, block.size, generator=generator).to(device)
    stateless = {name: way(problem, block) for name, way in STATELESS.items()}
    many = vmap(stateless["forward over reverse"])
    found = {
        "shared graph": (lambda: hessians.product(block, vectors[0]), 1),
        f"shared graph, {VECTORS} vectors by vmap": (
            lambda: hessians.product(block, vectors),
            VECTORS,
        ),
        **{name: (lambda p=p: p(vectors[0]), 1) for name, p in stateless.items()},
        f"forward over reverse, {VECTORS} vectors by vmap": (lambda: many(vectors), VECTORS),
        "shared graph in a CUDA graph": bench.NO_GPU,
    }
    if place.device == "cuda":
        try:
            replay = captured(lambda v: hessians.product(block, v), vectors[0])
            found["shared graph in a CUDA graph"] = (replay, 1)
        except RuntimeError as error:
            found["shared graph in a CUDA graph"] = str(error).splitlines()[0]
    right = hessians.product(block, vectors[0])
    for name, way in found.items():
        if not isinstance(way, str):
            result = way[0]()
            result = result[0] if way[1] > 1 else result
            if not bench.relative(result, right) <= 1e-4:
                raise ValueError(f"{name!r} is off by {bench.relative(result, right):.1g}.")
    return found


def one_product(problem: Problem, place: bench.Place, repeats: int) -> tuple[list, list]:
    """Rows of ways, and one row a block with the shared graph."""
    blocks, everything = partition(problem.model), whole(problem.model)
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    hessians, full = BlockHessians(problem, blocks), BlockHessians(problem, [everything])
    vectors = {b.name: torch.randn(b.size, device=place.device) for b in [*blocks, everything]}
    cases: dict[str, Callable] = {
        "gradient": bench.gradient(problem),
        "graph": lambda: torch.autograd.grad(
            problem.value(problem.batches[0]), parameters, create_graph=True
        ),
        "full": lambda: full.product(everything, vectors[everything.name]),
    }
    for b in blocks:
        cases[b.name] = lambda b=b: hessians.product(b, vectors[b.name])
    sample, slow, reasons = sampled(blocks), {}, {}
    for block in sample:
        for name, way in ways(problem, hessians, block, place).items():
            if isinstance(way, str):
                reasons[name] = way
            else:
                slow.setdefault(name, []).append((f"{name}: {block.name}", way[1]))
                cases[f"{name}: {block.name}"] = way[0]
    times = bench.rounds(cases, repeats, place)
    names = [b.name for b in blocks]

    def row(method: str, which: str, cases: str | list[str], share: float = 1) -> dict:
        return {
            **place.columns,
            "method": method,
            "blocks": which,
            **times.ratio(cases, "gradient", share),
            "note": "",
        }

    rows = [
        row("gradient", "", "gradient"),
        row("gradient kept as a graph", "", "graph"),
        row("product, shared graph", "full", "full"),
        row("product, shared graph", "all", names),
        *(
            row(name, "sample", [case for case, _ in pairs], 1 / pairs[0][1])
            for name, pairs in slow.items()
        ),
        *(
            empty(place, name, "sample", reason)
            for name, reason in reasons.items()
            if name not in slow
        ),
    ]
    rows[0]["note"] = f"{1e3 * times.median('gradient'):.1f} ms"
    each = [
        {**place.columns, "block": b.name, "size": b.size, **times.ratio(b.name, "gradient")}
        for b in blocks
    ]
    return rows, each


def sampled(blocks: list[Block]) -> list[Block]:
    """Return the few blocks, from first to last, that stand for all where ways are slow."""
    return blocks[:: max(1, len(blocks) // 4)]


def empty(place: bench.Place, method: str, which: str, note: str) -> dict:
    """Row of something that was not measured, with the reason."""
    unknown = {"ratio": None, "low": None, "high": None, "note": note}
    return {**place.columns, "method": method, "blocks": which, **unknown}


def within_lanczos(problem: Problem, place: bench.Place, steps: int, parts: int) -> dict:
    """Whole time of `block_spectra` a product, with a gradient timed between parts of it."""
    blocks, gradient = partition(problem.model), bench.gradient(problem)
    products, runs, units = 0, [], []
    for part in (blocks[i::parts] for i in range(parts)):

        def spectra(part=part) -> None:
            block_spectra(problem, part, steps=steps, probes=1, progress=False)

        cases = {"gradient": gradient, "gradient again": gradient, "spectra": spectra}
        times = bench.rounds(cases, 1, place, warm=False)
        number = sum(min(steps, b.size) for b in part)
        products += number
        runs.append((times.median("spectra"), number))
        units.append(times.median("gradient again"))
    unit = sorted(units)[len(units) // 2]
    each = [seconds / number / unit for seconds, number in runs]
    return {
        **place.columns,
        "method": "product within Lanczos, re-orthogonalised",
        "blocks": "all",
        "ratio": round(sum(seconds for seconds, _ in runs) / products / unit, 3),
        "low": round(min(each), 3),
        "high": round(max(each), 3),
        "note": f"{steps} steps; extremes over parts of the blocks",
    }


def all_checks(problem: Problem, place: bench.Place, repeats: int, quick: bool) -> dict:
    """All checks, before the first product and after the last, and their share of a spectrum."""
    blocks, steps, probes = partition(problem.model), 3 if quick else 30, 3

    def checks() -> None:
        with problem.curvature_mode():
            graph = checked(problem, parameters_of(blocks))
            check_unchanged(problem, parameters_of(blocks), graph.fingerprints)

    def spectra() -> None:
        block_spectra(problem, blocks, steps=steps, probes=probes, progress=False)

    times = bench.rounds({"gradient": bench.gradient(problem), "checks": checks}, repeats, place)
    share = times.median("checks") / bench.rounds({"": spectra}, 1, place, warm=False).median("")
    return {
        **place.columns,
        **times.ratio("checks", "gradient"),
        "note": f"{share:.1%} of a spectrum of {steps} steps and {probes} probes",
    }


def by_plain_derivatives(problem: Problem, place: bench.Place, steps: int, quick: bool) -> dict:
    """Whole time of `block_spectra` by plain second derivatives, as a ratio to cheap ones."""
    blocks = partition(problem.model)

    def spectra() -> None:
        block_spectra(problem, blocks, steps=steps, probes=1, progress=False)

    def plain() -> None:
        with patch.dict(OURS, clear=True):  # nothing is replaced then
            spectra()

    times = bench.rounds({"cheap": spectra, "plain": plain}, 1 if quick else 2, place)
    return {
        **place.columns,
        "method": "spectra by plain second derivatives, to those by cheap ones",
        "blocks": "all",
        **times.ratio("plain", "cheap"),
        "note": f"{steps} steps",
    }


def by_two_processes(problem: Problem, place: bench.Place, steps: int, quick: bool) -> dict:
    """Whole time of two processes that share the blocks, a product; the unit has both cores."""
    pair, gradient = bench.Pair(quick), bench.gradient(problem)
    cases = {
        "gradient before": gradient,
        "gradient": gradient,
        "spectra": lambda: pair.spectra(steps, 1),
    }
    times = bench.rounds(cases, 1 if quick else 2, place, warm=False)
    pair.end()
    products = sum(min(steps, block.size) for block in partition(problem.model))
    return {
        **place.columns,
        "method": "product within Lanczos, by two processes",
        "blocks": "all",
        **times.ratio("spectra", "gradient", 1 / products),
        "note": f"{steps} steps; one thread each; the gradient has two threads",
    }


def compiled(way: str, problem: Problem, place: bench.Place, repeats: int) -> dict:
    """One block in the middle by a way that is traced and compiled; checked."""
    blocks = [b for b in partition(problem.model) if "mlp.c_fc" in b.name]
    block = blocks[len(blocks) // 2]
    vector = torch.randn(block.size, device=place.device)
    hessians = BlockHessians(problem, [block])
    product = COMPILED[way](problem, block)
    # torch.compile alone fails on layer_norm within jvp (an internal assertion of PyTorch)
    fast = torch.compile(make_fx(product)(vector))
    error = bench.relative(fast(vector), hessians.product(block, vector))
    if not error <= 1e-4:
        raise ValueError(f"the compiled product is off by {error:.1g}")
    cases = {
        "gradient": bench.gradient(problem),
        "compiled": lambda: fast(vector),
        "eager": lambda: product(vector),
    }
    times = bench.rounds(cases, repeats, place)
    return {
        **place.columns,
        "method": f"{way}, compiled",
        "blocks": block.name,
        **times.ratio("compiled", "gradient"),
        "note": f"this block not compiled: {times.ratio('eager', 'gradient')['ratio']}",
    }


def compiled_apart(way: str, place: bench.Place) -> dict:
    """Compile in a process of its own, which is given up after a while."""
    command = [sys.executable, __file__, "compiled", way, place.device, str(place.threads or 1)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILING, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        reason = f"not run: compiling took more than {COMPILING} s"
    except subprocess.CalledProcessError as error:
        reason = "not run: " + (error.stderr.strip().splitlines() or ["it was killed"])[-1][:200]
    return empty(place, f"{way}, compiled", "", reason)


def measure(quick: bool) -> dict:
    """Measure everything."""
    repeats, steps, parts = (1, 3, 1) if quick else (5, STEPS, 4)
    rows, blocks, checks = [], [], []
    for place in bench.PLACES:
        if place.missing:
            rows.append(empty(place, "product, shared graph", "all", bench.NO_GPU))
            continue
        place.enter()
        problem = bench.reference(quick, place.device)
        with problem.curvature_mode():
            found, each = one_product(problem, place, repeats)
        found.append(within_lanczos(problem, place, steps, parts))
        checks.append(all_checks(problem, place, repeats, quick))
        found.append(by_plain_derivatives(problem, place, min(steps, 20), quick))
        if place == bench.TWO:
            found.append(by_two_processes(problem, place, steps, quick))
        if not quick and place != bench.ONE:  # once: compiling takes minutes
            found += [compiled_apart(way, place) for way in COMPILED]
        for row in found:
            print(row)
        rows, blocks = rows + found, blocks + each
    return {
        **bench.described(bench.reference(quick, "cpu")),
        "blocks_sampled": [b.name for b in sampled(partition(bench.reference(quick, "cpu").model))],
        "repeats": repeats,
        "products": rows,
        "blocks": blocks,
        "checks": checks,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["compiled"]:
        here = bench.Place(sys.argv[3], int(sys.argv[4]))
        here.enter()
        reference = bench.reference(False, here.device)
        with reference.curvature_mode():
            print(json.dumps(compiled(sys.argv[2], reference, here, 7)))
    else:
        bench.run("products", measure, __doc__)
