# The front door: `make run`, `make test`, `make lint`, `make bench`. Each works on a fresh machine with Python 3.11.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: run test lint format bench bench-peers soak lock clean

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
LITELLM := 1.106.2
# The system's own comes first where it can: distributions build with the compiler's profile, which saves the gateway a
# tenth of its CPU; pyenv does not, unless it is told to.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo /usr/bin/python3 || for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Debian packages are installed only by root, and only where apt is at hand.
APT := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get)

run: $(VENV)/.installed
	@exec $(BIN)/millrace serve

test: $(VENV)/.tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(VENV)/.developed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.developed
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

# Ten minutes; ARGS="--quick" takes two, ARGS="--only relay,short" measures some of it, ARGS=--help tells the rest.
bench: $(VENV)/.developed
	@$(BIN)/python -m tests.benchmarks.bench $(ARGS)

# LiteLLM beside it, out of an environment of its own.
bench-peers: $(VENV)/.developed $(PEERS)/.litellm-$(LITELLM)
	@$(BIN)/python -m tests.benchmarks.bench --peers $(PEERS) $(ARGS)

# A quarter of an hour of faults, departures and reloads, after which nothing may have grown.
soak: $(VENV)/.developed
	$(BIN)/python -m tests.benchmarks.soak $(ARGS)

# New locks from pyproject.toml; the hashes make an install the same everywhere, or fail.
lock: $(VENV)/.installed
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--custom-compile-command "make lock" --extra dev pyproject.toml -o requirements-dev.lock
	sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | $(BIN)/uv pip compile --quiet --universal \
		--generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" - \
		-o deploy/build.lock

clean:
	rm -rf $(VENV) $(PEERS) tests/sdk/node_modules deploy/examples/react/node_modules

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "millrace needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
		[ -n "$(APT)" ] && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); }

$(VENV)/.installed: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "installing millrace into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps -e .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed requirements-dev.lock
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(PEERS)/.litellm-$(LITELLM): $(VENV)/bin/python
	@echo "installing LiteLLM $(LITELLM) into $(PEERS) ..."
	@rm -rf $(PEERS) && $(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install 'litellm[proxy]==$(LITELLM)'
	@touch $@

# What the tests use beside Python: Chromium and Firefox for the page, Node.js for the SDKs written for it, Prometheus for
# what it is asked, nginx and HAProxy to stand in front, slowhttptest for hostile clients. What cannot be had is skipped by
# the tests, with its reason.
$(VENV)/.tested: $(VENV)/.developed tests/sdk/package-lock.json deploy/examples/react/package-lock.json tests/sdk/install.py
	@if [ -n "$(APT)" ] && ! command -v chromium >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null || echo "the tests of the page are skipped"; fi
	@if [ -n "$(APT)" ] && ! { command -v firefox-esr || command -v firefox; } >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends firefox-esr >/dev/null \
		|| echo "the tests of the page in Firefox are skipped"; fi
	@if [ -n "$(APT)" ] && ! command -v promtool >/dev/null; then \
		apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus >/dev/null \
		|| echo "the tests with a real Prometheus are skipped"; fi
	@if [ -n "$(APT)" ] && ! { command -v nginx && command -v haproxy; } >/dev/null; then \
		apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends nginx-light haproxy >/dev/null \
		|| echo "the tests with a real proxy in front are skipped"; fi
	@if [ -n "$(APT)" ] && ! command -v slowhttptest >/dev/null; then \
		apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends slowhttptest >/dev/null \
		|| echo "the tests with clients that are slow on purpose are skipped"; fi
	@$(BIN)/python tests/sdk/install.py || echo "the tests of JavaScript clients are skipped"
	@touch $@
