# `make` or `make help` lists what there is to do. ARGS is handed on: make test ARGS="-k network -x"
# KERNEL=minimal has the guest run on a kernel that is built for it (ten minutes, once) instead of Debian's.
SHELL := /bin/bash
ARGS ?=
KERNEL ?= debian
export CASEMATE_CACHE := $(CURDIR)/.cache
export CASEMATE_KERNEL := $(KERNEL)

.PHONY: help setup run test soak lint bench bench-start bench-density bench-sentry clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## Debian packages, Python environment, guest kernel and image
	@scripts/setup

run: setup ## set up, then run a container and show that its kernel is not the host's
	@scripts/demo

test: ## set up, check style and types, run all tests but soak
	@scripts/test $(ARGS)

soak: ## set up, run the long repetitions
	@scripts/test --soak $(ARGS)

lint: ## style (ruff) and types (mypy)
	@scripts/setup --no-guest
	@scripts/lint

bench: ## set up, print the table of measurements beside runc and runsc
	@scripts/setup --tests
	@.venv/bin/python -m benchmarks $(ARGS)

bench-start: ## set up, print how long starts take beside runc and runsc, one at a time and many at once
	@scripts/setup --tests
	@.venv/bin/python -m benchmarks.start $(ARGS)

bench-density: ## set up, print the memory of N idle sandboxes (N=20)
	@scripts/setup
	@.venv/bin/python -m benchmarks.density $(N) $(ARGS)

bench-sentry: ## set up, print what system calls and programs cost behind the sentry, beside the host and runsc
	@scripts/setup --tests
	@.venv/bin/python -m benchmarks.sentry $(ARGS)

clean: ## remove .venv, .cache and what tools left in the checkout; nothing outside it
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@echo "Removed .venv and .cache. Left alone: Debian packages, and what casemate keeps in /var/lib/casemate."
