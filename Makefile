# make train   set-up, a dataset, and a training run in two processes through TorchX
# make test    every check and the whole suite
# make bench   a short pass of every benchmark, in some minutes
# make gpu     on a machine with a GPU: the tests that others skip, and the benchmarks on it
# make help    the rest

PYTHON ?= python3.11
VENV   ?= .venv
DEVICE ?= cpu
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

.PHONY: help install data train check test test-slow bench gpu docs clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "make install      .venv with the pinned CPU closure; DEVICE=cuda: with that for GPUs"
	@echo "make check        format, lint, types"
	@echo "make test-slow    the tests that 'make test' leaves out"
	@echo "make docs         docs/config.md, from the config's schema"
	@echo "make clean        remove .venv, data and runs"

install: $(STAMP)

$(STAMP): requirements/torch-$(DEVICE).txt requirements/$(DEVICE).txt requirements/s3.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --retries 1 -r requirements/torch-$(DEVICE).txt
	$(BIN)/pip install --quiet --no-deps -r requirements/$(DEVICE).txt -r requirements/s3.txt -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

data/synthetic/ctr/dataset.json: | $(STAMP)
	$(BIN)/distrec prepare synthetic --out data/synthetic

data: data/synthetic/ctr/dataset.json

# A second `make train` goes on from the newest checkpoint, or says that there is nothing left to do.
train: install data
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/torchx run -s local_cwd launch/component.py:train \
		--config configs/dlrm_synthetic.toml -j 1x2 --resume auto

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_floors.py

test: check
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -q -m slow

docs: install
	mkdir -p docs
	$(BIN)/distrec schema --markdown > docs/config.md

bench: install
	for name in prepare input embedding huge_pages train start checkpoint recall; do \
		$(BIN)/python -m benchmarks.$$name --size short --out runs/bench || exit 1; done

gpu:
	$(MAKE) install DEVICE=cuda VENV=.venv-cuda
	PYTHON="$(CURDIR)/.venv-cuda/bin/python" benchmarks/on_gpu.sh short

clean:
	rm -rf $(VENV) data runs
