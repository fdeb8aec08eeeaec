"""Time of a whole blockwise spectrum: this library beside what else can compute one.

Same model, batch, blocks, steps and probes for all; each peer's product is compared with the
library's before anything is timed. Whatever favours a peer without changing its product is granted:
its own Lanczos without re-orthogonalisation, no tests of determinism, no search for the ends of the
spectrum. ``make bench`` keeps the numbers in ``results/peers.json``.

Peers go into a folder of their own, ``build/peers``, without what they depend on: torch, NumPy and
SciPy are those of the environment, which stays as it is. See the README beside this file.
"""

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import bench
import numpy as np
import released
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockspectra import Problem, block_spectra, cross_entropy, full_spectrum, partition
from blockspectra.blocks import Block, whole
from blockspectra.hessian import block_products
from companion.store import build_folder

PINS = (
    "curvlinops-for-pytorch==3.0.1",
    *("backpack-for-pytorch==1.7.1", "einconv==0.1.0", "einops==0.8.2"),  # which it imports
    *("linear_operator==0.6.1", "opt-einsum==3.4.0"),
    "hessian-eigenthings==1.0.0a5",
    "pyhessian==0.1",
)
# all take time in proportion to steps × probes; a call's fixed cost must tell no more than it does
# at the released defaults, 100 × 10: that of ours is 1.5 % here
STEPS, PROBES, REPEATS = 16, 2, 2
GRADIENTS = 10  # in a round, since one is short
FULL_STEPS = 10
BY_TWO = "blockspectra, two processes"  # of one thread each, which share the blocks


@dataclass(frozen=True)
class Peer:
    """Something that computes spectra.

    Attributes
    ----------
    name, package : str
    how : str
        What exactly is timed.
    product : callable, (block, vector) → Tensor
        Compared with the library's.
    spectrum : callable
        All blocks, steps and probes, from a model and data to nodes and weights.
    """

    name: str
    package: str
    how: str
    product: Callable[[Block | None, Tensor], Tensor]
    spectrum: Callable[[], object]


def install() -> None:
    """Fetch the peers, once for each change of `PINS`, and make them importable."""
    folder = build_folder() / "peers"
    stamp = folder / "pins.txt"
    if not stamp.is_file() or stamp.read_text() != "\n".join(PINS):
        print(f"Installing {len(PINS)} packages into {folder}.", file=sys.stderr)
        # without dependencies: PyPI's torch would bring gigabytes of CUDA
        command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--no-deps"]
        command += ["--only-binary=:all:", "--target", str(folder), *PINS]
        subprocess.run(command, check=True, capture_output=True, text=True)
        stamp.write_text("\n".join(PINS))
    sys.path.append(str(folder))  # last: what the environment has comes from there


def ours(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> Peer:
    """Return this library."""
    return Peer(
        "blockspectra",
        "blockspectra",
        "block_spectra: kept graph, re-orthogonalised",
        lambda block, vector: block_products(problem, [block], [vector])[0],
        lambda: block_spectra(problem, blocks, steps=steps, probes=probes, progress=False),
    )


def ours_by_two(problem: Problem, steps: int, probes: int, pair: bench.Pair) -> Peer:
    """Return this library in two processes of one thread."""
    return Peer(
        BY_TWO,
        "blockspectra",
        'block_spectra(ranks="blocks"): two processes of one thread share the blocks',
        lambda block, vector: block_products(problem, [block], [vector])[0],
        lambda: pair.spectra(steps, probes),
    )


def as_released(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> Peer:
    """Return the script released with the paper, stated again."""
    return Peer(
        "released with the paper",
        "",
        "stated again: a new graph a step, backward to all parameters, no re-orthogonalisation; "
        "without its density",
        lambda block, vector: released.products(problem, [block], [vector.double()])[0],
        lambda: released.quadrature(problem, blocks, steps, probes),
    )


class Part:
    """A curvlinops operator on a block's entries of its parameter, as its Lanczos wants it."""

    def __init__(self, problem: Problem, block: Block):
        from curvlinops import HessianLinearOperator

        parameter = block.parameters[0]
        inputs, targets = problem.batches[0]
        self.operator = HessianLinearOperator(
            nn.Sequential(problem.model, nn.Flatten(0, 1)),
            nn.CrossEntropyLoss(),
            [parameter],
            [(inputs, targets.flatten())],
            check_deterministic=False,
            num_data=len(inputs),
        )
        self.block, self.shape = block, (block.size, block.size)
        self.device, self.dtype = parameter.device, parameter.dtype

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply (size,), or (size, vector) by vmap."""
        if vectors.ndim == 1:
            return self.block.flatten(self.operator @ self.block.expand(vectors))
        wide = self.block.expand(vectors.mT)[0].movedim(0, -1)
        return self.block.flatten([(self.operator @ [wide])[0].movedim(-1, 0)]).mT


def curvlinops(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> Peer:
    """Return curvlinops with its own Lanczos, one operator a block."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    return Peer(
        "curvlinops",
        "curvlinops-for-pytorch",
        "HessianLinearOperator and fast_lanczos (no re-orthogonalisation), one probe at a time",
        lambda block, vector: Part(problem, block) @ vector,
        lambda: [
            [fast_lanczos(part, steps) for _ in range(probes)]
            for part in (Part(problem, block) for block in blocks)
        ],
    )


def curvlinops_together(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> Peer:
    """Return curvlinops with all probes of a block as the columns of one matrix."""

    def lanczos(part: Part) -> np.ndarray:
        vectors = torch.randn(part.shape[0], probes, device=part.device, dtype=part.dtype)
        vectors, before = vectors / vectors.norm(dim=0), torch.zeros_like(vectors)
        matrix, beta = torch.zeros(probes, steps, steps), torch.zeros(probes)
        for j in range(steps):
            residual = part @ vectors - beta.to(part.device) * before
            alpha = (residual * vectors).sum(0)
            residual -= alpha * vectors
            matrix[:, j, j] = alpha
            if j + 1 < steps:
                beta = residual.norm(dim=0)
                before, vectors = vectors, residual / beta
                matrix[:, j, j + 1] = matrix[:, j + 1, j] = beta
        return np.linalg.eigh(matrix.numpy())

    return Peer(
        "curvlinops, probes together",
        "curvlinops-for-pytorch",
        "HessianLinearOperator times a matrix (vmap), and a three-term recurrence written here",
        lambda block, vector: (Part(problem, block) @ torch.stack([vector] * 2, 1))[:, 0],
        lambda: [lanczos(Part(problem, block)) for block in blocks],
    )


def eigenthings(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> Peer:
    """Return pytorch-hessian-eigenthings with its own spectral density, one operator a block."""
    from hessian_eigenthings.algorithms.spectral_density import spectral_density
    from hessian_eigenthings.operators.base import LambdaOperator
    from hessian_eigenthings.operators.hessian import HessianOperator

    def operator(block: Block) -> LambdaOperator:
        parameter = block.parameters[0]
        hessian = HessianOperator(
            problem.model,
            problem.batches,
            cross_entropy,
            param_filter=lambda name, candidate: candidate is parameter,
        )

        def product(vector: Tensor) -> Tensor:
            wide = block.expand(vector)[0].reshape(-1)
            return block.flatten([hessian.matvec(wide).view_as(parameter)])

        return LambdaOperator(product, block.size, parameter.device, parameter.dtype)

    return Peer(
        "pytorch-hessian-eigenthings",
        "hessian-eigenthings",
        "HessianOperator and spectral_density (re-orthogonalised; Rademacher probes)",
        lambda block, vector: operator(block).matvec(vector),
        lambda: [
            spectral_density(operator(block), num_runs=probes, lanczos_steps=steps, seed=0)
            for block in blocks
        ],
    )


def ours_full(problem: Problem, steps: int, probes: int) -> Peer:
    """Return this library on the full Hessian."""
    return Peer(
        "blockspectra",
        "blockspectra",
        "full_spectrum: kept graph, re-orthogonalised",
        lambda _, vector: block_products(problem, [whole(problem.model)], [vector])[0],
        lambda: full_spectrum(problem, steps=steps, probes=probes, progress=False),
    )


def pyhessian(problem: Problem, steps: int, probes: int) -> Peer:
    """Return PyHessian's density of the full Hessian."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    inputs, targets = problem.batches[0]
    model = nn.Sequential(problem.model, nn.Flatten(0, 1))
    data = inputs, targets.flatten()

    def start() -> hessian:
        return hessian(model, nn.CrossEntropyLoss(), data=data, cuda=inputs.is_cuda)

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], -1), vectors

    def density() -> object:
        with mock.patch.object(torch, "eig", eig, create=True):
            return start().density(iter=steps, n_v=probes)

    def product(_: None, vector: Tensor) -> Tensor:
        found = start()
        parts = vector.split([p.numel() for p in found.params])
        shaped = [v.view_as(p) for v, p in zip(parts, found.params, strict=True)]
        result = hessian_vector_product(found.gradsH, found.params, shaped)
        return torch.cat([h.reshape(-1) for h in result])

    return Peer(
        "PyHessian",
        "pyhessian",
        "density (kept graph, re-orthogonalised), with torch.eig, which PyTorch has no more, put "
        "back",
        product,
        density,
    )


def error(peer: Peer, problem: Problem, blocks: Sequence[Block] | None) -> float:
    """Largest difference of its products from the library's, relative; few blocks tell."""
    generator, found = torch.Generator().manual_seed(0), []
    for block in blocks[:: max(1, len(blocks) // 4)] if blocks else [None]:
        parameters = block.parameters if block else list(problem.model.parameters())
        size = block.size if block else sum(p.numel() for p in parameters)
        vector = torch.randn(size, generator=generator).to(parameters[0])
        (right,) = block_products(problem, [block or whole(problem.model)], [vector])
        found.append(bench.relative(peer.product(block, vector).cpu(), right.cpu()))
    return max(found)


def compared(
    problem: Problem,
    blocks: Sequence[Block] | None,
    makers: dict[str, Callable[[], Peer]],
    repeats: int,
    place: bench.Place,
) -> list[dict]:
    """Time all peers in turn; a row each, the first is the library itself."""
    peers, errors, rows = {}, {}, {}
    for name, make in makers.items():
        try:
            peer = make()
            errors[name] = error(peer, problem, blocks)
            if not errors[name] <= 1e-4:
                raise ValueError(f"its products are off by {errors[name]:.1g}")
            peers[name] = peer
        except Exception as problem_of_peer:  # whatever it is, the row says so
            first = (str(problem_of_peer).splitlines() or [""])[0]
            rows[name] = unknown(name, f"not run: {type(problem_of_peer).__name__}: {first}")
        problem.model.zero_grad(set_to_none=True)
    one = bench.gradient(problem)
    cases = {"gradient": lambda: [one() for _ in range(GRADIENTS)]}
    cases |= {name: peer.spectrum for name, peer in peers.items()}
    times = bench.rounds(cases, repeats, place, warm=False)
    first = next(iter(makers))
    for name, peer in peers.items():
        ratio = times.ratio(name, first)
        rows[name] = {
            "peer": name,
            "times_ours": ratio["ratio"],
            "low": ratio["low"],
            "high": ratio["high"],
            "gradients": round(times.ratio(name, "gradient", GRADIENTS)["ratio"], 1),
            "error": float(f"{errors[name]:.1g}"),
            "version": importlib.metadata.version(peer.package) if peer.package else "",
            "note": peer.how,
        }
    head = {**place.columns, "blocks": "all" if blocks else "full"}
    return [{**head, **rows[name]} for name in makers]


def unknown(name: str, note: str) -> dict:
    """Columns of a peer that was not measured, with the reason."""
    numbers = dict.fromkeys(("times_ours", "low", "high", "gradients", "error"))
    return {"peer": name, **numbers, "version": "", "note": note}


def densities(problem: Problem, blocks: Sequence[Block], steps: int, probes: int) -> dict:
    """Seconds of the released density of one block beside ours on the same grid."""
    nodes, weights = released.quadrature(problem, blocks[:1], steps, probes)
    spectra = block_spectra(problem, blocks[:1], steps=steps, probes=probes, progress=False)
    grid, _ = released.density(nodes[0], weights[0])
    cases = {
        "released": lambda: released.density(nodes[0], weights[0]),
        "ours": lambda: spectra.density(grid, released.SIGMA),
    }
    times = bench.rounds(cases, 1, bench.ONE)
    return {f"{name}_seconds_a_block": float(f"{times.median(name):.2g}") for name in cases}


@sdpa_kernel(SDPBackend.MATH)  # peers differentiate twice what PyTorch would fuse
def measure(quick: bool) -> dict:
    """Measure everything."""
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
    steps, probes, repeats = (2, 2, 1) if quick else (STEPS, PROBES, REPEATS)
    try:
        install()
    except subprocess.CalledProcessError as failure:  # each row will say what is missing
        print(f"No peers: {failure.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    rows = []
    for place in bench.PLACES:
        if place.missing:
            rows.append({**place.columns, "blocks": "all", **unknown("blockspectra", bench.NO_GPU)})
            continue
        place.enter()
        problem = bench.reference(quick, place.device)
        blocks = partition(problem.model)
        settings = problem, blocks, steps, probes
        makers = {
            "blockspectra": lambda s=settings: ours(*s),
            "released with the paper": lambda s=settings: as_released(*s),
            "curvlinops": lambda s=settings: curvlinops(*s),
            "curvlinops, probes together": lambda s=settings: curvlinops_together(*s),
            "pytorch-hessian-eigenthings": lambda s=settings: eigenthings(*s),
        }
        pair = bench.Pair(quick) if place == bench.TWO else None
        if pair:
            makers[BY_TWO] = lambda s=(problem, steps, probes, pair): ours_by_two(*s)
        found = compared(problem, blocks, makers, repeats, place)
        if pair:
            pair.end()
        full = problem, 2 if quick else FULL_STEPS, 1
        makers = {
            "blockspectra": lambda s=full: ours_full(*s),
            "PyHessian": lambda s=full: pyhessian(*s),
        }
        found += compared(problem, None, makers, repeats, place)
        for row in found:
            print(row)
        rows += found
    problem = bench.reference(quick, "cpu")
    return {
        **bench.described(problem),
        "steps": steps,
        "probes": probes,
        "full_steps": 2 if quick else FULL_STEPS,
        "full_probes": 1,
        "repeats": repeats,
        "peers": rows,
        "density": densities(problem, partition(problem.model), steps, probes),
    }


if __name__ == "__main__":
    bench.run("peers", measure, __doc__)
