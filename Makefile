# Works with GNU make 3.81 (the one macOS ships).
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV  ?= .venv
EXTRAS ?= dev
STAMP := $(VENV)/.installed
# first interpreter that is 3.10 or newer and can make a venv; override: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3.10 python3; do \
  if $$p -c 'import sys,venv,ensurepip; sys.exit(not ((3,10)<=sys.version_info[:2]<(3,14)))' >/dev/null 2>&1; then echo $$p; break; fi; done)

.PHONY: help setup demo test test-numeric check docs clean
help:
	@echo "make setup   install into $(VENV)"
	@echo "make demo    install into $(VENV), train and attack three defenses on real digits, show the board"
	@echo "make test    run the tests; make test-numeric: those that another processor's rounding could change"
	@echo "make check   formatting, lint and types"
	@echo "make docs    build the site of these pages into build/site/site, and follow every link of it"
	@echo "make clean   remove $(VENV) and the demo's runs"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python 3.10-3.13 with venv and ensurepip found (Debian/Ubuntu: apt install python3-venv). Set PYTHON=..." >&2; exit 1; }
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or so; PyTorch is large) ..."
	@if command -v uv >/dev/null 2>&1 && test -z "$(NO_UV)"; then \
	  uv pip install -q --python $(VENV)/bin/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
	  $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@$(VENV)/bin/bench doctor
	@touch $@

demo: setup
	@$(VENV)/bin/bench demo

test: setup
	@$(VENV)/bin/python -m pytest -q -n auto

test-numeric: setup
	@$(VENV)/bin/python -m pytest -q -n auto -m numeric

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: setup
	@$(VENV)/bin/python -c 'import zensical' 2>/dev/null || { \
	  if command -v uv >/dev/null 2>&1 && test -z "$(NO_UV)"; then \
	    uv pip install -q --python $(VENV)/bin/python -c constraints.txt -e '.[docs]'; \
	  else \
	    $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'; \
	  fi; }
	@$(VENV)/bin/python -m docs.website

clean:
	rm -rf $(VENV) demo build/site
