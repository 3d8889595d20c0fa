# Everything goes through scripts; this file only names them. `make` alone lists what there is.

export CARGO_TARGET_DIR ?= $(or $(TIDEMILL_CACHE),$(HOME)/.cache/tidemill)/target

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup build up down demo fmt lint test drill-stream bench-ingest bench-stream clean-data

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (apt, Maven, pip)
	@dev/install

build: ## build the tidemill binary
	cargo build -p tidemill

up: ## start components and services; the last line is JSON with addresses and keys
	@dev/up

down: ## stop all that `make up` started; the data stays
	@dev/down

demo: ## send a real clickstream through everything and check every number
	@dev/demo

fmt: ## format the Rust code
	cargo fmt --all

lint: ## check formatting, run clippy with warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

test: ## set up, then run every check and test on the real components
	@dev/test

drill-stream: ## break a running stream in every way and compare all views (ROWS= picks some, SEED= repeats)
	@dev/drill

bench-ingest: ## measure the gateway beside the bare Kafka client and Benthos (ARGS: see dev/bench)
	@dev/bench $(ARGS)

bench-stream: ## measure the stream worker beside a bare consumer and Kafka Streams (ARGS: see dev/bench)
	@dev/bench stream $(ARGS)

clean-data: ## stop everything and remove its data
	@dev/down --wipe
