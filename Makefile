# make demo     builds, starts a daemon on an empty home, stores items and searches them
# make test     runs every test
# make quick    builds and tests the command line and the wire alone: no LanceDB, a minute and a half from nothing
# demo and test use cargo's dev profile, so the heavy dependencies compile once.

# Kept outside the checkout, so that a fresh clone finds what an earlier one compiled. Never required.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ccod/target

PREFIX ?= $(HOME)/.local
FEATURES := failpoints

# The command line without the engine.
CLI := -p ccod --no-default-features

.PHONY: all build demo test quick lint fmt bench peers dist install deps clean help

all: build

help: ## Lists the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## Installs protoc, socat and strace if they are missing
	@scripts/install-deps.sh

build: deps ## Builds the executable (dev profile)
	cargo build --locked

demo: build ## Shows the whole thing on an empty home
	@scripts/demo.sh "$(CARGO_TARGET_DIR)/debug/ccoctl"

test: deps ## Runs all tests, the fault injection ones included
	cargo test --locked --no-fail-fast --workspace --features $(FEATURES)

quick: ## Builds and tests the command line and the wire alone
	cargo test --locked --profile quick -p ccod-words -p ccod-protocol
	cargo test --locked --profile quick $(CLI) --lib --bins

lint: deps ## Words, formatting and clippy, as the CI does
	scripts/check-words.sh
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features $(FEATURES) -- -D warnings
	cargo clippy --locked $(CLI) --lib --bins --tests -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --features $(FEATURES)

fmt: ## Formats the code
	cargo fmt --all

bench: deps ## Runs the benchmarks (shipped profile); they print their numbers
	cargo bench --locked --profile dist
	cargo bench --locked --profile dist -p ccod-model

peers: ## Compares a built daemon with Chroma, LanceDB, the old tool's store (PEERS="--items 1000")
	python3 -m unittest discover -q benches/peers
	python3 benches/peers/run.py $(PEERS)

dist: deps ## Builds the shipped programs: two, and both in one file
	scripts/dist.sh

install: deps ## Installs the two programs and a link below PREFIX (default ~/.local)
	cargo build --locked --profile dist --bin ccod
	cargo build --locked --profile dist $(CLI) --bin ccoctl
	@packaging/install.sh "$(CARGO_TARGET_DIR)/dist" "$(PREFIX)"

clean: ## Removes compiled files
	cargo clean
