# Every target sets up what it needs in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test coverage test-cluster test-faults test-backends test-oldest docs build smoke check format clean

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/deepfeat demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The same with the lines that no test reaches, which doubles the time of much of it.
coverage: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term

test-faults: $(READY)
	DEEPFEAT_KILLS=200 DEEPFEAT_MUTATIONS=2000 $(BIN)/python -m pytest tests/test_faults.py tests/test_interruption.py

# Those tests of clusters, too, that end all workers.
test-cluster: $(READY)
	DEEPFEAT_CLUSTER=1 $(BIN)/python -m pytest tests/test_distributed.py tests/test_crew.py

# Keras' other backends; TensorFlow's is what `test` runs.
test-backends: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[backends]'
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/test_runtimes.py
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/test_runtimes.py

# The oldest versions that setup.cfg allows, of what it names; what those need in turn is the newest.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

build: $(READY)
	rm -rf dist
	$(BIN)/python -m build

# Wheel and source distribution in an environment where nothing else is.
smoke: build
	PYTHON=$(PYTHON) .ci/smoke dist/*.whl dist/*.tar.gz

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
	rm -rf $(VENV) $(OLDEST) build dist deepfeat-demo .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		docs/auto_examples docs/reference/generated docs/reference/uses
