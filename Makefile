# `make demo` and `make test` each set everything up on a machine that has Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(BIN)/uv

.PHONY: demo test check docs lock format clean

demo: $(READY)
	$(BIN)/aal-bench run digits --method aal-pgd --resume

test: $(READY)
	$(BIN)/python -m pytest -n auto

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs/methods, from the methods' code; a test holds them equal.
docs: $(READY)
	$(BIN)/python -m aal_bench.method_pages docs/methods

# Names, versions and hashes only: where packages come from is the installer's own setting.
lock: $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements.lock

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python >= 3.11 is needed; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

# learn2learn builds a C extension; a machine without a compiler gets one from a wheel.
ifeq ($(shell command -v $${CC:-cc}),)
ZIG := $(BIN)/zig-cc
export CC := $(abspath $(ZIG))
export LDSHARED := $(CC) -shared
$(ZIG): $(UV)
	$(UV) pip install --quiet --python $(BIN)/python --target $(VENV)/zig ziglang
	printf '#!/bin/sh\nPYTHONPATH=%s exec %s -m ziglang cc "$$@"\n' \
	  $(abspath $(VENV)/zig) $(abspath $(BIN)/python) > $@
	chmod +x $@
endif

# torchattacks 3.5.1 carries old copies of robustbench's files in its wheel; whichever of the two is
# installed last wins. Installing robustbench once more settles it (toolkits/robustbench_overwritten).
$(READY): $(UV) $(ZIG) requirements.lock pyproject.toml
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip sync --quiet --python $(BIN)/python --reinstall-package robustbench requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
