# make train   installs into .venv, trains on the embedded digits, saves and samples: vdm-digits/
# make test    installs into .venv and runs the tests, on the CPU and without network

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-slow fuzz style docs bench clean

train: .venv/quickstart
	$(BIN)/python train_vdm.py

test: .venv/test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-slow: .venv/test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

fuzz: .venv/test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

style: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev
	$(BIN)/mkdocs build --strict

bench: .venv/test
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv build site *.egg-info

# one stamp file for each extra of setup.py
.venv/%: .venv/bin/python setup.py constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[$*]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
