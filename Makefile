# Two commands do everything: `make reproduce` and `make test`. `make` alone lists all.
# Needs make and Python 3.11, 3.12 or 3.13; .venv is made where it is missing or out of date.

PYTHON ?= python3
PRESET ?= laptop
CORES ?= 2
# chapters that make full computes, in this order; all of them if empty
FULL ?=
GPUS ?= 1
TORCH := $(shell grep '^torch==' constraints.txt)
EXTRAS := data,notebooks,site,test

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
# without a home to write to, caches and settings of the tools go under build/
ifneq ($(shell [ -d "$$HOME" ] && [ -w "$$HOME" ] && echo writable),writable)
export XDG_CACHE_HOME ?= $(CURDIR)/build/home/cache
export MPLCONFIGDIR ?= $(CURDIR)/build/home/matplotlib
export IPYTHONDIR ?= $(CURDIR)/build/home/ipython
export JUPYTER_CONFIG_DIR ?= $(CURDIR)/build/home/jupyter
export JUPYTER_DATA_DIR ?= $(CURDIR)/build/home/jupyter-data
endif

.PHONY: help reproduce test lab figures full site notebooks results bench constraints clean

help:
	@echo 'make reproduce    run every chapter, write build/report/PRESET/index.html, print the claims (PRESET=smoke|laptop, CORES=2)'
	@echo 'make test         lint, import rules, unit tests, and the notebooks against their committed outputs'
	@echo 'make lab          open the notebooks in JupyterLab (LAB_ARGS="--no-browser --port 8890")'
	@echo 'make figures      draw every figure again from committed results, into build/figures/'
	@echo 'make full         compute what the results at the paper sizes lack, each kept when it is done (CORES=2)'
	@echo 'make site         write the pages of the companion, into build/site/'
	@echo 'make clean        remove build/ with its results, and caches; .venv and committed results stay'
	@echo 'for maintainers:'
	@echo 'make results      copy the results of make reproduce into data/results/, to be committed (PRESET=...)'
	@echo 'make notebooks    run the notebooks in place at their defaults, to be committed with their outputs'
	@echo 'make bench        measure costs again, into tests/benchmarks/results/'
	@echo 'make constraints  renew constraints.txt (TORCH=torch==2.13.0)'

# Snakemake, told to be quiet, does not say what is wrong with the workflow itself: a dry run does.
define show_reason
if reason=$$($(BIN)/python -m snakemake --dry-run --config 'preset=$(PRESET)' --nolock \
        --quiet progress rules reason host 2>&1); then \
    for notebook in build/logs/$(PRESET)/*.failed.ipynb; do \
        log="$${notebook%.failed.ipynb}.log"; \
        [ ! -e "$$log" ] || { echo "Last lines of $$log:"; grep -v '^ *$$' "$$log" | tail -n 5; }; \
    done; \
else echo "$$reason"; fi >&2; \
echo 'Not finished, for the reasons above: mend them, and make $@ PRESET=$(PRESET) goes on from here.' >&2
endef

# one slot more than cores: for much of its time a chapter keeps only one of them busy
reproduce: $(READY)
	@$(BIN)/python -m snakemake --cores "$$(( $(CORES) + 1 ))" --resources 'gpu=$(GPUS)' \
	    --config 'preset=$(PRESET)' --quiet all --keep-going --rerun-incomplete \
	    --rerun-triggers mtime params input --nolock \
	    || { [ $$? -eq 3 ] || { $(show_reason); }; exit 1; }
	@echo 'Report: build/report/$(PRESET)/index.html; claims at the $(PRESET) preset:'
	@$(BIN)/python -m companion.report --print 'build/results/$(PRESET)'

# The notebooks share one fresh store, filled first: so both cores are busy all the time. The claims
# come last, since they read what the other chapters wrote.
NBVAL := -p no:warnings --nbval-lax --nbval-current-env --nbval-cell-timeout 3600 \
    --nbval-sanitize-with tests/companion/sanitize.cfg

test: $(READY)
	$(BIN)/python -m ruff check lib tests notebooks
	$(BIN)/python -m ruff format --check lib tests notebooks
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m pytest -n '$(CORES)' --dist worksteal
	@store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && set -x && \
	export BLOCKSPECTRA_RESULTS="$$store" PYTHONWARNINGS=ignore && \
	$(BIN)/python -m companion.jobs --preset laptop --workers '$(CORES)' && \
	$(BIN)/python -m pytest -v -n '$(CORES)' --dist loadfile $(NBVAL) $(CHAPTERS) && \
	$(BIN)/python -m pytest -v $(NBVAL) notebooks/00_claims.ipynb

lab: $(READY)
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_claims.ipynb $(LAB_ARGS)

figures: $(READY)
	@mkdir -p build/redrawn && printf '%s\n' $(basename $(notdir $(CHAPTERS))) | \
	    BLOCKSPECTRA_READ_ONLY=1 BLOCKSPECTRA_RESULTS="$$PWD/data/results" xargs -P '$(CORES)' -I CHAPTER \
	    $(BIN)/python -m papermill --log-level ERROR --no-progress-bar notebooks/CHAPTER.ipynb \
	    build/redrawn/CHAPTER.ipynb -f notebooks/presets/$(PRESET)/CHAPTER.yaml
	@echo 'Figures: build/figures/'

# each result is kept when it is done: the same command goes on after any stop
full: $(READY)
	@$(BIN)/python -m companion.jobs $(FULL) --preset full --workers '$(CORES)'

# warnings are errors: a broken link is one
site: $(READY)
	@$(BIN)/python docs/pages.py build/site-source
	@$(BIN)/python -m sphinx -E -W --keep-going -q -d build/site-cache build/site-source build/site
	@echo 'Site: build/site/index.html'

results: $(READY)
	@$(BIN)/python -m companion.report --keep 'build/results/$(PRESET)' 'data/results/$(PRESET)'
	@[ '$(PRESET)' != laptop ] || { $(BIN)/python -m companion.reference_numbers data/results/laptop && \
	    $(BIN)/python docs/pages.py; }

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
define install
{ $(BIN)/python -m pip install --no-index --no-deps '$(TORCH)' \
    || { $(BIN)/python -m pip install uv && $(BIN)/python -m uv pip install --python $(BIN)/python \
        --torch-backend=auto -c constraints.txt '$(TORCH)'; } \
    || $(BIN)/python -m pip install -c constraints.txt '$(TORCH)'; } \
&& $(BIN)/python -m pip uninstall -y uv \
&& $(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
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
	@mkdir -p build
	@{ $(install); } > build/install.log 2>&1 || { tail -n 15 build/install.log >&2; \
	    echo 'Installing into .venv failed for the reason above; build/install.log has the whole output.' >&2; exit 1; }
	@touch $@

# without markers: a version that this Python or system does not need constrains nothing
constraints:
	@$(check_python)
	@rm -rf build/uv && "$(PYTHON)" -m venv build/uv && build/uv/bin/python -m pip install -q uv
	@echo '$(TORCH)' | build/uv/bin/uv pip compile -q --universal --python-version 3.11.0 --all-extras \
	    --no-header --no-annotate pyproject.toml - > build/uv/compiled.txt
	@{ grep '^#' constraints.txt; grep -v -E "^(nvidia|cuda|triton)|== 'emscripten'" build/uv/compiled.txt \
	    | sed 's/ ;.*//; s/^\(torch==[^+]*\).*/\1/'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/uv
	@echo 'Renewed constraints.txt: bring torch in environment.yml in step.'
