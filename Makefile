# muster: `make` or `make help` lists what there is.
#
# Each target does all of its own set-up; nothing has to be run before it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

SHELL := /bin/bash
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# Debian keeps nats-server where only root's PATH looks, and rustup keeps cargo
# in the home directory.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin
export CARGO

.PHONY: help
help: ## Show this list
	@echo 'make TARGET, where TARGET is one of:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: demo
demo: ## Five agents, one command on exactly the nodes that a predicate names
	@scripts/setup.sh build
	@$(CARGO) build --quiet --workspace --bins $$(scripts/features.sh 2>/dev/null)
	@MUSTER_BIN_DIR="$$(scripts/bin-dir.sh)" scripts/demo.sh

.PHONY: test
test: ## Build everything and run all tests
	@scripts/setup.sh test
	@scripts/test.sh

.PHONY: ci
ci: ## Format, clippy, deny, tests, docs: all that has to be green
	@.ci/run
	@$(MAKE) --no-print-directory docs

.PHONY: bench
bench: ## Measure a release build against its targets (QUICK=1, JSON=1)
	@scripts/setup.sh build >&2
	@scripts/bench.sh $(if $(QUICK),--quick) $(if $(JSON),--json)

.PHONY: fuzz-api
fuzz-api: ## Hold the OpenAPI document against a real broker (schemathesis from PyPI)
	@scripts/setup.sh build
	@$(CARGO) build --quiet --bins --package muster-cli --package muster-agent
	@MUSTER_BIN_DIR="$$(scripts/bin-dir.sh)" scripts/fuzz-api.sh

.PHONY: fmt
fmt: ## Format the code
	@scripts/setup.sh rust rustfmt
	@$(CARGO) fmt --all

.PHONY: lint
lint: ## Check format, clippy and systemd units, with warnings denied
	@scripts/setup.sh build rustfmt clippy
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets $$(scripts/features.sh) -- -D warnings
	@scripts/check-units.sh

.PHONY: deny
deny: ## Check licences, advisories and sources of dependencies
	@scripts/setup.sh rust
	@scripts/deny.sh

.PHONY: docs
docs: ## Build the documentation of the code, with warnings denied
	@scripts/setup.sh build
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps $$(scripts/features.sh 2>/dev/null)

.PHONY: install
install: ## Build for release and install below PREFIX (default /usr/local)
	@scripts/setup.sh build
	@$(CARGO) build --release --locked --bins -p muster-cli -p muster-agent -p muster-bot $$(scripts/features.sh --package)
	@CARGO_PROFILE=release PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install.sh
