# make run             set up, train for an hour, score, and write the report to runs/
# make run MINUTES=5   a first look in five, on a base that knows MiniSQA's pictures
# make test            set up, check style and types, run the tests
# make doctor          say what this machine has and what it lacks
# make notebooks       execute all lessons and their solutions with their recorded settings, and keep the outputs
# make student         copies of the lessons without outputs and solutions, in student/
# make site            the executed lessons as a static site, in site/

MINUTES ?= 60
SEED ?= 0
PYTHON ?= python3
UV ?= $(shell command -v uv)
PY := .venv/bin/python
READY := .venv/.ready
IN_VENV := $(PY) -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null

.PHONY: run test doctor notebooks student site setup clean

run: setup
	$(PY) -m mmlora run --minutes $(MINUTES) --seed $(SEED)

test: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

doctor: setup
	$(PY) -m mmlora doctor

notebooks student site: setup
	$(PY) -m tools.$@

# A virtual environment works only where it was made: the stamp holds the folder, and is void when the folder was
# moved or the interpreter has gone.
$(shell [ -x $(PY) ] && [ "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" ] || rm -f $(READY))

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mmlora needs Python 3.11 or newer as $(PYTHON); install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up .venv (the first time this downloads PyTorch: some minutes)"
ifneq ($(UV),)
	@$(IN_VENV) || { rm -rf .venv && "$(UV)" venv --quiet --python "$$(command -v $(PYTHON))" .venv; }
	"$(UV)" pip install --compile-bytecode --python $(PY) -e '.[test]'
else
	@{ $(IN_VENV) && $(PY) -m pip --version >/dev/null 2>&1; } || $(PYTHON) -m venv --clear .venv || \
	  { echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv), or uv"; exit 1; }
	$(PY) -m pip install -e '.[test]'
endif
	@echo "$(CURDIR)" > $@

clean:
	rm -rf .venv
