"""`diagnose`: from a problem to its blockwise spectra, what they say, and what they cannot say."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from blockspectra.blocks import Block, partition
from blockspectra.cost import estimate
from blockspectra.diagnosis.advice import advise
from blockspectra.diagnosis.block_table import block_table
from blockspectra.diagnosis.obstacles import refuse
from blockspectra.diagnosis.page import Diagnosis
from blockspectra.diagnosis.references import placed, references, settings
from blockspectra.distance import heterogeneity, js_matrix
from blockspectra.environment import environment
from blockspectra.problem import Problem, ProblemError, batch_size
from blockspectra.slq import block_spectra


def diagnose(
    problem: Problem,
    blocks: Sequence[Block] | None = None,
    *,
    steps: int = 30,
    probes: int = 4,
    seed: int = 0,
    memory: str | int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    name: str | None = None,
    quiet: bool = False,
) -> Diagnosis:
    """Measure the blockwise Hessian spectra of a model and say what they tell about training it.

    Prints the cost before it begins. Any `torch.nn.Module` that can be differentiated twice will
    do; at initialisation if the result is to be compared with the paper's or with this project's
    models. JS⁰ depends on steps and probes: the defaults are those of the reference models.

    Parameters
    ----------
    problem : Problem
        The model in evaluation mode, a loss and batches.
    blocks : sequence of Block, optional
        From `partition`; by default a weight matrix or kernel a block, Q, K and V split if fused.
    steps, probes, seed, memory, checkpoint, progress
        As for `block_spectra`.
    name : str, optional
        What to call the model in the report; by default its class.
    quiet : bool
        Do not print the cost.

    Raises
    ------
    ProblemError
        In one sentence, with the module that stands in the way: see `obstacles.refuse`. Also where
        there are fewer than two blocks to compare.
    ValueError
        As in `block_spectra`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        default = partition(problem.model)
    notes = [str(one.message) for one in caught] if blocks is None else []
    blocks = default if blocks is None else blocks
    if len(blocks) < 2:
        names = ", ".join(block.name for block in blocks) or "none"
        raise ProblemError(
            f"Heterogeneity compares blocks, and this model has {len(blocks)} ({names}): give more "
            f"with partition(model, by='neuron') or vectors=True."
        )
    refuse(problem)
    cost = estimate(problem, blocks, steps, probes, memory=memory)
    if not quiet:
        print(f"{len(blocks)} blocks: {cost}", flush=True)
    spectra = block_spectra(
        *(problem, blocks),
        **{"steps": steps, "probes": probes, "seed": seed, "memory": memory},
        **{"checkpoint": checkpoint, "progress": progress},
    )
    divergences = js_matrix(spectra)
    table = block_table(problem, blocks, spectra, divergences)
    asked = {"steps": steps, "probes": probes, "seed": seed} | _about(problem)
    as_usual = [b.name for b in blocks] == [b.name for b in default]
    measures, own = heterogeneity(spectra), references()
    needed = settings(own)
    if asked["samples"] != needed["samples"]:
        notes.append(
            f"The Hessian is a mean over {asked['samples']} samples, those of the reference models "
            f"over {needed['samples']}: JS⁰ depends on it (chapter 05)."
        )
    return Diagnosis(
        name or type(problem.model).__name__,
        cost,
        spectra,
        divergences,
        measures,
        table,
        placed(own, measures),
        advise(measures, own, _differences(asked, needed, as_usual)),
        tuple(notes),
        asked,
        environment(),
    )


def _about(problem: Problem) -> dict:
    """Describe model and data by numbers that JS⁰ depends on."""
    parameters = list(problem.model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "samples": sum(map(batch_size, problem.batches)),
        "batches": len(problem.batches),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "device": str(parameters[0].device),
    }


def _differences(asked: dict, needed: dict, as_usual: bool) -> list[str]:
    """Sentences about what keeps JS⁰ from being compared with the reference models'."""
    told = [
        f"It was measured with {asked[key]} {key} and the reference models with {needed[key]}, "
        f"which moves JS⁰."
        for key in ("steps", "probes")
        if asked[key] != needed[key]
    ]
    if not as_usual:
        told.append("Its blocks are not those of partition(model), as the reference models' are.")
    return told
