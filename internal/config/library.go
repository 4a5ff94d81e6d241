package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
)

// The limits of the values.
const (
	minConnect, maxConnect = time.Second, 5 * time.Minute
	minStall, maxStall     = time.Second, 10 * time.Minute

	maxAttempts = 100

	minQuota = 1 << 20 // bytes; what is less holds no image
	minSize  = 1 << 20
	maxSize  = 1 << 50 // beyond what any file system takes in one file, and far from an overflow
)

// library checks the [library] table.
func (k *checker) library(f fileLibrary) Library {
	l := Library{
		Pool:               f.Pool,
		Verify:             k.word("library.verify", f.Verify, VerifyNone, VerifyChecksum, VerifySignature),
		Keys:               k.files("library.keys", f.Keys),
		Sources:            f.Sources,
		PrivateTargets:     k.prefixes("library.private_targets", f.PrivateTargets),
		ConnectTimeout:     k.duration("library.connect_timeout", f.ConnectTimeout, minConnect, maxConnect),
		StallTimeout:       k.duration("library.stall_timeout", f.StallTimeout, minStall, maxStall),
		Attempts:           f.Attempts,
		AllowWeakChecksums: f.AllowWeakChecksums,
		MaxSize:            k.size("library.max_size", f.MaxSize, minSize, maxSize),
	}
	if f.CAFile != "" {
		l.CAFile = k.absolute("library.ca_file", f.CAFile)
	}
	for _, s := range f.Sources {
		if err := fetch.CheckSource(s); err != nil {
			k.refuse("library.sources", "%v", err)
		}
	}
	if f.Attempts < 1 || f.Attempts > maxAttempts {
		k.refuse("library.attempts", "%d is not between 1 and %d", f.Attempts, maxAttempts)
	}
	if l.Verify == VerifySignature && len(l.Keys) == 0 {
		k.refuse("library.keys", "verify = %q needs the keys whose signatures count; name a file with one", VerifySignature)
	}
	return l
}

// credentials checks the [[credential]] tables.
func (k *checker) credentials(list []fileCredential) []Credential {
	var all []Credential
	seen := make(map[string]bool)
	for i, f := range list {
		at := fmt.Sprintf("credential[%d].", i)
		c := Credential{Host: strings.ToLower(f.Host), Path: f.Path, Username: f.Username}
		if u, err := url.Parse("https://" + f.Host); err != nil || f.Host == "" || u.Host != f.Host || u.Hostname() == "" || u.User != nil {
			k.refuse(at+"host", `%q is no host; write it as "example.com", or with its port as "example.com:8443"`, f.Host)
		}
		if f.Path != "" && !strings.HasPrefix(f.Path, "/") {
			k.refuse(at+"path", "%q has to begin with /, as in the URL", f.Path)
		}
		if id := c.Host + " " + c.Path; seen[id] {
			k.refuse(at+"host", "%q has a credential for that path already", f.Host)
		} else {
			seen[id] = true
		}
		for _, file := range []struct {
			key, path string
			to        *string
		}{
			{"password_file", f.PasswordFile, &c.PasswordFile}, {"token_file", f.TokenFile, &c.TokenFile},
			{"cert_file", f.CertFile, &c.CertFile}, {"key_file", f.KeyFile, &c.KeyFile},
		} {
			if file.path != "" {
				*file.to = k.absolute(at+file.key, file.path)
			}
		}
		k.login(at, f)
		all = append(all, c)
	}
	return all
}

// login refuses what can't be meant as one.
func (k *checker) login(at string, f fileCredential) {
	if (f.Username == "") != (f.PasswordFile == "") {
		k.refuse(at+"username", "username and password_file go together")
	}
	if strings.Contains(f.Username, ":") {
		k.refuse(at+"username", "%q has a colon, which ends the name in HTTP's basic authentication", f.Username)
	}
	if (f.CertFile == "") != (f.KeyFile == "") {
		k.refuse(at+"cert_file", "cert_file and key_file go together")
	}
	if f.Username != "" && f.TokenFile != "" {
		k.refuse(at+"token_file", "a token and a password are both the login; give one of them")
	}
	if f.Username == "" && f.PasswordFile == "" && f.TokenFile == "" && f.CertFile == "" && f.KeyFile == "" {
		k.refuse(at+"username", "a login is needed: username and password_file, token_file, or cert_file and key_file")
	}
}

func (k *checker) files(key string, paths []string) []string {
	clean := make([]string, 0, len(paths))
	for _, p := range paths {
		clean = append(clean, k.absolute(key, p))
		if strings.HasSuffix(p, "/") {
			k.refuse(key, "%q is a directory's name; name each file, such as %s", p, filepath.Join(p, "release.pub"))
		}
	}
	return clean
}

func (k *checker) prefixes(key string, list []string) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(list))
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, e := netip.ParseAddr(text); err != nil && e == nil && a.Zone() == "" {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			k.refuse(key, `%q is no range of addresses; write it as "127.0.0.0/8" or "::1"`, text)
			continue
		}
		all = append(all, p.Masked())
	}
	return all
}

// size reads a number of bytes with its unit.
func (k *checker) size(key, text string, least, most int64) int64 {
	n, err := wire.ParseSize(strings.TrimSpace(text))
	switch {
	case err != nil || text == "":
		k.refuse(key, `%q is not a size; write a number with its unit, such as "100GiB" or "4700MB"`, text)
	case int64(n) > most:
		k.refuse(key, "%q is too large; at most %d bytes are allowed", text, most)
	case int64(n) < least:
		k.refuse(key, "%q is too small; at least %d bytes are needed", text, least)
	default:
		return int64(n)
	}
	return 0
}

// Fetch is how the library fetches.
func (c *Config) Fetch() fetch.Options {
	o := fetch.Options{
		Allow: c.Library.Sources, AllowPrivate: c.Library.PrivateTargets, CAFile: c.Library.CAFile,
		Connect: c.Library.ConnectTimeout, Stall: c.Library.StallTimeout, Attempts: c.Library.Attempts,
	}
	for _, l := range c.Credentials {
		o.Credentials = append(o.Credentials, fetch.Credential(l))
	}
	return o
}
