# Everything goes through scripts; this file only names them. `make` alone lists what there is.

export CARGO_TARGET_DIR ?= $(or $(TIDEMILL_CACHE),$(HOME)/.cache/tidemill)/target

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup build up down demo fmt lint test test-readers test-warehouses drill-stream drill-archive drill-operators bench-ingest bench-stream bench-archive bench-query clean-data

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

test-readers: ## read one archive with PyIceberg, DuckDB, Spark and our SQL while it is written and compacted (ROWS= per act)
	@dev/readers

test-warehouses: ## let Trino and ClickHouse answer SQL over an archive that grows, and compare with our own (ROWS= events)
	@dev/warehouses

drill-stream: ## break a running stream in every way and compare all views (ROWS= picks some, SEED= repeats)
	@dev/drill

drill-archive: ## break a running archiver, its catalog and its storage in every way (ROWS= picks some, SEED= repeats)
	@dev/drill archive

drill-operators: ## let operators find out what is wrong and mend it (ROWS= picks some, SEED= repeats)
	@dev/drill operators

bench-ingest: ## measure the gateway beside the bare Kafka client and Benthos (ARGS: see dev/bench)
	@dev/bench $(ARGS)

bench-stream: ## measure the stream worker beside a bare consumer and Kafka Streams (ARGS: see dev/bench)
	@dev/bench stream $(ARGS)

bench-archive: ## measure the archiver beside bare decoding and writing and Kafka Connect (ARGS: see dev/bench)
	@dev/bench archive $(ARGS)

bench-query: ## measure SQL over an archive beside DuckDB on the same files (ARGS: see dev/bench)
	@dev/bench query $(ARGS)

clean-data: ## stop everything and remove its data
	@dev/down --wipe
