# SPDX-License-Identifier: Apache-2.0
# Copyright The LeapIO Authors
#
# Needs Go and, for the race detector, a C compiler. Guests and mandoc are fetched
# by the tests into LEAP_CACHE. `make help` lists the targets.

PREFIX   ?= /usr/local
DESTDIR  ?=
FUZZTIME ?= 10s
COUNT    ?= 10
RUN      ?= .
RUNS     ?= 5
ROWS     ?= .
PEER     ?=
SOAKTIME ?= 2h
SOAKENDS ?= 1000
SEED     ?=

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo devel)
COMMANDS := $(notdir $(wildcard cmd/*))
MAN7     := $(wildcard man/*.7)
MAN8     := $(wildcard man/*.8)
BASHDIR   = $(PREFIX)/share/bash-completion/completions
ZSHDIR    = $(PREFIX)/share/zsh/site-functions
UNITS    := $(wildcard systemd/*.service systemd/*.target)
UNITDIR   = $(PREFIX)/lib/systemd/system
BUILD     = CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X github.com/leapio/leapio/lib/cli.version=$(VERSION)"

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all arm64 demo test lint unit race scripts guest guest-all soak fuzz bench figures microbench install uninstall clean help

all: ## build the commands into bin/
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/...

arm64: ## build the commands for arm64 into bin/arm64/
	@mkdir -p bin/arm64
	GOARCH=arm64 $(BUILD) -o bin/arm64/ ./cmd/...

demo: all ## a VM with a drive, and a restart under it without loss, step by step
	PATH="$(CURDIR)/bin:$$PATH" docs/demo.sh

test: lint unit race scripts guest ## all that is pass or fail, in this order: lint unit race scripts guest

lint: ## formatting, vet, staticcheck, manual pages
	@echo '==> lint: gofmt'
	@files=$$(gofmt -l cmd lib test) && if [ -n "$$files" ]; then echo "not formatted:"; echo "$$files"; exit 1; fi
	@echo '==> lint: go vet, for amd64 and arm64, without and with the guest tests'
	GOARCH=amd64 go vet ./...
	GOARCH=amd64 go vet -tags guest ./...
	GOARCH=arm64 go vet ./...
	@echo '==> lint: staticcheck'
	go tool staticcheck ./...
	go tool staticcheck -tags guest ./...
	@echo '==> lint: manual pages'
	@if [ -n "$(MAN7)$(MAN8)" ]; then mandoc=$$(go run ./lib/guest/tool path mandoc) && $$mandoc -T lint -W warning $(MAN7) $(MAN8); fi

unit: ## unit tests and the seeds of the fuzz targets
	@echo '==> unit: every package, fuzz targets with their seeds'
	go test -timeout 30m ./...

race: ## the same under the race detector
	@echo '==> race: every package under the race detector'
	go test -race -timeout 30m ./...

scripts: ## the command scripts, from scratch
	@echo '==> scripts: the commands, run as users run them'
	go test -count=1 ./lib/command/...

guest: ## real guests in QEMU; RUN=REGEXP selects
	@echo '==> guest: real guests in QEMU, the default set'
	go test -tags guest -count=1 -p 1 -timeout 60m -v -run '$(RUN)' ./lib/guest/... ./test/guest/...

guest-all: ## and every combination of doorbells, memory, blocks, kernels, processors, interrupts, depths
	@echo '==> guest-all: real guests in QEMU, all of them'
	LEAP_GUEST_ALL=1 go test -tags guest -count=1 -p 1 -timeout 180m -v -run '$(RUN)' ./lib/guest/... ./test/guest/...

soak: ## guests and hosts under kills, upgrades, resets and changes, for SOAKTIME and SOAKENDS of each; SEED=N again
	@echo '==> soak: for $(SOAKTIME), and $(SOAKENDS) kills and upgrades of each daemon'
	SOAKTIME=$(SOAKTIME) SOAKENDS=$(SOAKENDS) SEED=$(SEED) go test -count=1 -timeout 0 -v -run TestSoak ./test/soak

fuzz: ## every fuzz target for FUZZTIME
	@echo '==> fuzz: every target for $(FUZZTIME)'
	@set -e; grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' lib | sort | while IFS=: read -r file name; do \
		name=$${name#func }; echo "$${file%/*} $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$${file%/*}" </dev/null; \
	done

bench: all ## the data path from outside; with PEER=TREE beside SPDK built there; ROWS=REGEXP selects; RUNS runs, kept under bench/
	@mkdir -p bench
	go test -count=1 -timeout 0 -v -run TestBench ./test/bench -args -table -bin $(CURDIR)/bin -runs $(RUNS) -rows '$(ROWS)' -commit $(VERSION) \
		-keep $(CURDIR)/bench/$(shell date -u +%Y-%m-%d)-$(VERSION).txt $(if $(PEER),-peer $(abspath $(PEER)))
	$(if $(filter .,$(ROWS)),$(MAKE) figures)

figures: ## what idle drives cost, how pollers are shared, how long guests pause; a part of bench
	go test -run '^$$' -bench '^Benchmark(Idle|Neighbour|HostNeighbour|Shares)$$' -benchtime 1x ./lib/soc
	go test -run '^$$' -bench '^BenchmarkPause$$' -benchtime 50x ./lib/command

microbench: ## benchmarks of the packages, COUNT times, for go tool benchstat
	go test -run '^$$' -bench . -benchmem -count $(COUNT) ./lib/...

install: all ## install commands, manual pages, completions and systemd units below DESTDIR and PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man7 $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR)
	install -m 755 $(addprefix bin/,$(COMMANDS)) $(DESTDIR)$(PREFIX)/bin
	$(if $(MAN7),install -m 644 $(MAN7) $(DESTDIR)$(PREFIX)/share/man/man7)
	$(if $(MAN8),install -m 644 $(MAN8) $(DESTDIR)$(PREFIX)/share/man/man8)
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	install -m 644 systemd/leapio.sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/leapio.conf
	install -m 644 systemd/leapio.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/leapio.conf
	set -e; for u in $(notdir $(UNITS)); do \
		sed 's#/usr/local/bin/#$(PREFIX)/bin/#' systemd/$$u >$(DESTDIR)$(UNITDIR)/$$u; \
	done
	set -e; for c in $(COMMANDS); do \
		bin/$$c --completion bash >$(DESTDIR)$(BASHDIR)/$$c; \
		bin/$$c --completion zsh >$(DESTDIR)$(ZSHDIR)/_$$c; \
	done

uninstall: ## remove what install installed; state and run folders are kept
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(UNITS)))
	rm -f $(DESTDIR)$(PREFIX)/lib/sysusers.d/leapio.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/leapio.conf
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(COMMANDS))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man7/,$(notdir $(MAN7))) $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,$(notdir $(MAN8)))
	rm -f $(addprefix $(DESTDIR)$(BASHDIR)/,$(COMMANDS)) $(addprefix $(DESTDIR)$(ZSHDIR)/_,$(COMMANDS))

clean: ## remove what all and arm64 built
	rm -rf bin

help: ## this list
	@awk -F ': *[^#]*## ' '/^[a-z0-9-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile
