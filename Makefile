# The environment lives in .venv and is made on first use: a minute for `demo`, some more for `test`, which also
# fetches three releases of ComfyUI into .cache. Later runs start at once.

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/core.stamp
TEST := $(VENV)/test.stamp
PORT ?= 8188

# Both `pip install` lines name this torch, so that no other package replaces it.
TORCH := torch==2.13.0

.PHONY: demo test lint fuzz soak comfyui miniature smoke clean

demo: $(CORE)
	$(BIN)/longlive demo

test: lint
	@command -v chromium >/dev/null || echo "There is no chromium: the browser tests are left out."
	$(BIN)/python -m pytest --numprocesses 2
	node --test $(wildcard tests/web/*.test.js)

lint: $(TEST)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml longlive nodes
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

comfyui: $(TEST)
	$(BIN)/python tests/host/host_process.py $(PORT)

# `fuzz` and `soak` write their tables into docs/reliability.md.
fuzz: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py

soak: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py

# Trains the miniature from random weights in .cache/miniature. After a stop, the next call resumes.
miniature: $(CORE)
	$(BIN)/python -m longlive.miniature.training --folder .cache/miniature

# Ten minutes of that training, then a check against the numbers of the model card. Directed runs killed at 20 instants.
# The drift meter on 32 clean videos of the miniature, and on 30 with a fault.
smoke: $(TEST)
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) .cache/hosts

$(CORE): pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) --editable .
	touch $@

$(TEST): $(CORE) tests/host/requirements.txt tests/host/hosts.py tests/browser/frontends.py
	$(BIN)/python -m pip install --quiet $(TORCH) --editable .[headless,tune,dev] --requirement tests/host/requirements.txt
	$(BIN)/python tests/host/hosts.py setup
	$(BIN)/python tests/browser/frontends.py setup
	touch $@
