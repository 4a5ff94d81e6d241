# The project's table of contents: `make help`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BUILD    = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)'
CACHE   ?= .cache

# mkfs and mount helpers live where an ordinary user's PATH doesn't look.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help deps build man test integration edge edge-test edge-shell soak demo bench compare lint cross install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what tests, demo and bench need from Debian's packages
	@integration/install-deps

build: man ## bin/trayd and bin/trayctl, static, with their manual pages
	$(BUILD) -o bin/ ./cmd/trayd ./cmd/trayctl
	@mkdir -p bin/completions && for shell in bash zsh fish; do bin/trayctl completion $$shell > bin/completions/trayctl.$$shell || exit 1; done

man: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
man: ## bin/man: the manual pages, made from the commands
	@rm -rf bin/man && mkdir -p bin/man && for program in trayd trayctl; do \
		$(GO) run -buildvcs=false -tags man -ldflags '-X main.version=$(VERSION)' ./cmd/$$program bin/man || exit 1; done

bin/test: deps
	$(BUILD) -tags failpoints -o bin/trayd-failpoints ./cmd/trayd
	$(BUILD) -o bin/ ./integration/guestinit ./integration/edge
.PHONY: bin/test

# What an edge host has installed when tests run in it.
bin/host: build bin/test
	@rm -rf $@ && $(MAKE) -s install DESTDIR=$(CURDIR)/$@ && cp bin/trayd-failpoints $@/usr/bin/
.PHONY: bin/host

# Both must be content: go test, and the report, which counts a skipped test as failed.
# $(call gotest,NAME,ARGUMENTS OF go test)
define gotest
	@mkdir -p $(CACHE)
	$(GO) test -json $(2) > $(CACHE)/$(1).json; status=$$?; \
		$(GO) run -buildvcs=false ./integration/report $(CACHE)/$(1).json && exit $$status
endef

test: lint build bin/test ## everything: unit tests, real QEMU, a real guest, real systemd (needs root)
	$(call gotest,unit,-race -timeout 15m ./...)
	$(MAKE) integration

integration: build bin/test ## only what needs a guest, a crash, or systemd (needs root)
	$(call gotest,integration,-count=1 -timeout 25m -tags integration ./integration/...)
	$(MAKE) edge

# Tests in files with the build tag edge run inside an edge host, one package at a time:
# it has two processors, as a machine of CI has.
# trayd of this checkout is installed there.
EDGE          = -count=1 -p 1 -timeout 25m -tags edge -exec '$(CURDIR)/bin/edge -install $(CURDIR)/bin/host exec'
EDGE_PACKAGES = $(shell grep -rl '^//go:build edge$$' --include='*_test.go' . | xargs dirname | sort -u)
edge edge-test: export CGO_ENABLED = 0

edge: bin/host
	$(call gotest,edge,$(EDGE) $(EDGE_PACKAGES))

edge-test: bin/host ## tests with the build tag edge: PKG=./integration RUN=TestVolumes
	$(GO) test $(EDGE) -v $(if $(RUN),-run '$(RUN)') $(or $(PKG),$(EDGE_PACKAGES))

SOAK ?= 10m
VMS  ?= 0
SEED ?= 0
soak: export CGO_ENABLED = 0
soak: bin/host ## for SOAK=10m, VMS=N machines (as many as fit) share discs while trayd, machines, downloads are killed; SEED=N again
	$(GO) test $(EDGE) -timeout 0 -v -run '^TestSoak$$' ./integration -args -soak $(SOAK) -soak-vms $(VMS) -soak-seed $(SEED)

edge-shell: build bin/test ## a shell in an edge host (systemd, LVM, QEMU) with trayd installed
	@root=$$(mktemp -d) && trap 'rm -rf $$root' EXIT && $(MAKE) -s install DESTDIR=$$root && bin/edge -install $$root shell $(RUN)

demo: build bin/test ## a minute with a real guest: insert, change, a broken disc, kill -9, eject
	@$(GO) run -buildvcs=false ./integration/demo -bin bin -cache $(CACHE)

bench: build bin/test ## the figures, side by side with the raw floor and virsh, as ratios of one run
	@integration/install-deps bench
	$(BUILD) -o bin/ ./integration/bench/bare
	@$(GO) run -buildvcs=false ./integration/bench -bin bin
	@root=$$(mktemp -d) && trap 'rm -rf $$root' EXIT && $(MAKE) -s install DESTDIR=$$root && $(BUILD) -o $$root/usr/bin/trayd-bench ./integration/bench && \
		bin/edge -install $$root shell trayd-bench -bin /usr/bin -only volumes

COMPARE ?=
compare: build ## trayd beside libvirt, a script and the floor: docs/comparison.md; COMPARE='-rounds 5 -faults 3 -o -' for a look (needs root)
	@integration/install-deps compare
	@$(GO) run -buildvcs=false ./integration/compare -bin bin $(COMPARE)

lint: ## gofmt, vet, a tidy go.mod, and both architectures build
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags integration,failpoints,edge ./...
	$(GO) vet -tags man ./cmd/...
	$(GO) mod tidy -diff
	@$(MAKE) --no-print-directory cross

cross:
	@for arch in amd64 arm64; do echo "GOARCH=$$arch go build"; for program in trayd trayctl; do CGO_ENABLED=0 GOARCH=$$arch $(GO) build -buildvcs=false -o /dev/null ./cmd/$$program || exit 1; done; done

install: ## into $(DESTDIR)/usr: both programs, the units, the group; /etc/trayd
	install -d -m 755 $(DESTDIR)/etc/trayd
	install -D -m 755 bin/trayd $(DESTDIR)/usr/bin/trayd
	install -D -m 755 bin/trayctl $(DESTDIR)/usr/bin/trayctl
	install -D -m 644 systemd/trayd.service $(DESTDIR)/usr/lib/systemd/system/trayd.service
	install -D -m 644 systemd/trayd.socket $(DESTDIR)/usr/lib/systemd/system/trayd.socket
	install -D -m 644 systemd/trayd-network.socket $(DESTDIR)/usr/lib/systemd/system/trayd-network.socket
	install -D -m 644 systemd/trayd-network.service $(DESTDIR)/usr/lib/systemd/system/trayd-network.service
	install -D -m 644 systemd/trayd-vm@.service $(DESTDIR)/usr/lib/systemd/system/trayd-vm@.service
	install -D -m 644 systemd/polkit-1/rules.d/trayd.rules $(DESTDIR)/usr/share/polkit-1/rules.d/trayd.rules
	install -D -m 644 systemd/sysusers.d/trayd.conf $(DESTDIR)/usr/lib/sysusers.d/trayd.conf
	install -D -m 644 systemd/tmpfiles.d/trayd.conf $(DESTDIR)/usr/lib/tmpfiles.d/trayd.conf
	install -D -m 644 systemd/logrotate.d/trayd $(DESTDIR)/etc/logrotate.d/trayd
	install -d -m 755 $(addprefix $(DESTDIR)/usr/share/,man/man1 man/man5 man/man8 bash-completion/completions zsh/vendor-completions fish/vendor_completions.d)
	for page in bin/man/*; do gzip -9nc $$page > $(DESTDIR)/usr/share/man/man$${page##*.}/$${page##*/}.gz || exit 1; done
	install -m 644 bin/completions/trayctl.bash $(DESTDIR)/usr/share/bash-completion/completions/trayctl
	install -m 644 bin/completions/trayctl.zsh $(DESTDIR)/usr/share/zsh/vendor-completions/_trayctl
	install -m 644 bin/completions/trayctl.fish $(DESTDIR)/usr/share/fish/vendor_completions.d/trayctl.fish
	@if [ -z "$(DESTDIR)" ] && command -v systemd-sysusers >/dev/null; then systemd-sysusers trayd.conf && systemd-tmpfiles --create trayd.conf; fi
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

clean: ## remove what was built and cached
	rm -rf bin $(CACHE)
