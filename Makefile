# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing and reinstall only when
# pyproject.toml has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_OUT ?= outputs/demo
# Processes that run the tests; logical: one for each core. Tests of a file mostly stay together, which saves fixtures.
TEST_WORKERS ?= logical
PARALLEL := -n $(TEST_WORKERS) --dist worksteal
SUITE := -m pytest $(PARALLEL) -m "not slow and not gpu"
# Every extra that an installed package can use; the others are for work on the code.
RUNTIME_EXTRAS := audit,simulation,experiments,identification,datasets,dp,object-storage,pdf,mlflow
# Environments of a release, made anew each time.
RUNTIME := outputs/runtime-environment
EMPTY := outputs/empty-environment
LOWEST := outputs/lowest-environment
HUB := outputs/hub

.PHONY: demo check quick suite test test-full compose-demo compose-down compose-test bench evidence lint format clean help
.PHONY: lowest dist try-dist hub-app sbom licences site docs

help:
	@echo "make demo       a watched federation on real faces, its attacks and the report (minutes)"
	@echo "make check      lint, types and the quick tests: under two minutes on two cores"
	@echo "make test       lint, types and the test suite, on all cores; one of them: TEST_WORKERS=0"
	@echo "make test-full  the same and the long proofs, with coverage"
	@echo "make compose-demo  a federation in containers, attacked, with its report; needs Docker (minutes)"
	@echo "make compose-down  removes everything that compose-demo made, keys and tapes too"
	@echo "make compose-test  the containers, really run and broken; installs Debian's Docker when there is none"
	@echo "make bench      the reference figures, speeds and memory, and quality at smoke size;"
	@echo "                INVERTINGGRADIENTS=PATH and BREACHING=PATH of checkouts compare with them"
	@echo "make evidence   300 simulated audits with known truth, and how long readers wait: docs/results/evidence.md (an hour)"
	@echo "make format     lay the code out as the linter wants it"
	@echo "make lowest     the test suite with the oldest versions that pyproject.toml allows of what it names"
	@echo "make dist       wheel and sdist in dist/, checked; make try-dist installs the wheel in an empty environment"
	@echo "make hub-app    the app's folder for Flower's hub: outputs/hub/fl-precode"
	@echo "make sbom       every package of an installation with all extras: outputs/fl-precode.cdx.json (CycloneDX)"
	@echo "make licences   their licences: docs/reference/licences.md"
	@echo "make site       the documentation site in site/: warnings are errors, every link is checked; make docs serves it"
	@echo "make clean      remove .venv and outputs"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fl-precode needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@# Debian's python3 comes without what venv needs; root may install it, others must ask.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	  else echo "Python's venv module is incomplete; as root: apt-get install python3-venv" >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing fl-precode into $(VENV), once; PyTorch is several GB, this takes a few minutes."
	$(PIP) install -e '.[audit,simulation]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing fl-precode and its development tools into $(VENV), once; this takes a few minutes."
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-release: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[release]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[docs]'
	@touch $@

# No pip in it: what is listed is what the package needs.
$(RUNTIME)/.installed: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv --clear --without-pip $(RUNTIME)
	$(PIP) --python $(RUNTIME)/bin/python install '.[$(RUNTIME_EXTRAS)]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/fl-precode demo --out $(DEMO_OUT)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m prose
	$(BIN)/mypy

# Types on one core while the tests begin on the other; what each says is printed when it ends.
check: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --output-sync=target -j 2 lint quick

# The files that tests/quick.txt names, none of which starts a federation or a browser.
quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests --quick $(PARALLEL) -m "not slow and not gpu and not federation and not browser"

suite: $(VENV)/.installed-dev
	$(BIN)/python $(SUITE)

test: lint
	$(BIN)/python $(SUITE)

test-full: lint
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=85

# Needs Docker and Python, and installs nothing.
compose-demo:
	$(PYTHON) -m deploy.demo up

compose-down:
	$(PYTHON) -m deploy.demo down

compose-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/compose -m compose --no-cov

bench: $(VENV)/.installed-dev
	mkdir -p outputs
	$(BIN)/python benchmarks/reference_figures.py --out outputs/reference_figures.json
	$(BIN)/python benchmarks/interceptor_cost.py --out outputs/interceptor_cost.json
	$(BIN)/python benchmarks/speed.py --out outputs/speed.json --plot outputs/speed.png \
	  $(if $(INVERTINGGRADIENTS),--invertinggradients $(INVERTINGGRADIENTS)) $(if $(BREACHING),--breaching $(BREACHING))
	$(BIN)/python benchmarks/memory.py --out outputs/memory.json
	$(BIN)/python benchmarks/quality.py --out outputs/quality.json --table outputs/quality.md --groups dlg batches \
	  --images 4 --peer-images 1 --iterations 200 --steps 20 \
	  $(if $(INVERTINGGRADIENTS),--invertinggradients $(INVERTINGGRADIENTS))

# Begun anew each time; the two commands without the removal go on where they were interrupted.
evidence: $(VENV)/.installed-dev
	rm -f docs/results/simulated-audits.jsonl docs/results/time-to-verdict.json
	$(BIN)/python -m benchmarks.simulated_audits --processes 2 --out docs/results/simulated-audits.jsonl --page docs/results/evidence.md
	$(BIN)/python -m benchmarks.time_to_verdict --tapes outputs/timed-tapes --out docs/results/time-to-verdict.json \
	  --page docs/results/evidence.md

lowest: $(VENV)/.installed-release
	$(BIN)/uv venv --clear --python $(PYTHON) $(LOWEST)
	$(BIN)/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	$(LOWEST)/bin/python $(SUITE)

dist: $(VENV)/.installed-release
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# What `make dist` built, outside the checkout, whose packages would be found first.
try-dist: $(BIN)/python
	$(PYTHON) -m venv --clear --without-pip $(EMPTY)
	$(PIP) --python $(EMPTY)/bin/python install "$$(ls dist/*.whl)[audit]"
	cd $(EMPTY) && bin/fl-precode --version

# What `flwr build` takes of a checkout, which has more files than the hub does: publish it by `flwr app publish outputs/hub/fl-precode`.
hub-app: $(VENV)/.installed
	rm -rf $(HUB)
	mkdir -p $(HUB)
	cd $(HUB) && $(abspath $(BIN))/flwr build --app $(CURDIR)
	$(BIN)/python -m zipfile -e $(HUB)/*.fab $(HUB)/fl-precode

sbom: $(VENV)/.installed-release $(RUNTIME)/.installed
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
	  --output-file outputs/fl-precode.cdx.json $(RUNTIME)/bin/python

licences: $(RUNTIME)/.installed
	$(RUNTIME)/bin/python docs/reference/generate_licences.py

# MkDocs' advertisement of its successors is no warning of ours.
site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m website.check site

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs site .coverage .pytest_cache .mypy_cache .ruff_cache
