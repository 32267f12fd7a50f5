# `make` lists what there is. Every target that needs Python uses the virtual environment that it sets up itself;
# VENV=FOLDER names another one.
VENV ?= .venv
PYTHON_FILES := benches build_backend python scripts tests
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test venv wheel lint lint-rust lint-python fmt test-rust test-python test-real versions check-versions clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Profile a real vLLM server from nothing: sets up everything, serves a tiny model, sends it load
	@scripts/demo.sh $(VENV)

# Each of the last two waits on one processor for the most part: for an import of vLLM, for a process of its own. So they run beside
# each other, and each shows what it said when it is done.
test: lint test-rust test-browser venv ## Run every check and every test, those with a real vLLM too
	+$(MAKE) --no-print-directory --output-sync=target -j 2 test-python test-real

venv: ## Set up the virtual environment: our wheel, vLLM for the CPU, the test tools
	@scripts/setup_venv.sh $(VENV)

wheel: venv ## Build a wheel into dist/
	$(BIN)/uv build --wheel --out-dir dist

lint: lint-rust lint-python ## Check formats, lints and types

lint-rust:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

lint-python: venv
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/shellcheck -x scripts/*.sh .ci/run
	$(BIN)/mypy python/profilemate build_backend scripts tests

versions: venv ## Read the sources of vLLM's releases again and write docs/versions.md; NEWER=1 looks for newer ones
	$(BIN)/python scripts/check_versions.py --write $(if $(NEWER),--newer)

check-versions: venv ## Look for a vLLM release that docs/versions.md does not have, and say what moved in it
	$(BIN)/python scripts/check_versions.py --check

fmt: venv ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

test-rust: ## Run the Rust tests
	@scripts/test_rust.sh

test-browser: venv ## Open the pages and timelines of sessions in Chromium and check them
	@scripts/test_browser.sh $(VENV)

test-python: venv ## Run the Python tests that start no vLLM
	$(BIN)/python -m pytest -m 'not real'

test-real: venv ## Run the tests with a real vLLM
	$(BIN)/python -m pytest -m real

clean: ## Remove what was built, the virtual environment too
	cargo clean
	rm -rf $(VENV) .demo dist tests/browser/node_modules python/profilemate/_bin/profilemate python/profilemate/_native*.so python/profilemate/_session*.so
