# Two commands do everything: `make reproduce` and `make test`. `make` alone lists all.
# Needs make and Python 3.11, 3.12 or 3.13; .venv is made where it is missing or out of date.

PYTHON ?= python3
PRESET ?= laptop
CORES ?= 2
GPUS ?= 1
TORCH := $(shell grep '^torch==' constraints.txt)

BIN := .venv/bin
READY := .venv/.made
CHAPTERS := $(filter-out notebooks/00_claims.ipynb,$(sort $(wildcard notebooks/*.ipynb)))

# one thread a process: small models run fastest so, and the same bits come out everywhere
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export VECLIB_MAXIMUM_THREADS := 1
export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# this environment's kernel rather than the user's, and figures inline
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH
unexport MPLBACKEND
unexport PYTHONPATH

.PHONY: help reproduce test lab figures site notebooks results bench constraints clean

help:
	@echo 'make reproduce    run every chapter, write build/index.html, print the claims (PRESET=smoke|laptop|paper, CORES=2, GPUS=1)'
	@echo 'make test         lint, unit tests, and the notebooks against their committed outputs'
	@echo 'make lab          open the notebooks in JupyterLab (LAB_ARGS="--no-browser --port 8890")'
	@echo 'make figures      draw every figure again from committed results, into build/figures/'
	@echo 'make site         write the pages of the companion, into build/site/'
	@echo 'make clean        remove build/ with its results, and caches; .venv and committed results stay'
	@echo 'for maintainers:'
	@echo 'make results      copy the results of make reproduce into data/results/, to be committed (PRESET=...)'
	@echo 'make notebooks    run the notebooks in place at their defaults, to be committed with their outputs'
	@echo 'make bench        measure costs again, into tests/benchmarks/results/'
	@echo 'make constraints  renew constraints.txt (TORCH=torch==2.13.0)'

# one slot more than cores: for much of its time a chapter keeps only one of them busy
reproduce: $(READY)
	@$(BIN)/python -m snakemake --cores "$$(( $(CORES) + 1 ))" --resources 'gpu=$(GPUS)' \
	    --config 'preset=$(PRESET)' --quiet all --keep-going --rerun-incomplete \
	    --rerun-triggers mtime params input --nolock \
	    || { [ $$? -eq 3 ] || echo 'Not finished: make reproduce goes on from here; .venv/bin/snakemake -c1 --config preset=$(PRESET) tells more.' >&2; exit 1; }
	@echo 'Report: build/index.html; claims at the $(PRESET) preset:'
	@$(BIN)/python -m companion.report --print 'build/results/$(PRESET)'

# The notebooks share one fresh store in the order of the chapters; the claims come last.
test: $(READY)
	$(BIN)/python -m ruff check lib tests notebooks
	$(BIN)/python -m ruff format --check lib tests notebooks
	$(BIN)/python -m pytest
	@store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && set -x && \
	MALLOC_TOP_PAD_=67108864 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647 \
	BLOCKSPECTRA_RESULTS="$$store" PYTHONWARNINGS=ignore $(BIN)/python -m pytest -v -p no:warnings \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 3600 $(CHAPTERS) notebooks/00_claims.ipynb

lab: $(READY)
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_claims.ipynb $(LAB_ARGS)

figures: $(READY)
	@$(BIN)/python -m companion.redraw 'data/results/$(PRESET)' build/figures --workers '$(CORES)'

# warnings are errors: a broken link is one
site: $(READY)
	@$(BIN)/python docs/pages.py build/site-source
	@$(BIN)/python -m sphinx -E -W --keep-going -q -d build/site-cache build/site-source build/site
	@echo 'Site: build/site/index.html'

results: $(READY)
	@$(BIN)/python -m companion.report --keep 'build/results/$(PRESET)' 'data/results/$(PRESET)'
	@[ '$(PRESET)' != laptop ] || $(BIN)/python -m companion.reference_numbers data/results/laptop

# what make reproduce has computed at the laptop preset is found in its store
notebooks: $(READY)
	@for notebook in $(CHAPTERS) notebooks/00_claims.ipynb; do \
	    BLOCKSPECTRA_RESULTS="$$PWD/build/results" $(BIN)/python -m papermill --log-level ERROR \
	        --no-progress-bar "$$notebook" "$$notebook" || exit 1; \
	done
	@$(BIN)/python -m nbstripout --keep-output --keep-count \
	    --extra-keys 'metadata.papermill cell.metadata.papermill' $(CHAPTERS) notebooks/00_claims.ipynb

bench: $(READY)
	@for benchmark in tests/benchmarks/*.py; do $(BIN)/python "$$benchmark" || exit 1; done

clean:
	rm -rf build .snakemake .pytest_cache .ruff_cache .hypothesis .ipynb_checkpoints notebooks/.ipynb_checkpoints
	find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, and by name: a wheel at hand, else the build for this machine's processor or
# GPU (which uv knows how to choose), else whatever pip finds.
define install_torch
$(1)/bin/python -m pip install -q --no-index --no-deps '$(TORCH)' 2>/dev/null || { \
    $(1)/bin/python -m pip install -q uv 2>/dev/null && \
    $(1)/bin/python -m uv pip install -q --python $(1)/bin/python --torch-backend=auto $(2) '$(TORCH)' 2>/dev/null; \
} || $(1)/bin/python -m pip install -q $(2) '$(TORCH)'
endef

define check_python
"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
    echo "Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1 || true): name another, as in make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
    exit 1; }
endef

$(READY): pyproject.toml constraints.txt
	@$(check_python)
	@echo 'Making .venv with the versions of constraints.txt: some minutes, once.'
	@"$(PYTHON)" -m venv .venv
	@$(call install_torch,.venv,-c constraints.txt)
	@$(BIN)/python -m pip uninstall -q -y uv 2>/dev/null
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[data,notebooks,site,test]'
	@touch $@

constraints:
	@$(check_python)
	@rm -rf build/constraints && "$(PYTHON)" -m venv build/constraints
	@$(call install_torch,build/constraints,)
	@build/constraints/bin/python -m pip uninstall -q -y uv 2>/dev/null
	@build/constraints/bin/python -m pip install -q '$(TORCH)' '.[data,notebooks,site,test]'
	@build/constraints/bin/python -m pip check
	@{ grep '^#' constraints.txt; build/constraints/bin/python -m pip freeze --exclude blockspectra \
	    | grep -v -E '^(nvidia|cuda|triton)' | sed 's/^\(torch==[^+]*\).*/\1/' | LC_ALL=C sort -f; } \
	    > build/constraints.txt && mv build/constraints.txt constraints.txt
	@rm -rf build/constraints && echo 'Renewed constraints.txt: bring torch in environment.yml in step.'
