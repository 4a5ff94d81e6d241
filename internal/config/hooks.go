package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

const minHook, maxHook = time.Second, time.Hour

// AuditAuto has the audit log where systemd wants trayd's logs.
const AuditAuto = "auto"

// Hooks are executables that get every event.
type Hooks struct {
	Dir     string // "" for none
	Timeout time.Duration
}

// Webhook is a URL that gets events. Empty Types or VMs are all.
type Webhook struct {
	URL, SecretFile string
	Types, VMs      []string
	CAFile          string
}

type fileHooks struct {
	Dir     string `toml:"dir"`
	Timeout string `toml:"timeout"`
}

type fileWebhook struct {
	URL        string   `toml:"url"`
	SecretFile string   `toml:"secret_file"`
	Types      []string `toml:"types"`
	VMs        []string `toml:"vms"`
	CAFile     string   `toml:"ca_file"`
	Insecure   bool     `toml:"insecure"`
}

// AuditPath is the file of the audit log; "" for none. logs is $LOGS_DIRECTORY, which
// systemd sets for a unit with LogsDirectory=.
func (l Log) AuditPath(logs string) string {
	if l.AuditFile != AuditAuto {
		return l.AuditFile
	}
	if first, _, _ := strings.Cut(logs, ":"); first != "" {
		return filepath.Join(first, "audit.log")
	}
	return ""
}

func (k *checker) auditFile(key, path string) string {
	if path == "" || path == AuditAuto {
		return path
	}
	return k.absolute(key, path)
}

func (k *checker) hooks(f fileHooks) Hooks {
	h := Hooks{Timeout: k.duration("hooks.timeout", f.Timeout, minHook, maxHook)}
	if f.Dir != "" {
		h.Dir = k.directory("hooks.dir", f.Dir)
	}
	return h
}

// webhooks checks the [[webhook]] tables.
func (k *checker) webhooks(list []fileWebhook) []Webhook {
	var all []Webhook
	for i, f := range list {
		at := fmt.Sprintf("webhook[%d].", i)
		w := Webhook{URL: f.URL, Types: f.Types, VMs: f.VMs}
		k.webhookURL(at+"url", f.URL, f.Insecure)
		w.SecretFile = k.absolute(at+"secret_file", f.SecretFile)
		if f.CAFile != "" {
			w.CAFile = k.absolute(at+"ca_file", f.CAFile)
		}
		for _, t := range f.Types {
			if !slices.Contains(wire.EventTypes(), t) {
				k.refuse(at+"types", "%q is no type of events; docs/events.md lists them", t)
			}
		}
		all = append(all, w)
	}
	return all
}

// webhookURL refuses what events shouldn't be posted to. The URL isn't repeated: for many
// receivers it is secret.
func (k *checker) webhookURL(key, text string, insecure bool) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		k.refuse(key, `this is no URL; write it as "https://example.com/trayd"`)
	case u.User != nil:
		k.refuse(key, "a login in the URL isn't sent; the signature tells the receiver who posts")
	case u.Scheme == "http" && !insecure && !loopback(u.Hostname()):
		k.refuse(key, "http lets everybody on the way read the events; use https, or say insecure = true")
	}
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || strings.EqualFold(host, "localhost")
}
