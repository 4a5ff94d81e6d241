# The project's table of contents: `make help`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BUILD    = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)'
CACHE   ?= .cache

# mkfs and mount helpers live where an ordinary user's PATH doesn't look.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help deps build man test unit here edge integration matrix edge-test edge-shell soak demo bench compare lint cross vuln fuzz install clean

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

# QEMU= is the QEMU under test: a path, or a Debian suite whose QEMU integration/qemu-of
# unpacks. Without it, it is this host's own, and everything is run. With it, what has
# nothing to do with QEMU is left out: integration/any-qemu says what. With the suites of
# ONCE_IS_ENOUGH= what takes longest is left out, too: the soak, the faults on volumes, whole
# installations, and what is killed at every step with volumes or as units (as with files, and
# machines without systemd, it still is). (An emulated host takes a suite's only.)
#   make integration QEMU=bullseye
QEMU   ?=
SUITES ?= bullseye bookworm trixie sid
WITH_QEMU = $(if $(QEMU),integration/qemu-of $(QEMU))
SUFFIX    = $(if $(QEMU),-$(notdir $(QEMU)))
ANY_QEMU_TESTS    = $(shell awk '/^Test/ { print $$1 }' integration/any-qemu | paste -sd'|')
ANY_QEMU_PACKAGES = $(shell awk '/^\.\// { print $$1 }' integration/any-qemu)
SKIP      = $(if $(QEMU),-skip '^($(ANY_QEMU_TESTS)$(if $(filter $(ONCE_IS_ENOUGH),$(QEMU)),|TestSoak|TestFaultsOnVolumes|TestVolumeCrashes|TestMachineInstall.*|TestMachineFromDisc.*|TestUnitMachineKilledAtEveryStep))$$')
# Each part exists once more for each suite, as unit-bullseye.
PARTS   = unit here edge
$(foreach suite,$(SUITES),$(eval %-$(suite): QEMU = $(suite)))
.PHONY: $(foreach suite,$(SUITES),$(PARTS:%=%-$(suite)))

# The QEMU under test, before anything is built for it.
qemu: deps
	@$(WITH_QEMU)
	@$(if $(findstring /,$(QEMU)),echo "without the tests in edge hosts: they take the QEMU of a Debian suite")
.PHONY: qemu

# What an edge host has installed when tests run in it.
bin/host: build bin/test
	@rm -rf $@ && $(MAKE) -s install DESTDIR=$(CURDIR)/$@ && cp bin/trayd-failpoints $@/usr/bin/
.PHONY: bin/host

bin/host-%: bin/host
	@rm -rf $@ && cp -a bin/host $@ && integration/qemu-of --into $@ $(if $(findstring /,$(QEMU)),$(QEMU),$*)
.PRECIOUS: bin/host-%

# Both must be content: go test, and the report, which counts a skipped test as failed.
# $(call gotest,NAME,ARGUMENTS OF go test)
define gotest
	@mkdir -p $(CACHE)
	$(WITH_QEMU) $(GO) test -json $(2) > $(CACHE)/$(1)$(SUFFIX).json; status=$$?; \
		$(GO) run -buildvcs=false ./integration/report $(CACHE)/$(1)$(SUFFIX).json && exit $$status
endef

# At most two parts at a time: most of them keep one processor busy. What one prints comes
# in one piece, when it has ended; a failure leaves the others running. The longest are first,
# and among them edge: the others wait for what it needs (bin/host). make test begins with
# what edge-SUITE needs: make would else run the short parts first, and end with a long one.
IN_PAIRS = $(MAKE) --no-print-directory -j2 -k --output-sync=target

# In what the tests leave of the processors, and so for twice the time each; in a group of its
# own, which ends with its parent. A session of its own has as much of the processors as all
# the tests together, however nice its processes are, unless it is nice as a whole (sched(7):
# the autogroup feature).
FUZZ_BESIDE = mkdir -p $(CACHE); setsid nice -n 19 sh -c '{ echo 15 > /proc/self/autogroup; } 2>/dev/null; exec "$$@"' sh \
	$(MAKE) --no-print-directory fuzz ONCE=1 FUZZTIME=2m > $(CACHE)/fuzz.log 2>&1 & fuzz=$$!; \
	trap 'kill -- -$$fuzz' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM;

test: lint ## everything: unit tests, real QEMUs, real guests, real systemd (needs root)
	@rm -f $(CACHE)/*.json; failed=0; \
	$(if $(QEMU),,$(FUZZ_BESIDE)) \
	$(MAKE) --no-print-directory unit || failed=1; \
	$(IN_PAIRS) $(if $(QEMU),,$(OTHERS:%=bin/host-%)) $(if $(findstring /,$(QEMU)),,edge) here $(if $(QEMU),,$(foreach p,edge here unit,$(OTHERS:%=$(p)-%)) ONCE_IS_ENOUGH=bullseye) || failed=1; \
	$(if $(QEMU),,wait $$fuzz || failed=1; trap - EXIT; cat $(CACHE)/fuzz.log;) \
	$(GO) run -buildvcs=false ./integration/report -table $(foreach p,unit integration $(if $(findstring /,$(QEMU)),,edge),$(CACHE)/$(p)$(SUFFIX).json \
		$(if $(QEMU),,$(OTHERS:%=$(CACHE)/$(p)-%.json))) && exit $$failed

# What CI runs besides this host's own QEMU: the newest, and the oldest.
OTHERS ?= sid bullseye

integration: $(if $(QEMU),qemu) ## only what needs a guest, a crash, or systemd (needs root): QEMU=bullseye
	@$(IN_PAIRS) here $(if $(findstring /,$(QEMU)),,edge)

matrix: ## the same and the unit tests on the QEMU of each of SUITES="bullseye bookworm trixie sid"
	@rm -f $(SUITES:%=$(CACHE)/*-%.json); failed=0; for suite in $(SUITES); do $(IN_PAIRS) edge-$$suite unit-$$suite here-$$suite || failed=1; done; \
	$(GO) run -buildvcs=false ./integration/report -table $(foreach suite,$(SUITES),$(foreach p,unit integration edge,$(CACHE)/$(p)-$(suite).json)) && exit $$failed

# The packages whose tests run a QEMU or its tools.
QEMU_PACKAGES = $(filter-out ./integration $(ANY_QEMU_PACKAGES),$(shell grep -rlE 'qemutest\.|qemu-img|qemu-system' --include='*_test.go' . | xargs dirname | sort -u))

unit: ## the unit tests, with the race detector: QEMU=bullseye
unit $(SUITES:%=unit-%): bin/test
	$(call gotest,unit,$(if $(QEMU),-count=1 -timeout 15m $(QEMU_PACKAGES),-race -coverprofile $(CACHE)/unit.cover -timeout 15m ./...))
	@$(if $(QEMU),,integration/coverage $(CACHE)/unit.cover)

here $(SUITES:%=here-%) $(SUITES:%=unit-%): | bin/host
here $(SUITES:%=here-%): build bin/test
	$(call gotest,integration,-count=1 -timeout 25m -tags integration $(SKIP) ./integration/...)

# Tests in files with the build tag edge run inside an edge host, one package at a time:
# it has two processors, as a machine of CI has.
# trayd of this checkout is installed there, and the QEMU under test.
EDGE          = -count=1 -p 1 -timeout 25m -tags edge -exec '$(CURDIR)/bin/edge -install $(CURDIR)/bin/host$(SUFFIX) exec' $(SKIP)
EDGE_PACKAGES = $(filter-out $(if $(QEMU),$(ANY_QEMU_PACKAGES)),$(shell grep -rl '^//go:build edge$$' --include='*_test.go' . | xargs dirname | sort -u))

edge edge-test $(SUITES:%=edge-%): export CGO_ENABLED = 0
edge edge-test: bin/host$(SUFFIX)
$(SUITES:%=edge-%): edge-%: bin/host-%

edge $(SUITES:%=edge-%): WITH_QEMU =
edge $(SUITES:%=edge-%):
	$(call gotest,edge,$(EDGE) $(EDGE_PACKAGES))

edge-test: ## tests with the build tag edge: PKG=./integration RUN=TestVolumes
	$(GO) test $(EDGE) -v $(if $(RUN),-run '$(RUN)') $(or $(PKG),$(EDGE_PACKAGES))

SOAK ?= 10m
VMS  ?= 0
SEED ?= 0
ROUND ?= 1
MEMORY ?= 2048
soak: export CGO_ENABLED = 0
soak: export TRAYD_EDGE_MEMORY = $(MEMORY)
soak: soak-arguments bin/host$(SUFFIX) ## for SOAK=10m, VMS=N machines (as many as fit into a host of MEMORY=2048 MiB) share discs while trayd, machines, downloads are killed; SEED=N ROUND=N again
	$(GO) test $(EDGE) -timeout 0 -v -run '^TestSoak$$' ./integration -args -soak $(SOAK) -soak-vms $(VMS) -soak-seed $(SEED) -soak-round $(ROUND) -soak-memory $(MEMORY)

# Before anything is built.
soak-arguments:
	@echo '$(SOAK)' | grep -qE '^([0-9]+h)?([0-9]+m)?([0-9]+s)?$$' && echo '$(SOAK)' | grep -q '[1-9]' || { echo "SOAK=$(SOAK): for how long? as 90s, 10m, 1h30m" >&2; exit 1; }
	@for n in '$(VMS)' '$(SEED)' '$(ROUND)' '$(MEMORY)'; do echo "$$n" | grep -qE '^[0-9]+$$' || { echo "VMS=$(VMS) SEED=$(SEED) ROUND=$(ROUND) MEMORY=$(MEMORY): each is a number; VMS=0 is as many machines as fit, SEED=0 a seed at random, MEMORY the edge host's in MiB" >&2; exit 1; }; done
.PHONY: soak-arguments

edge-shell: build bin/test ## a shell in an edge host (systemd, LVM, QEMU) with trayd installed
	@root=$$(mktemp -d) && trap 'rm -rf $$root' EXIT && $(MAKE) -s install DESTDIR=$$root && bin/edge -install $$root shell $(RUN)

demo: build bin/test ## a minute with a real guest: insert, change, a broken disc, kill -9, eject
	@$(WITH_QEMU) $(GO) run -buildvcs=false ./integration/demo -bin bin -cache $(CACHE)

bench: build bin/test ## the figures, side by side with the raw floor and virsh, as ratios of one run
	@integration/install-deps bench
	$(BUILD) -o bin/ ./integration/bench/bare
	@$(WITH_QEMU) $(GO) run -buildvcs=false ./integration/bench -bin bin
	@root=$$(mktemp -d) && trap 'rm -rf $$root' EXIT && $(MAKE) -s install DESTDIR=$$root && $(BUILD) -o $$root/usr/bin/trayd-bench ./integration/bench && \
		bin/edge -install $$root shell trayd-bench -bin /usr/bin -only volumes

COMPARE ?=
compare: build bin/test ## trayd beside libvirt, a script and the floor: docs/comparison.md; COMPARE='-rounds 5 -faults 3 -o -' for a look (needs root)
	@integration/install-deps compare
	$(BUILD) -o bin/ ./integration/compare ./integration/compare/floor
	@$(WITH_QEMU) bin/compare -bin bin $(COMPARE)

.PHONY: scale
scale: build deps ## one trayd with up to 3,000 simulated machines: docs/scale.md
	@$(WITH_QEMU) $(GO) run -buildvcs=false ./integration/bench -bin bin -only scale -o docs/scale.md

# By version, and not as tools of go.mod: that lists what trayd is made of.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0

lint: ## gofmt, vet, staticcheck, a tidy go.mod, and all architectures build
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags integration,failpoints,edge ./...
	$(GO) vet -tags man ./cmd/...
	$(GO) mod tidy -diff
	$(GO) run $(STATICCHECK) -tags integration,failpoints,edge ./...
	@$(MAKE) --no-print-directory cross vuln

cross: ## trayd and trayctl for each architecture, thrown away
	@for arch in amd64 arm64 riscv64; do echo "GOARCH=$$arch go build"; for program in trayd trayctl; do CGO_ENABLED=0 GOARCH=$$arch $(GO) build -buildvcs=false -o /dev/null ./cmd/$$program || exit 1; done; done

# Its data is on the network; without that there is one line that says so.
vuln: ## known vulnerabilities in what trayd is made of, as far as they can be looked up
	@said=$$($(GO) run $(GOVULNCHECK) ./cmd/... 2>&1) && echo "govulncheck: none" || case $$said in \
		*"fetching vulnerabilities"*) echo "not checked: known vulnerabilities; govulncheck can't reach its data" ;; \
		*) echo "$$said"; exit 1 ;; esac

FUZZTIME ?= 1m
ONCE     ?= 2
fuzz: ## every Fuzz function for FUZZTIME=1m, ONCE=2 at a time
	@integration/fuzz $(FUZZTIME) $(CACHE)/fuzz $(ONCE)

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
