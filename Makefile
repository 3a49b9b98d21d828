# `make` lists what there is. Needs GNU make, a POSIX shell and Python 3.11 or newer.
VENV      ?= .venv
PYTHON    ?=
PIP_ARGS  ?=
PORT      ?= 8000
# the classifier's rates, batch and dropout as cross-validation on the training reviews chose them (bench/results/settings-movies.json), but fewer
# epochs of both models, for time
DEMO_ARGS ?= --pretrained movies --lm-epochs 1 2 --drop-mult 0.5

BIN  := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test bench lab docs docs-serve docs-zip readme dist clean setup setup-nb

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  All but help and clean first set up $(VENV), once. Variables:"
	@echo "    PYTHON=python3.13     the Python that $(VENV) is made with; VENV=.venv-313 keeps a second one beside the first"
	@echo "    DEMO_ARGS='--seed 1'  options for the demo's command, see $(BIN)/ulmfit --help"
	@echo "    BENCH_ARGS='--sizes imdb'  all of IMDb, see bench/README.md"
	@echo "    PORT=8001             another port for docs-serve"
	@echo "    PIP_ARGS=...          options for pip install"

demo: setup ## ULMFiT end to end on the embedded reviews, into runs/demo
	@# A folder with a report is finished and stays; one without goes on.
	@out=runs/demo; n=1; while [ -e "$$out/report.html" ]; do n=$$((n+1)); out=runs/demo-$$n; done; \
	echo "$(BIN)/ulmfit --out $$out $(DEMO_ARGS)"; $(BIN)/ulmfit --out $$out $(DEMO_ARGS)

test: setup ## every gate: clean, export, readme, notebooks, pytest
	@$(BIN)/python tests/gates.py

bench: setup ## texts to batches, stock fastai and ours side by side: bench/results/text.json
	@$(BIN)/python -W ignore bench/text.py $(BENCH_ARGS)

lab: setup-nb ## the notebooks in JupyterLab
	@PATH="$$(cd $(BIN) && pwd):$$PATH" $(BIN)/python -m jupyterlab nbs

docs: setup ## the book as a website, in _docs/
	@$(BIN)/python docs/build.py

docs-serve: docs ## the website, at http://localhost:8000
	@$(BIN)/python -m http.server -b 127.0.0.1 -d _docs $(PORT)

docs-zip: setup ## the website in one file, dist/ulmfit_tut-docs.zip
	@$(BIN)/python docs/build.py --zip

readme: setup ## README.md from nbs/index.ipynb
	@$(BIN)/python docs/readme.py

dist: setup ## wheel and sdist in dist/
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation

clean: ## remove what was built, but not .venv and runs/
	rm -rf build dist _proc _docs *.egg-info .pytest_cache .hypothesis

# $(VENV)/.<extra> is written last and holds what it was made from, so that an interrupted set-up goes on when it is run again,
# a finished one costs nothing, and a changed requirement or a moved checkout is noticed.
define install
@set -eu; stamp=$(VENV)/.installed-$(1); here=$$(pwd -P); want="$$(cat settings.ini setup.py pyproject.toml | cksum) $$here"; \
say() { printf '%s\n' "$$@" >&2; }; \
[ -x $(BIN)/python ] && [ "$$(cat $$stamp 2>/dev/null)" = "$$want" ] && exit 0; \
recent() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
whole() { recent $(BIN)/python && $(BIN)/python -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' && \
  $(BIN)/python -m pip --version >/dev/null 2>&1 && \
  { [ ! -e $(VENV)/.made-in ] || [ "$$(cat $(VENV)/.made-in)" = "$$here" ]; }; }; \
if ! whole; then \
  py=; for p in $(or $(PYTHON),python3.13 python3.12 python3.11 python3.14 python3); do if recent "$$p"; then py=$$p; break; fi; done; \
  if [ -z "$$py" ]; then \
    say "No Python 3.11 or newer: tried $(or $(PYTHON),python3.13 python3.12 python3.11 python3.14 python3)." \
        "Install one, or say where it is: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3"; exit 1; fi; \
  if ! "$$py" -c 'import venv, ensurepip' 2>/dev/null; then \
    say "$$py cannot make virtual environments: its venv or ensurepip module is missing." \
        "On Debian and Ubuntu: apt install python3-venv (or the venv package of that very version, as in python3.12-venv)"; exit 1; fi; \
  say "Making $(VENV) with $$("$$py" --version)"; \
  "$$py" -m venv --clear $(VENV); printf '%s\n' "$$here" > $(VENV)/.made-in; \
fi; \
say "Installing .[$(1)] into $(VENV): some minutes the first time, and torch is large"; \
PIP_REQUIRE_VIRTUALENV=1 $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[$(1)]' || { \
  say "The installation did not finish. Run make again: it goes on with what is there."; exit 1; }; \
printf '%s\n' "$$want" > $$stamp
endef

setup:
	$(call install,dev)

setup-nb: setup
	$(call install,nb)
