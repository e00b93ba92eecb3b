# SPDX-License-Identifier: Apache-2.0
#
# `make` lists the targets. Building, running and testing need Go and GNU make;
# what else a target needs is said beside it. See docs/DEVELOPMENT.md.

GO       ?= go
ARGS     ?=
FUZZTIME ?= 10s
# Added to `go test`, for instance TESTFLAGS='-run TestRefused -v'.
TESTFLAGS ?=
PKG      ?= ./...
# What runs the tests; takes the arguments of `go test`.
GOTEST   ?= $(GO) test
# After this a package hangs, and all its goroutines are printed.
TESTTIME ?= 5m
# Packages whose tests look at the running kernel, at processes or at the network
# around them: nothing runs beside them, and what they found is not reused.
LIVE     := ./internal/probe/... ./internal/cli/... ./internal/doctor/... ./internal/workload/... \
	./internal/accel/tpu/... ./test/kernels/... ./test/dashboards/...

# One package at a time; with flock the next one is compiled and linked meanwhile.
ALONE    := $(if $(shell command -v flock),-p=2 -exec='flock -o $(CURDIR)/.cache/live.lock',-p=1)

# The BPF objects in the repository are made with these; gen.go beside each
# program names them.
CLANG := clang-16 llvm-strip-16

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
OS      := $(shell uname -s)
# Where git cannot read the checkout, Go must not ask it either.
VCS     := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# 1 for a binary that can load NVIDIA's library, which takes a C compiler.
CGO_ENABLED ?= 0
# NVIDIA's header calls some of its functions deprecated, once for each.
export CGO_CFLAGS ?= -g -O2 -Wno-deprecated-declarations
GOBUILD  = CGO_ENABLED=$(CGO_ENABLED) $(GO) build -trimpath -buildvcs=$(VCS) -ldflags '-s -w -X main.version=$(VERSION)'

# The race detector needs a C compiler with its headers.
HASH := \#
RACE  = $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && echo "$(HASH)include <pthread.h>" | \
	$$($(GO) env CC) -x c -c -o /dev/null - 2>/dev/null && echo -race)
# A program with the race detector sleeps for a second before it ends, also each that a
# test starts.
export GORACE ?= atexit_sleep_ms=0

# Tools that are built once per version, from tools/dev/go.mod, for all checkouts.
TOOLS         := $(or $(ORB8_TOOLS),$(HOME)/.cache/orb8/tools)
tool_version   = $(shell awk '$$1 == "$(1)" { print $$2 }' tools/dev/go.mod)
tool_suffix   := $(shell $(GO) env GOOS)-$(shell $(GO) env GOARCH)
BUF           := $(TOOLS)/buf-$(call tool_version,github.com/bufbuild/buf)-$(tool_suffix)
HELM          := $(TOOLS)/helm-$(call tool_version,helm.sh/helm/v3)-$(tool_suffix)
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(call tool_version,github.com/golangci/golangci-lint/v2)-$(tool_suffix)

VM    := orb8
IN_VM  = limactl shell --workdir '$(CURDIR)' $(VM)

.DEFAULT_GOAL := help
.PHONY: help run build build-agent run-agent test check fuzz bench test-kernels test-cluster test-gpu \
	generate lint darwin arm64 verify-setup magic-local magic dev shell clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Use

run: build ## Build, then watch this host's network (root; more flags in ARGS)
	$(SUDO) bin/orb8 trace network $(ARGS)

build: ## Build bin/orb8
	$(GOBUILD) -o bin/orb8 ./cmd/orb8

build-agent: build ## Same as build: the agent is part of bin/orb8

run-agent: build ## Build, then run the node agent (root; more flags in ARGS)
	$(SUDO) bin/orb8 agent $(ARGS)

verify-setup: build ## Check the tools for development and what this host offers orb8
	@echo "needed for make run and make test:"
	@printf '  %-16s %s\n' go "$$($(GO) env GOVERSION)" make '$(MAKE_VERSION)'
	@echo "needed for make generate only:"
	@for t in $(CLANG); do \
		printf '  %-16s %s\n' "$$t" "$$(command -v "$$t" || echo 'not found: apt-get install clang-16 llvm-16')"; done
	@printf '  %-16s %s\n' libbpf-dev "$$(ls /usr/include/bpf/bpf_helpers.h 2>/dev/null || echo 'not found: apt-get install libbpf-dev')"
	@echo "used if there:"
	@printf '  %-16s %s\n' 'race detector' "$(if $(RACE),yes,no: needs a C compiler)" \
		shellcheck "$$(command -v shellcheck || echo 'not found')"
	@echo
	$(SUDO) bin/orb8 doctor

## Develop

test: ## Every test that this machine can run; as root also those in the kernel
	@[ -z '$(SUDO)' ] || echo 'not root: tests that load BPF programs are skipped; sudo env PATH="$$PATH" make test' >&2
	@mkdir -p .cache; \
	live=$$($(GO) list $(LIVE)) && all=$$($(GO) list $(PKG)) || exit 1; status=0; \
	try() { $(GOTEST) "$$@" || status=1; }; \
	pure=$$(echo "$$all" | grep -vFx "$$live"); live=$$(echo "$$all" | grep -Fx "$$live"); \
	[ -z "$$pure" ] || try -trimpath $(RACE) -timeout=$(TESTTIME) $(TESTFLAGS) $$pure; \
	[ -z "$$live" ] || try $(RACE) -count=1 $(ALONE) -timeout=$(TESTTIME) $(TESTFLAGS) $$live; \
	exit $$status

check: $(GOLANGCI_LINT) ## Build, vet, lint what changed, test what needs no kernel: the loop for working
	$(GO) build ./...
	$(GO) vet -tags cluster,gpu ./...
	$(GOLANGCI_LINT) run --build-tags cluster,gpu --new-from-rev=HEAD
	$(GO) test -trimpath -timeout=$(TESTTIME) $(TESTFLAGS) $$($(GO) list ./... | grep -v -Fx "$$($(GO) list $(LIVE))")

fuzz: ## Run each fuzz target for FUZZTIME: a time (10s) or inputs (1000x)
	@tools/fuzz.sh '$(FUZZTIME)'

lint: $(GOLANGCI_LINT) $(BUF) ## Check Go, protobuf and, with shellcheck installed, scripts
	$(GOLANGCI_LINT) run --build-tags cluster,gpu
	$(BUF) lint
	@if command -v shellcheck >/dev/null; then \
		shellcheck -x .ci/run $$(find test deploy -name '*.sh'); \
	else echo 'shellcheck is not installed: scripts are not checked'; fi

generate: $(BUF) $(HELM) ## Make all generated files anew (clang 16, llvm 16, libbpf-dev)
	@for t in $(CLANG); do command -v "$$t" >/dev/null || \
		{ echo "$$t not found: apt-get install clang-16 llvm-16 libbpf-dev" >&2; exit 1; }; done
	$(BUF) generate
	$(GO) generate ./...
	@mkdir -p .cache
	$(GO) run ./tools/metricsdoc > .cache/metrics.md
	mv .cache/metrics.md docs/metrics.md
	$(GO) run ./tools/rulesdoc > .cache/rules.md
	mv .cache/rules.md docs/rules.md
	deploy/render.sh $(HELM)

darwin: ## Build the remote half of the command line for macOS
	GOOS=darwin GOARCH=arm64 $(GOBUILD) -o bin/orb8-darwin-arm64 ./cmd/orb8

arm64: ## Build for Linux on arm64
	GOOS=linux GOARCH=arm64 $(GOBUILD) -o bin/orb8-linux-arm64 ./cmd/orb8

bench: build ## Measure what orb8 costs, with and without it (root; minutes)
	$(SUDO) test/load/bench.sh $(ARGS)

test-kernels: ## Run the probe tests on other kernels (QEMU, apt, root)
	$(SUDO) test/kernels/run.sh $(ARGS)

test-cluster: build ## Test in a two-node Kubernetes cluster made here (root), or ORB8_TEST_KUBECONFIG's
	$(if $(ORB8_TEST_KUBECONFIG),,$(SUDO)) test/cluster/run.sh $(ARGS)

test-gpu: ## Compare with nvidia-smi on real NVIDIA GPUs (root); says so where there is none
	$(SUDO) test/gpu/run.sh $(ARGS)

clean: ## Remove what was built here
	rm -rf bin .cache

$(BUF): TOOL := github.com/bufbuild/buf/cmd/buf
$(HELM): TOOL := helm.sh/helm/v3/cmd/helm
$(GOLANGCI_LINT): TOOL := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
# Whole or not at all, also where two checkouts build at once.
$(BUF) $(HELM) $(GOLANGCI_LINT):
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/dev -trimpath -buildvcs=false -o $@.$$PPID $(TOOL) && mv $@.$$PPID $@

## Whole way in one command

magic-local: verify-setup run ## Check this Linux host, build and run

ifeq ($(OS),Darwin)
magic: dev ## macOS: start the VM, build, check and test in it; Linux: magic-local
	$(IN_VM) sudo make verify-setup test
	@echo "now: make shell, then sudo bin/orb8 trace network"
else
magic: magic-local
endif

dev: ## Start the Lima VM (macOS; needs limactl)
	@command -v limactl >/dev/null || { echo 'limactl not found: brew install lima' >&2; exit 1; }
	@if limactl list --quiet | grep -qx '$(VM)'; then limactl start '$(VM)'; \
	else limactl start --tty=false --name='$(VM)' \
		--set '.mounts = [{"location": "$(CURDIR)", "writable": true}]' lima/orb8.yaml; fi

shell: ## Open a shell in the Lima VM
	@command -v limactl >/dev/null || { echo 'limactl not found: brew install lima' >&2; exit 1; }
	$(IN_VM)
