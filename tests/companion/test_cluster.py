"""The workflow on a cluster: each model of a chapter in a job of its own.

Sees what one computer cannot: jobs that need the environment or the lock of the process that sent
them, results that nobody finds again, a model left out. In place of pods there are processes that
share a folder and nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.jobs import declared
from companion.parameters import at_preset
from processes import run

ROOT = Path(__file__).parents[2]
CHAPTER = "04_block_spectra"
SETTINGS = {"size": "tiny", "samples": 2, "steps": 6, "probes": 1}
MODELS = ("vgg", "gpt")
WORKFLOW = (ROOT / "Snakefile").read_text(encoding="utf-8")
BY_MODEL = re.findall(r'"(\w+)"', re.search(r"BY_MODEL = \((.*)\)", WORKFLOW)[1])

# stands in for kubectl: pods are processes that inherit nothing from those who ask for them
KUBECTL = """#!/bin/sh
[ "$1" = create ] && exec "$PYTHON" "$PODS/create.py"
case $(cat "$PODS/${2#job.batch/}.code" 2> /dev/null) in
    '') echo , ;;
    0) echo 1, ;;
    *) echo ,1 ;;
esac
"""
CREATE = """
import os, subprocess, sys, yaml
from pathlib import Path

pods, wanted = Path(os.environ["PODS"]), yaml.safe_load(sys.stdin)
(pod,) = wanted["spec"]["template"]["spec"]["containers"]
path = pods / f"pod-{len(list(pods.glob('*.yaml')))}"
path.with_suffix(".yaml").write_text(yaml.safe_dump(wanted))
path.with_suffix(".script").write_text(Path(pod["command"][-1]).read_text())
subprocess.Popen(
    ["sh", "-c", f'"$@" > {path}.log 2>&1; echo $? > {path}.code', "-", *pod["command"]],
    cwd=pod["workingDir"],
    env={name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH")},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
print(f"job.batch/{path.name}")
"""


def without_figures(path):
    """A chapter that ends after its first measurements."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (first, *_) = [i for i, cell in enumerate(code) if "= measure(" in cell.source]
    notebook.cells = [*code[: first + 1], code[-1]]
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with one chapter made light: two models, no figures."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("lib", "notebooks", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    parameters = {"preset": "smoke", "model": " ".join(MODELS), "seeds": 1, "workers": 1}
    path = folder / "notebooks" / "presets" / "smoke" / f"{CHAPTER}.yaml"
    path.write_text(yaml.safe_dump(parameters | SETTINGS), encoding="utf-8")
    without_figures(folder / "notebooks" / f"{CHAPTER}.ipynb")
    return folder


@pytest.fixture(scope="module")
def undivided(copy, tmp_path_factory):
    """The same chapter in one piece, in a store of its own: begun here, so that nobody waits."""
    folder = tmp_path_factory.mktemp("undivided")
    arguments = (
        *(sys.executable, "-m", "papermill", f"notebooks/{CHAPTER}.ipynb", folder / "out.ipynb"),
        *("-f", f"notebooks/presets/smoke/{CHAPTER}.yaml", "--no-progress-bar"),
    )
    own = {"PYTHONPATH": str(copy / "lib"), "BLOCKSPECTRA_RESULTS": str(folder)}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            arguments, cwd=copy, env=os.environ | own, stdout=log, stderr=log
        )
    yield process, folder
    process.wait()


@pytest.fixture(scope="module")
def pods(copy, undivided):
    """What was asked of the cluster: the specification of each pod, with its script beside."""
    if " " in sys.executable:
        pytest.skip("Snakemake's scripts for pods do not quote the path of Python")
    folder = copy / "pods"
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL, encoding="utf-8")
    (folder / "kubectl").chmod(0o755)
    (folder / "create.py").write_text(CREATE, encoding="utf-8")
    own = {"PYTHON": sys.executable, "PODS": str(folder), "PYTHONPATH": str(copy / "lib")}
    result = run(
        *("snakemake", "--profile", "profiles/kubernetes"),
        *("--config", "preset=smoke", "split=true"),
        *("--seconds-between-status-checks", 1, "--latency-wait", 5),
        *("--", f"build/results/smoke/manifests/{CHAPTER}.json"),
        cwd=copy,
        PATH=f"{folder}:{os.environ['PATH']}",
        **own | {"IMAGE": "python", "CLAIM": "work", "MOUNT": str(copy)},
    )
    logs = "".join(path.read_text() for path in folder.glob("*.log"))
    assert result.returncode == 0, result.stderr + logs
    return sorted(folder.glob("*.yaml"))


@pytest.fixture
def manifests(copy, pods):
    """Paths: of each model, and of the chapter."""
    store = copy / "build" / "results" / "smoke"
    models = [store / "models" / f"{CHAPTER}.{model}.json" for model in MODELS]
    return models, store / "manifests" / f"{CHAPTER}.json"


class TestSplitChapter:
    def test_every_model_and_the_chapter_ran_in_a_pod_of_its_own(self, pods):
        asked = []
        for path in pods:
            about = re.search("# properties = (.*)", path.with_suffix(".script").read_text())
            properties = json.loads(about[1])
            asked.append((properties["rule"], properties["wildcards"].get("model")))
        assert sorted(asked[:2]) == [("one_model", model) for model in sorted(MODELS)]
        assert asked[2:] == [("chapter", None)]

    def test_pods_ask_for_what_the_job_needs(self, pods):
        (pod,) = yaml.safe_load(pods[0].read_text())["spec"]["template"]["spec"]["containers"]
        assert pod["resources"] == {
            "requests": {"cpu": "1", "memory": "8000M"},
            "limits": {"memory": "8000M", "nvidia.com/gpu": "0"},
        }

    def test_the_chapter_computed_nothing_and_found_all(self, copy, manifests):
        models, chapter = manifests
        found = json.loads(chapter.read_text())["results"]
        measured = [json.loads(path.read_text())["results"] for path in models]
        assert [len(one) for one in measured] == [1, 1]
        assert found == measured[0] | measured[1]
        store = copy / "build" / "results" / "smoke"
        assert {path.name for path in store.glob("*.npz")} == set(found)
        written = {name: (store / name).stat().st_mtime_ns for name in found}
        for path, results in zip(models, measured, strict=True):
            assert all(written[name] < path.stat().st_mtime_ns for name in results)

    def test_results_are_those_of_an_undivided_run_to_the_bit(self, manifests, undivided):
        process, folder = undivided
        assert process.wait() == 0, (folder / "log").read_text()
        manifest = json.loads((folder / "smoke" / "manifests" / f"{CHAPTER}.json").read_text())
        assert manifest["results"] == json.loads(manifests[1].read_text())["results"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("echo 1,", "success"),
        ("echo ,1", "failed"),
        ("echo ,", "running"),
        ("true  # deleted", "failed"),
        ("exit 1  # no connection", "running"),
    ],
)
def test_snakemake_is_told_how_a_pod_fares(answer, status, tmp_path):
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "kubectl").chmod(0o755)
    told = subprocess.run(
        ["sh", ROOT / "profiles" / "kubernetes" / "status.sh", "job.batch/one"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert told.stdout == f"{status}\n"


@pytest.mark.parametrize("chapter", BY_MODEL)
def test_no_model_is_left_out(chapter):
    models = at_preset(chapter, "laptop")["model"].split()
    assert {job.model for job in declared(chapter, "laptop")} == set(models)


def test_a_model_that_the_chapter_has_not_is_refused(copy):
    own = {"PYTHONPATH": str(copy / "lib")}
    result = run("companion.jobs", CHAPTER, "--preset", "smoke", "--model", "bert", cwd=copy, **own)
    assert result.returncode == 2
    assert result.stderr.endswith("no job of these chapters is of the model 'bert'\n")


class TestWorkflow:
    def test_jobs_on_a_gpu_say_so(self, copy):
        path = copy / "notebooks" / "presets" / "full" / f"{CHAPTER}.yaml"
        path.write_text(f"{{preset: full, model: {' '.join(MODELS)}, device: cuda}}")
        manifests = "build/results/full/manifests"
        result = run(
            *("snakemake", "--dry-run", "--cores", "1", "--config", "preset=full", "split=true"),
            *("--", f"{manifests}/{CHAPTER}.json", f"{manifests}/11_theory.json"),
            cwd=copy,
        )
        assert result.returncode == 0, result.stderr
        log = result.stdout + result.stderr
        jobs = re.findall(
            r"^rule (\w+):$.*?wildcards: (.*?)$.*?resources: (.*?)$", log, re.M | re.S
        )
        gpus = {(rule, which): "gpu=1" in resources for rule, which, resources in jobs}
        assert gpus.pop(("chapter", "chapter=11_theory")) is False
        assert gpus.pop(("chapter", f"chapter={CHAPTER}")) is True
        assert len(gpus) == len(MODELS)
        assert all(gpus.values())

    def test_split_is_true_or_false(self, copy):
        result = run(
            *("snakemake", "--dry-run", "--cores", "1", "--quiet", "all", "--config", "split=gpt"),
            cwd=copy,
        )
        assert (result.returncode, result.stderr) == (
            3,
            "split must be true or false, not 'gpt'.\n",
        )
