# `make demo` and `make test` are all that a fresh machine needs: each creates .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
# Processes that run tests, each with one thread; a file of tests stays in one of them.
WORKERS ?= 2
# Installs the package with an extra into .venv: uv takes a quarter of pip's time, and pip does it where uv cannot.
install = $(PYTHON) -m venv .venv && { $(BIN)/pip install -q 'uv>=0.9' && $(BIN)/uv pip install -q -p $(BIN)/python -e '.[$(1)]'; } || \
	$(BIN)/pip install -q -e '.[$(1)]'

.PHONY: demo test fast lint docs
demo: .venv/demo
	$(BIN)/atlas-export --target openvino --precision int8 --overwrite
	$(BIN)/atlas-export --target tensorrt --precision int8 --overwrite
	@ls -d bundles/*

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Most tests: none that train, simulate, fuzz or start processes.
fast: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/lint-imports

# The pages and the Python interface as a site, on this machine only.
docs: .venv/docs
	$(BIN)/sphinx-build -q -W --keep-going -n docs docs/_build
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory docs/_build 8000

.venv/demo: pyproject.toml
	$(call install,all)
	touch $@

.venv/dev: pyproject.toml
	$(call install,dev)
	touch $@ .venv/demo

.venv/docs: pyproject.toml
	$(call install,docs)
	touch $@
