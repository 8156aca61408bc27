# Two commands are all the set-up there is: `make demo` and `make test`. Each makes .venv first.

PYTHON ?= python3
# pillow-simd is built from source; where the processor has AVX2 it resizes 1.6 times faster.
PILLOW_CC := $(shell grep -qw avx2 /proc/cpuinfo 2>/dev/null && echo "cc -mavx2" || echo "cc")
BIN := .venv/bin
DEMO := demo
PHOTOS := .cache/scikit-image/skimage/data

# Commands that tests start find their modules compiled, as an installation has them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check lint types imports report test-portable test-slow test-gpu test-kernels test-storage test-engines test-interop clean

demo: .venv/ready $(PHOTOS)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash docs/demo.sh $(DEMO) $(PHOTOS)

test: .venv/ready
	$(BIN)/python -m pytest

check: lint types imports report test

# The numeric tests as other processors would run them.
test-portable: .venv/ready
	bash tests/portable.sh $(BIN)/python

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy

imports: .venv/ready
	$(BIN)/lint-imports

report: .venv/ready
	$(BIN)/python -m tests.code_report

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/ready
	$(BIN)/python -m pytest -m gpu

# These need packages that nothing else here needs.
test-kernels: .venv/ready
	test -d .venv/kernels/triton || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/kernels triton==3.7.1
	PYTHONPATH=.venv/kernels TRITON_INTERPRET=1 $(BIN)/python -m pytest -m kernels

test-storage: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check s3fs==2026.9.0 "moto[server]>=5"
	$(BIN)/python -m pytest -m storage

test-engines: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check distributed ray
	$(BIN)/python -m pytest -m engines

test-interop: .venv/ready
	test -d .venv/interop || $(PYTHON) -m venv .venv/interop
	.venv/interop/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 datasets megatron-energon pillow
	$(BIN)/python -m pytest -m interop

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: usrgan needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@command -v cc >/dev/null || { echo "error: pillow-simd is built from source: install a C compiler and $(PYTHON)'s headers" >&2; exit 2; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	# older pips do not know build settings in requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=23.1"
	CC="$(PILLOW_CC)" $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	# webdataset's own image decoder wants a PIL that reads PNG; only the test of that recipe sees it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/stock-pillow pillow==12.1.1
	@touch $@

# The photographs in scikit-image's wheel: files, never imported.
$(PHOTOS): | .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/scikit-image scikit-image==0.26.0
	@touch $@

clean:
	rm -rf .venv .cache demo
