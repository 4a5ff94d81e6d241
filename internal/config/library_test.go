package config

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/library/fetch"
)

func TestLibraryDefaults(t *testing.T) {
	assert.Equal(t, Library{
		Verify: VerifyNone, Keys: []string{}, Sources: []string{}, PrivateTargets: []netip.Prefix{},
		ConnectTimeout: 15 * time.Second, StallTimeout: 30 * time.Second, Attempts: 5, MaxSize: 100 << 30,
	}, Default().Library)
}

func TestEveryKeyOfTheLibraryIsTakenOver(t *testing.T) {
	c, problems := parse([]byte(`
[library]
verify = "signature"
keys = ["/etc/trayd//a.pub", "/etc/trayd/b.asc"]
sources = ["https://example.com/isos/", "*.example.org"]
private_targets = ["127.0.0.1", "::1/128", "169.254.1.7/16"]
ca_file = "/etc/ca.pem"
connect_timeout = "5s"
stall_timeout = "1m"
attempts = 9
allow_weak_checksums = true
max_size = "4700MB"
[[pool]]
name = "a"
type = "dir"
path = "/a"
quota = "2T"
[[pool]]
name = "b"
type = "lvm"
vg = "vg0"
quota = "1048576"
[[credential]]
host = "Example.com"
token_file = "/t"
`))
	require.Empty(t, problems)
	assert.Equal(t, Library{
		Verify: VerifySignature, Keys: []string{"/etc/trayd/a.pub", "/etc/trayd/b.asc"}, Sources: []string{"https://example.com/isos/", "*.example.org"},
		PrivateTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("169.254.0.0/16")},
		CAFile:         "/etc/ca.pem", ConnectTimeout: 5 * time.Second, StallTimeout: time.Minute, Attempts: 9, AllowWeakChecksums: true, MaxSize: 4700e6,
	}, c.Library)
	assert.Equal(t, int64(2<<40), c.Pools[0].Quota)
	assert.Equal(t, int64(1<<20), c.Pools[1].Quota)
	assert.Equal(t, []Credential{{Host: "example.com", TokenFile: "/t"}}, c.Credentials)

	o := c.Fetch()
	assert.Equal(t, c.Library.Sources, o.Allow)
	assert.Equal(t, c.Library.PrivateTargets, o.AllowPrivate)
	assert.Equal(t, []fetch.Credential{{Host: "example.com", TokenFile: "/t"}}, o.Credentials)
	_, err := fetch.New(o)
	require.NoError(t, err)
}

func TestLibraryMistakes(t *testing.T) {
	for _, row := range []struct {
		text string
		line int
		key  string
		says string
	}{
		{"[library]\nverify = 'yes'", 2, "library.verify", `"yes" is none of "none", "checksum", "signature"`},
		{"[library]\nverify = 'signature'", 0, "library.keys", "name a file with one"},
		{"[library]\nkeys = ['a.pub']", 2, "library.keys", "not absolute"},
		{"[library]\nkeys = ['/etc/keys/']", 2, "library.keys", "such as /etc/keys/release.pub"},
		{"[library]\nsources = ['ftp://x/']", 2, "library.sources", `write "https://host/path/"`},
		{"[library]\nprivate_targets = ['localhost']", 2, "library.private_targets", "no range of addresses"},
		{"[library]\nca_file = 'ca.pem'", 2, "library.ca_file", "not absolute"},
		{"[library]\nconnect_timeout = '1ms'", 2, "library.connect_timeout", "too short"},
		{"[library]\nstall_timeout = '1h'", 2, "library.stall_timeout", "too long"},
		{"[library]\nattempts = 0", 2, "library.attempts", "0 is not between 1 and 100"},
		{"[library]\nattempts = '5'", 2, "library.attempts", "a whole number, such as 5"},
		{"[library]\nallow_weak_checksums = 'yes'", 2, "library.allow_weak_checksums", "true or false, without quotes"},
		{"[library]\nmax_size = 'big'", 2, "library.max_size", "is not a size"},
		{"[library]\nmax_size = '-1'", 2, "library.max_size", "is not a size"},
		{"[library]\nmax_size = '9999999TiB'", 2, "library.max_size", "too large"},
		{"[library]\nmax_size = '5'", 2, "library.max_size", "too small"},
		{"[library]\nmaxsize = '5G'", 2, "library.maxsize", "did you mean library.max_size?"},
		{"[[pool]]\nname = 'p'\ntype = 'mount'\nsource = 'x'\nquota = '5G'", 5, "pool[0].quota", "no such key"},
		{"[[pool]]\nname = 'p'\ntype = 'dir'\npath = '/x'\nquota = 'half'", 5, "pool[0].quota", "not a size"},
		{"[[credential]]\ntoken_file = '/t'", 1, "credential[0].host", "is no host"},
		{"[[credential]]\nhost = 'https://x/'\ntoken_file = '/t'", 2, "credential[0].host", "is no host"},
		{"[[credential]]\nhost = 'x'\npath = 'y'\ntoken_file = '/t'", 3, "credential[0].path", "begin with /"},
		{"[[credential]]\nhost = 'x'", 1, "credential[0].username", "a login is needed"},
		{"[[credential]]\nhost = 'x'\nusername = 'u'", 3, "credential[0].username", "go together"},
		{"[[credential]]\nhost = 'x'\nusername = 'u:v'\npassword_file = '/p'", 3, "credential[0].username", "a colon"},
		{"[[credential]]\nhost = 'x'\ntoken_file = 't'", 3, "credential[0].token_file", "not absolute"},
		{"[[credential]]\nhost = 'x'\ncert_file = '/c'", 3, "credential[0].cert_file", "go together"},
		{"[[credential]]\nhost = 'x'\nusername = 'u'\npassword_file = '/p'\ntoken_file = '/t'", 5, "credential[0].token_file", "give one of them"},
		{"[[credential]]\nhost = 'x'\ntoken_file = '/t'\n[[credential]]\nhost = 'X'\ntoken_file = '/t'", 5, "credential[1].host", "already"},
	} {
		t.Run(row.key+" "+row.says, func(t *testing.T) {
			_, problems := parse([]byte(row.text))
			require.Len(t, problems, 1)
			assert.Equal(t, row.line, problems[0].Line)
			assert.Equal(t, row.key, problems[0].Key)
			assert.Contains(t, problems[0].Detail, row.says)
		})
	}
}
