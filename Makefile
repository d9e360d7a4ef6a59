# Everything here sets itself up: the first call creates .venv and compiles mmcv's ops (10-30 minutes), later calls
# skip what is done. `make help` lists the targets.

VENV = .venv
VENV_OFFICIAL = .venv-openmmlab
VENV_DOCS = .venv-docs
PYTHON ?= python3
SEEDS ?= 1
ARGS ?=
WORKERS ?= 2
# One thread per test process: several processes that each take all cores slow one another down.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# glibc keeps freed memory instead of giving it back to the system and fetching it again in every step; others ignore it.
KEEP_MEMORY := MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824
# The interpreter of an environment, with what its set-up found out about this machine (CPU only, or nothing).
run = env $$(cat $(1)/runtime.env 2>/dev/null) $(2) $(1)/bin/python
FAST = -m "not slow and not gpu" -n $(WORKERS) --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help demo env env-openmmlab test test-slow test-gpu test-openmmlab lint format types docs clean distclean

help:
	@echo "make demo            teacher, student and distilled student on handwritten digits -> work_dirs/demo/report.html"
	@echo "                     SEEDS=3 repeats it with 3 seeds; ARGS='...' goes to tools/demo.py (ARGS=--help lists all)"
	@echo "make test            the fast tests (ARGS='-k taps' goes to pytest, WORKERS=2 test processes)"
	@echo "make test-slow       the tests that take minutes each"
	@echo "make test-gpu        the tests that need a CUDA GPU (without one they skip and say so)"
	@echo "make test-openmmlab  the fast tests with the official mmengine, mmcv and mmdet, in $(VENV_OFFICIAL)"
	@echo "make lint            ruff: rules and formatting;  make format  mends what it can"
	@echo "make types           mypy: the annotations of the package"
	@echo "make docs            the documentation as a site, in site/ (its tools in $(VENV_DOCS); neither torch nor mmcv is needed)"
	@echo "make env             only the set-up of $(VENV);  make env-openmmlab  only that of $(VENV_OFFICIAL)"
	@echo "make clean           remove caches and build leftovers;  make distclean  also the environments"
	@echo
	@echo "The first demo or test sets up $(VENV): it downloads torch and compiles mmcv's ops, 10-30 minutes, once."
	@echo "Work of all targets stays in this folder (environments, work_dirs/, data/); PYTHON=... picks the interpreter."

env: $(VENV)/.ready
env-openmmlab: $(VENV_OFFICIAL)/.ready

# A stamp is written when a set-up has been checked to the end; an interrupted one is taken up again by the next call.
$(VENV)/.ready: constraints/onedl.txt setup.py tools/setup_env.sh
	@bash tools/setup_env.sh onedl $(VENV)
$(VENV_OFFICIAL)/.ready: constraints/openmmlab.txt setup.py tools/setup_env.sh
	@bash tools/setup_env.sh openmmlab $(VENV_OFFICIAL)

demo: $(VENV)/.ready
	$(call run,$(VENV),$(KEEP_MEMORY)) tools/demo.py --seeds $(SEEDS) $(ARGS)

test: $(VENV)/.ready
	$(call run,$(VENV),$(ONE_THREAD)) -m pytest $(FAST) $(ARGS)

test-slow: $(VENV)/.ready
	$(call run,$(VENV),$(ONE_THREAD)) -m pytest -m slow --timeout 3600 -n $(WORKERS) $(ARGS)

test-gpu: $(VENV)/.ready
	$(call run,$(VENV)) -m pytest -m gpu --timeout 1200 $(ARGS)

test-openmmlab: $(VENV_OFFICIAL)/.ready
	$(call run,$(VENV_OFFICIAL),$(ONE_THREAD)) -m pytest $(FAST) $(ARGS)

lint: $(VENV)/.ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(VENV)/.ready
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

types: $(VENV)/.ready
	$(VENV)/bin/python -m mypy

# The site reads the sources of the package and imports nothing of them.
$(VENV_DOCS)/.ready: setup.py
	$(PYTHON) -m venv --clear $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_DOCS)/bin/python -m pip install --quiet -e '.[docs]'
	@touch $@

docs: $(VENV_DOCS)/.ready
	$(VENV_DOCS)/bin/mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV_OFFICIAL) $(VENV_DOCS)
