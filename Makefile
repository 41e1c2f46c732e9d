# make demo: one job, end to end, on this machine.   make test: the whole suite.   make check: what CI asks before it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)

# make faults: every fault of tests/faults, injected for real; writes docs/faults.md. make soak: 100 of them at random.
# make services: MLflow with sign-in over PostgreSQL and S3, on this machine until Ctrl-C; docs/services.md.
.PHONY: demo test faults soak services fuzz check install lock clean

demo: $(READY)
	$(VENV)/bin/python jobs/demo.py

# the tests that start a Ray, and beside them the others, whose output comes last
test: $(READY)
	@others=$$(mktemp); $(VENV)/bin/python -m pytest -m "not ray" > $$others 2>&1 & pid=$$!; \
	trap 'kill $$pid; rm -f $$others; exit 130' INT TERM; \
	$(VENV)/bin/python -m pytest -m ray; ray=$$?; \
	wait $$pid; rest=$$?; cat $$others; rm -f $$others; exit $$((ray | rest))

faults: $(READY)
	OMP_NUM_THREADS=1 RAY_AUTH_MODE=disabled PYTHONPATH=tests $(VENV)/bin/python -m faults $(ONLY)

soak: $(READY)
	OMP_NUM_THREADS=1 RAY_AUTH_MODE=disabled PYTHONPATH=tests $(VENV)/bin/python -m faults.soak $(or $(SEED),0)

# atheris, libFuzzer for Python, is for Linux only and so no requirement; what it finds is kept beside as crash-…
fuzz: $(READY)
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python atheris==3.0.0
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz.py -max_total_time=$(or $(SECONDS),300)

services: $(READY)
	@$(VENV)/bin/python jobs/services.py

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	@echo "files over 400 lines, the trainer's size:"
	@git ls-files '*.py' | xargs wc -l | awk '$$1 > 400 && $$2 != "total" || $$2 == "genray/trainer.py" {print "  " $$1, $$2}'

install: $(READY)

# uv resolves nothing here: every version is pinned; it only installs faster than pip, from its cache where it has one
# bytecode as pip writes it: else every worker that Ray starts compiles torch, ray and mlflow anew where containers forbid it
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "genray needs Python 3.11 or newer; say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --requirement requirements.txt
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.ready-*
	touch $@

# pins what pyproject.toml allows, for every Python from 3.11 on; names no host
lock:
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header \
		--no-emit-index-url --no-emit-package genray pyproject.toml --output-file requirements.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
