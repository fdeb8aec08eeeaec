"""Runs the chapters at one preset and writes a page about them.

`make reproduce PRESET=laptop` calls this; by hand: `.venv/bin/snakemake --cores 2 --config preset=laptop`.
A chapter is run again where its notebook, its preset, the library or a chapter that it reads has
changed; what is expensive in it is found in the store of results all the same.

On a cluster, `split=true` puts each model of a chapter into a job of its own: see profiles/. At a
preset whose device is cuda a job takes the resource gpu=1.
"""

import ast
import fcntl
import logging
import os
import sys
from pathlib import Path

import yaml
from papermill import inspect_notebook

from companion.parameters import KINDS, fits
from companion.store import PRESETS

CHAPTERS = {  # chapter: the chapters whose results it reads
    "01_block_diagonal_hessian": [],
    "02_estimator_accuracy": [],
    "03_full_spectra": [],
    "04_block_spectra": [],
    "05_block_heterogeneity": ["04_block_spectra"],
    "06_adam_vs_sgd": [],
    "07_man_made_mlp": [],
    "08_mlp_mixer": ["04_block_spectra", "06_adam_vs_sgd"],
    "09_pretrained_gpt2": ["04_block_spectra", "06_adam_vs_sgd"],
    "10_quadratics": ["04_block_spectra"],
    "11_theory": [],
    "12_your_model": [],
    "20_what_adam_sees": [],
    "21_interventions": [],
    "22_predictors": ["04_block_spectra", "06_adam_vs_sgd"],
    "30_benchmarks": [],
}
# slots: these keep two processes busy nearly all the time, the others a core and a bit
HEAVY = {"04_block_spectra": 2, "06_adam_vs_sgd": 2, "09_pretrained_gpt2": 2}
CHAPTERS["00_claims"] = list(CHAPTERS)
# they begin with what takes longest, model by model; 05 finds in the store what 04 has measured
BY_MODEL = ("03_full_spectra", "04_block_spectra", "06_adam_vs_sgd")


def stop(sentence):
    """End with one sentence, before anything has run, and a status that says so to make."""
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(3)


def check(chapter):
    """Refuse parameters that the notebook does not have, or of another type; return all of them."""
    path = Path(f"notebooks/presets/{PRESET}/{chapter}.yaml")
    for needed in (path, Path(f"notebooks/{chapter}.ipynb")):
        if not needed.exists():
            stop(f"{needed} is missing.")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        stop(f"{path} is not YAML: {' '.join(str(error).split())}.")
    if not isinstance(given, dict) or given.get("preset") != PRESET:
        stop(f"{path} must be a mapping of parameters that sets preset: {PRESET}.")
    try:
        known = inspect_notebook(f"notebooks/{chapter}.ipynb")
    except Exception as error:
        stop(f"notebooks/{chapter}.ipynb cannot be read: {error}.")
    for name, value in given.items():
        if name not in known:
            stop(f"{path}: unknown parameter {name}; {chapter} takes {', '.join(known)}.")
        kind = known[name]["inferred_type_name"].strip()
        if kind not in KINDS:
            stop(f"notebooks/{chapter}.ipynb annotates {name} by {kind}: choose {', '.join(KINDS)}.")
        if not fits(value, KINDS[kind]):
            stop(f"{path}: parameter {name} must be of type {kind}, not {value!r}.")
    return {name: ast.literal_eval(one["default"]) for name, one in known.items()} | given


PRESET, split = config.get("preset", "laptop"), str(config.get("split", "false"))
if unknown := sorted(set(config) - {"preset", "split"}):
    stop(f"Unknown setting {', '.join(unknown)}: choose from preset, split.")
if PRESET not in PRESETS:
    stop(f"Unknown preset {PRESET!r}: choose one of {', '.join(PRESETS)}.")
if split.lower() not in ("true", "false"):
    stop(f"split must be true or false, not {split!r}.")
logging.getLogger("papermill").setLevel(logging.WARNING)
PARAMETERS = {chapter: check(chapter) for chapter in CHAPTERS}
MODELS = {
    chapter: dict.fromkeys(PARAMETERS[chapter]["model"].replace(",", " ").split())
    for chapter in BY_MODEL
    if split.lower() == "true"
}

Path("build").mkdir(exist_ok=True)
if workflow.is_main_process:  # a job that it has sent to another computer comes here too
    running = open("build/.running", "w")  # locked while this process lives, so never stale
    try:
        fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stop("The chapters are being run in this folder already: wait until that has ended.")
    except OSError:
        pass  # some file systems of clusters know no locks

# results are computed here, never taken from those committed in data/results
os.environ["BLOCKSPECTRA_RESULTS"] = os.path.abspath("build/results")
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, not of the user
os.environ.pop("MPLBACKEND", None)  # figures inline

PYTHON = sys.executable
CODE = (p for p in sorted(Path("lib").rglob("*")) if p.suffix in (".py", ".csv", ".yaml", ".sha256"))
LIBRARY = [p.as_posix() for p in CODE if p.name != "report.py"]  # no chapter needs that one
BENCHMARKS = [p.as_posix() for p in sorted(Path("tests/benchmarks/results").glob("*.json"))]
NOTEBOOKS, RESULTS, LOGS = (f"build/{part}/{PRESET}" for part in ("notebooks", "results", "logs"))
REPORT = f"build/report/{PRESET}/index.html"
MADE = [f"{NOTEBOOKS}/{chapter}.ipynb" for chapter in CHAPTERS]
MADE += [f"{RESULTS}/manifests/{chapter}.json" for chapter in CHAPTERS]
# one thread a process; Snakemake would set the number of workers
ONE_THREAD = "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 VECLIB_MAXIMUM_THREADS=1"


def gpus(wildcards):
    """GPUs that a job takes: one where the device is cuda."""
    return int(PARAMETERS[wildcards.chapter].get("device") == "cuda")


wildcard_constraints:
    chapter="|".join(CHAPTERS),
    model="[^/]+",


localrules:
    all,
    report,


rule all:
    input:
        REPORT,
        MADE,


rule chapter:
    input:
        notebook="notebooks/{chapter}.ipynb",
        parameters=f"notebooks/presets/{PRESET}/{{chapter}}.yaml",
        library=LIBRARY,
        benchmarks=lambda w: BENCHMARKS if w.chapter == "30_benchmarks" else [],
        reads=lambda w: [f"{RESULTS}/manifests/{needed}.json" for needed in CHAPTERS[w.chapter]],
        models=lambda w: [
            f"{RESULTS}/models/{w.chapter}.{model}.json" for model in MODELS.get(w.chapter, ())
        ],
    output:
        notebook=f"{NOTEBOOKS}/{{chapter}}.ipynb",
        manifest=f"{RESULTS}/manifests/{{chapter}}.json",
    log:
        f"{LOGS}/{{chapter}}.log",
    params:
        partial=f"{LOGS}/{{chapter}}.failed.ipynb",
    threads: lambda w: HEAVY.get(w.chapter, 1)
    resources:
        gpu=gpus,
    shell:
        """
        {ONE_THREAD}
        echo "{wildcards.chapter}: running"
        if ! {PYTHON:q} -m papermill {input.notebook} {params.partial} -f {input.parameters} \
            --no-progress-bar > {log} 2>&1
        then
            reason=$(sed 's/\x1b[[][0-9;]*m//g' {log} | grep -v '^ *$' | tail -n 1)
            echo "{wildcards.chapter} failed ($reason): see {log} and {params.partial}." >&2
            exit 1
        fi
        mv {params.partial} {output.notebook}
        if ! [ -e {output.manifest} ]
        then
            echo "{wildcards.chapter} failed: it left no {output.manifest}." >&2
            exit 1
        fi
        echo "{wildcards.chapter}: done after $SECONDS s"
        """


rule one_model:
    input:
        parameters=f"notebooks/presets/{PRESET}/{{chapter}}.yaml",
        library=LIBRARY,
    output:
        f"{RESULTS}/models/{{chapter}}.{{model}}.json",
    log:
        f"{LOGS}/{{chapter}}.{{model}}.log",
    threads: lambda w: PARAMETERS[w.chapter]["workers"]
    resources:
        gpu=gpus,
    shell:
        """
        {ONE_THREAD}
        echo "{wildcards.chapter}, {wildcards.model}: running"
        if ! {PYTHON:q} -m companion.jobs {wildcards.chapter} --preset {PRESET} \
            --model {wildcards.model:q} --workers {threads} --done {output:q} > {log:q} 2>&1
        then
            echo "{wildcards.chapter}, {wildcards.model} failed ($(tail -n 1 {log:q})): see {log}." >&2
            exit 1
        fi
        echo "{wildcards.chapter}, {wildcards.model}: done after $SECONDS s"
        """


rule report:
    input:
        MADE,
        pages=[path.as_posix() for path in sorted(Path("docs").rglob("*.*"))],
        library="lib/companion/report.py",
    output:
        REPORT,
    log:
        f"{LOGS}/report.log",
    params:
        source=f"build/report-source/{PRESET}",
        folder=Path(REPORT).parent,
    shell:
        """
        if ! {{ {PYTHON:q} docs/pages.py {params.source} {RESULTS} {NOTEBOOKS} &&
                {PYTHON:q} -m sphinx -E -q -d build/report-cache {params.source} {params.folder}; }} > {log} 2>&1
        then
            echo "The report was not written ($(tail -n 1 {log})): see {log}." >&2
            exit 1
        fi
        """
