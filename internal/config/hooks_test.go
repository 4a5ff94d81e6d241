package config

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

func TestWebhooksAreTakenOver(t *testing.T) {
	c, problems := parse([]byte(`
[[webhook]]
url = "https://example.com/x?y=z"
secret_file = "/etc/trayd//secret"
types = ["loaded", "missed"]
vms = ["a", "b"]
ca_file = "/etc/ca.pem"
[[webhook]]
url = "http://127.0.0.1:8080/"
secret_file = "/s"
[[webhook]]
url = "http://[::1]/"
secret_file = "/s"
[[webhook]]
url = "http://LocalHost/"
secret_file = "/s"
[[webhook]]
url = "http://example.com/"
secret_file = "/s"
insecure = true
`))
	require.Empty(t, problems)
	assert.Equal(t, Webhook{URL: "https://example.com/x?y=z", SecretFile: "/etc/trayd/secret", CAFile: "/etc/ca.pem",
		Types: []string{"loaded", "missed"}, VMs: []string{"a", "b"}}, c.Webhooks[0])
	assert.Len(t, c.Webhooks, 5)
}

func TestMistakesInHooks(t *testing.T) {
	const hook = "[[webhook]]\nsecret_file = '/s'\nurl = "
	for _, row := range []struct{ name, text, want string }{
		{"no url", "[[webhook]]\nsecret_file = '/s'", "F:1: webhook[0].url: this is no URL"},
		{"scheme", hook + "'ftp://example.com/token'", "F:3: webhook[0].url: this is no URL; write it as \"https://example.com/trayd\""},
		{"http", hook + "'http://example.com/token'", "F:3: webhook[0].url: http lets everybody on the way read the events"},
		{"http, not loopback", hook + "'http://127.0.0.1.example.com/token'", "F:3: webhook[0].url: http lets"},
		{"login", hook + "'https://a:token@example.com/'", "F:3: webhook[0].url: a login in the URL isn't sent"},
		{"no secret", "[[webhook]]\nurl = 'https://example.com/'", "F:1: webhook[0].secret_file: an empty path"},
		{"type", hook + "'https://example.com/'\ntypes = ['load']", `F:4: webhook[0].types: "load" is no type of events`},
		{"ca", hook + "'https://example.com/'\nca_file = 'ca'", `F:4: webhook[0].ca_file: "ca" is not absolute`},
		{"dir", "[hooks]\ndir = 'hooks'", `F:2: hooks.dir: "hooks" is not absolute`},
		{"timeout", "[hooks]\ntimeout = '1ms'", `F:2: hooks.timeout: "1ms" is too short; 1s to 1h are allowed`},
		{"audit", "[log]\naudit_file = 'audit.log'", `F:2: log.audit_file: "audit.log" is not absolute`},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, problems := parse([]byte(row.text))
			require.Len(t, problems, 1)
			text := (&Error{Path: "F", Problems: problems}).Error()
			assert.Contains(t, text, row.want)
			assert.NotContains(t, text, "token", "a URL may be secret")
		})
	}
}

func TestAuditPath(t *testing.T) {
	for _, row := range []struct{ file, logs, want string }{
		{AuditAuto, "/var/log/trayd", "/var/log/trayd/audit.log"},
		{AuditAuto, "/var/log/trayd:/var/log/other", "/var/log/trayd/audit.log"},
		{AuditAuto, "", ""},
		{"", "/var/log/trayd", ""},
		{"/x/changes", "/var/log/trayd", "/x/changes"},
	} {
		assert.Equal(t, row.want, Log{AuditFile: row.file}.AuditPath(row.logs))
	}
}

// TestEveryTypeOfEventsIsDocumented, and known to the configuration.
func TestEveryTypeOfEventsIsDocumented(t *testing.T) {
	source, err := os.ReadFile("../wire/event.go")
	require.NoError(t, err)
	docs, err := os.ReadFile("../../docs/events.md")
	require.NoError(t, err)
	all := regexp.MustCompile(`(?m)^\tEvent\w+\s+= "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	require.Greater(t, len(all), 20)
	for _, m := range all {
		assert.Contains(t, wire.EventTypes(), m[1])
		assert.Contains(t, string(docs), "`"+m[1]+"`")
	}
	assert.Len(t, wire.EventTypes(), len(all))
}
