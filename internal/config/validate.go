package config

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The limits of the values.
const (
	minLook, maxLook       = time.Second, 24 * time.Hour
	minCommand, maxCommand = 100 * time.Millisecond, 5 * time.Minute
	minWait, maxWait       = 0, 24 * time.Hour

	maxSocketPath = 107 // bytes: sun_path is 108 with its final zero (unix(7))
	maxGroupName  = 32  // bytes: GROUP_NAME_MAX_LENGTH of groupadd(8)
)

// checker collects what is wrong with a file's values.
type checker struct {
	lines    map[string]int
	problems []Problem
}

// validate makes a Config of a file. lines may be nil.
func validate(f file, lines map[string]int) (*Config, []Problem) {
	k := &checker{lines: lines}
	c := &Config{
		StateDir:       k.directory("state_dir", f.StateDir),
		Monitors:       k.globs("monitors", f.Monitors),
		MediaRoots:     k.roots("media_roots", f.MediaRoots),
		Attach:         k.word("attach", f.Attach, Persistent, OnDemand),
		Look:           k.duration("look", f.Look, minLook, maxLook),
		CommandTimeout: k.duration("command_timeout", f.CommandTimeout, minCommand, maxCommand),
		API:            k.api(f.API, f.Client),
		Tray: Tray{
			Wait:       k.duration("tray.wait", f.Tray.Wait, minWait, maxWait),
			GuestEject: k.word("tray.guest_eject", f.Tray.GuestEject, Release, Keep),
			Strategy:   k.word("tray.strategy", f.Tray.Strategy, Auto, Atomic, Stepwise),
		},
		Log: Log{
			Level:     k.level("log.level", f.Log.Level),
			AuditFile: k.auditFile("log.audit_file", f.Log.AuditFile),
		},
		Volumes: k.volumes(f.Volume),
		Pools:   k.pools(f.Pool),

		Library:     k.library(f.Library),
		Credentials: k.credentials(f.Credential),

		Machines: k.machines(f.Machines),
		Flavours: k.flavours(f.Flavour),

		Hooks:    k.hooks(f.Hooks),
		Webhooks: k.webhooks(f.Webhook),
	}
	k.writable("library.pool", c.Library.Pool, c.Pools)
	if len(k.problems) > 0 {
		return nil, k.problems
	}
	return c, nil
}

func (k *checker) refuse(key, format string, args ...any) {
	line := k.lines[key]
	if table, _, ok := strings.Cut(key, "]."); ok && line == 0 { // a key that is missing
		line = k.lines[table+"]"]
	}
	k.problems = append(k.problems, Problem{Line: line, Key: key, Detail: fmt.Sprintf(format, args...)})
}

// absolute refuses what is no absolute path, and makes it clean.
func (k *checker) absolute(key, path string) string {
	switch {
	case path == "":
		k.refuse(key, "an empty path; an absolute path is wanted")
	case !filepath.IsAbs(path):
		k.refuse(key, "%q is not absolute; begin it with /", path)
	case strings.ContainsRune(path, 0):
		k.refuse(key, "%q has a zero byte, which no path can have", path)
	}
	return filepath.Clean(path)
}

func (k *checker) directory(key, path string) string {
	clean := k.absolute(key, path)
	if clean == "/" {
		k.refuse(key, "%q is the root of everything; name a directory of trayd's own, such as /var/lib/trayd", path)
	}
	return clean
}

func (k *checker) socket(key, path string) string {
	clean := k.absolute(key, path)
	switch {
	case strings.HasSuffix(path, "/"):
		k.refuse(key, "%q is a directory's name; name the socket itself, such as /run/trayd/api.sock", path)
	case len(clean) > maxSocketPath:
		k.refuse(key, "%q has %d bytes; the kernel takes at most %d for a socket's path", path, len(clean), maxSocketPath)
	}
	return clean
}

func (k *checker) globs(key string, globs []string) []string {
	if len(globs) == 0 {
		k.refuse(key, `an empty list finds no machine; such as ["/run/qemu/*.qmp"]`)
	}
	clean := make([]string, 0, len(globs))
	for _, g := range globs {
		clean = append(clean, k.absolute(key, g))
		if _, err := filepath.Match(g, ""); err != nil {
			k.refuse(key, `%q is not a valid glob: a [ without its ], or a \ at the end`, g)
		}
		if strings.HasSuffix(g, "/") {
			k.refuse(key, "%q matches directories; name the sockets in it, such as %s*.qmp", g, g)
		}
	}
	return clean
}

func (k *checker) roots(key string, roots []string) []string {
	clean := make([]string, 0, len(roots))
	for _, r := range roots {
		path := k.absolute(key, r)
		if path == "/" {
			k.refuse(key, "%q would let every file of the host into a machine; name the directories that hold discs", r)
		}
		clean = append(clean, path)
	}
	return clean
}

func (k *checker) word(key, word string, allowed ...string) string {
	if !slices.Contains(allowed, word) {
		k.refuse(key, "%q is none of %s", word, quoted(allowed))
	}
	return word
}

func (k *checker) duration(key, text string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		k.refuse(key, `%q is not a duration; write a number with its unit, such as "500ms", "60s" or "5m"`, text)
	case d < least:
		k.refuse(key, "%q is too short; %s to %s are allowed", text, short(least), short(most))
	case d > most:
		k.refuse(key, "%q is too long; %s to %s are allowed", text, short(least), short(most))
	}
	return d
}

func (k *checker) group(key, name string) string {
	if name != "" && !groupName(name) {
		k.refuse(key, "%q can't be a group's name; use one of /etc/group, or \"\" for root alone", name)
	}
	return name
}

// groupName reports whether groupadd(8) of Debian and Fedora would take the name.
func groupName(name string) bool {
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return len(name) <= maxGroupName
}

func (k *checker) level(key, name string) slog.Level {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[name]
	if !ok {
		k.refuse(key, "%q is none of %s", name, quoted([]string{"debug", "info", "warn", "error"}))
	}
	return l
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(q, ", ")
}

// short is a duration without its zero parts: 24h and not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
