# Every target sets up what it needs in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-cluster test-faults test-backends docs check format clean

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/deepfeat demo

test: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term

test-faults: $(READY)
	DEEPFEAT_KILLS=200 DEEPFEAT_MUTATIONS=2000 $(BIN)/python -m pytest tests/test_faults.py

# Those tests of clusters, too, that end all workers.
test-cluster: $(READY)
	DEEPFEAT_CLUSTER=1 $(BIN)/python -m pytest tests/test_distributed.py tests/test_crew.py

# Keras' other backends; TensorFlow's is what `test` runs.
test-backends: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[backends]'
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/test_runtimes.py
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/test_runtimes.py

# Pages and gallery into build/docs, without a network; a warning is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	DEEPFEAT_PAGES=1 $(BIN)/python -m pytest tests/test_howto.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist deepfeat-demo .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		docs/auto_examples docs/reference/generated docs/reference/uses
