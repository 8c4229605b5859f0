# make demo    a shop in network namespaces loses a server: what its health checks and failover do
# make test    every test        make check  style, types, generated code, the agent's wheel alone
# make bench   figures beside the yardsticks' (stress-ng, fio)
# make bench-no-shell   every program that the suite executes, by tracefs: no shell among those that are ours
# make bench-death-matrix   every fault x whatever may die, some 40 minutes, goes on where it stopped: docs/death-matrix.md
# make bench-crash-points   a kill at every system call of every fault's life, goes on where it stopped: docs/crash-points.md
# make bench-fuzz   a million hostile inputs at the injector's socket: docs/fuzzing.md
# make bench-bad-input   every test that the catalogue of bad input names: docs/bad-input.md
# make bench-mutation   small mistakes in what decides, and whether the tests notice them: docs/mutation.md
# Each sets up what it needs and does nothing twice. All of them leave .venv/bin/brownout behind.

PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin
LOCK := uv.lock pyproject.toml $(wildcard */pyproject.toml)
BENCHES = $(sort $(filter-out __init__ death_matrix crash_points fuzz bad_input,$(basename $(notdir $(wildcard tests/bench/*.py)))))

.PHONY: demo test check bench bench-no-shell bench-death-matrix bench-crash-points bench-fuzz bench-bad-input bench-mutation protos install clean
.DELETE_ON_ERROR:

demo: install
	@test "$$(id -u)" != 0 || $(PYTHON) tools/packages.py demo
	@$(BIN)/brownout demo --report-dir demo-report

test: .venv/.development
	@$(PYTHON) tools/packages.py test
	@$(BIN)/pytest -d --tx "3*popen//python=$(BIN)/python -m tests.support.apart" --no-loadscope-reorder -m "not alone"
	@$(BIN)/pytest -m alone

check: .venv/.development
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(UV) run --quiet --no-project --isolated --with-requirements protos/generator.txt python protos/generate.py --check
	@$(BIN)/python tools/reference.py --check
	@$(BIN)/python tools/api_docs.py --check
	@$(BIN)/python tools/no_shell.py
	@$(BIN)/python tools/agent_alone.py $(UV)

bench: .venv/.development
	@$(PYTHON) tools/packages.py bench
	@for bench in $(BENCHES); do $(BIN)/python -m tests.bench.$$bench || exit; done

bench-no-shell: .venv/.development
	@$(BIN)/python tools/no_shell.py --watch $(MAKE) test

bench-death-matrix: .venv/.development
	@$(PYTHON) tools/packages.py bench
	@$(BIN)/python -m tests.bench.death_matrix

bench-crash-points: .venv/.development
	@$(PYTHON) tools/packages.py bench
	@$(BIN)/python -m tests.bench.crash_points

bench-fuzz: .venv/.development
	@$(PYTHON) tools/packages.py bench
	@$(BIN)/python -m tests.bench.fuzz

bench-bad-input: .venv/.development
	@$(PYTHON) tools/packages.py test
	@$(BIN)/python -m tests.bench.bad_input

bench-mutation: .venv/.development
	@$(PYTHON) tools/packages.py test
	@$(BIN)/python tools/mutation.py

protos: $(UV)
	@$(UV) run --quiet --no-project --isolated --with-requirements protos/generator.txt python protos/generate.py

install: .venv/.runtime

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report

# The lock decides every version. A development set-up serves the demo as well, so neither removes the other's.
.venv/.runtime: $(LOCK) $(UV)
	@$(UV) sync --quiet --frozen --no-dev --inexact
	@touch $@

.venv/.development: $(LOCK) $(UV)
	@$(UV) sync --quiet --frozen
	@touch $@ .venv/.runtime

$(UV): tools/uv.txt
	@$(PYTHON) tools/packages.py setup
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check -r tools/uv.txt
	@touch $@
