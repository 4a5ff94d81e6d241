package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
)

func TestDefaults(t *testing.T) {
	assert.Equal(t, &Config{
		StateDir:       "/var/lib/trayd",
		Monitors:       []string{"/run/qemu/*.qmp"},
		MediaRoots:     []string{"/var/lib/trayd/media", "/srv/iso"},
		Attach:         Persistent,
		Look:           time.Minute,
		CommandTimeout: 5 * time.Second,
		API:            API{Socket: "/run/trayd/api.sock", Group: "trayd", ViewGroup: "trayd-view", Names: []string{}},
		Tray:           Tray{Wait: 10 * time.Second, GuestEject: Release, Strategy: Auto},
		Log:            Log{Level: slog.LevelInfo, AuditFile: AuditAuto},
		Hooks:          Hooks{Dir: "/etc/trayd/hooks.d", Timeout: 30 * time.Second},
		Library:        Default().Library, // in TestLibraryDefaults
		Machines: Machines{
			Run: RunAuto, User: "trayd-vm", QEMU: "qemu-system-x86_64", QemuImg: "qemu-img",
			Accel: AccelAuto, StopWait: 90 * time.Second, RunDir: "/run/trayd/machines",
		},
	}, Default())
	assert.Equal(t, "/var/lib/trayd/state.journal", Default().StateFile())
}

func TestOneDefaultIsNotAnothers(t *testing.T) {
	c, problems := parse([]byte(`media_roots = ["/a", "/b"]`))
	require.Empty(t, problems)
	assert.Equal(t, []string{"/a", "/b"}, c.MediaRoots)
	assert.Equal(t, []string{"/var/lib/trayd/media", "/srv/iso"}, Default().MediaRoots)
}

func TestReferenceHoldsEveryKeyWithItsDefaultAndAComment(t *testing.T) {
	c, problems := parse([]byte(Reference()))
	require.Empty(t, problems)
	assert.Equal(t, Default(), c)

	at := lines([]byte(Reference()))
	text := strings.Split(Reference(), "\n")
	for _, k := range keys() {
		if table, _, _ := strings.Cut(k.name, "."); table == "volume" || table == "pool" || table == "credential" || table == "flavour" || table == "webhook" || table == "client" {
			// They have no defaults: the reference shows them in comments.
			word := lastPart(k.name)
			assert.Regexp(t, `(?m)^#.*(\[\[`+word+`\]\]|\b`+word+` = )`, Reference(), k.name)
			continue
		}
		if strings.HasPrefix(k.kind, "a table") {
			assert.Contains(t, text, "["+k.name+"]")
			continue
		}
		line, ok := at[k.name]
		if assert.True(t, ok, "%s is not in reference.toml", k.name) {
			assert.True(t, strings.HasPrefix(text[line-2], "#"), "%s has no comment above it", k.name)
		}
		delete(at, k.name)
	}
	assert.Empty(t, at, "reference.toml has keys that nothing reads")
}

func TestEveryKeyIsTakenOver(t *testing.T) {
	c, problems := parse([]byte(`
state_dir = "/s/"
monitors = ["/run/a/*.sock", "/run/b/[xy].qmp"]
media_roots = []
attach = "on-demand"
look = "2m"
command_timeout = "1s500ms"
[api]
socket = "/run/x.sock"
group = ""
view_group = "look"
listen = ["127.0.0.1:8440", "[::1]:8440"]
names = ["edge7.example.com"]
cert_file = "/c"
key_file = "/k"
client_ca_file = "/ca"
[tray]
wait = "0s"
guest_eject = "keep"
strategy = "stepwise"
[log]
level = "debug"
audit_file = "/var/log/changes.log"
[hooks]
dir = ""
timeout = "5m"
[[client]]
name = "fleet"
role = "change"
`))
	require.Empty(t, problems)
	assert.Equal(t, &Config{
		StateDir: "/s", Monitors: []string{"/run/a/*.sock", "/run/b/[xy].qmp"}, MediaRoots: []string{},
		Attach: OnDemand, Look: 2 * time.Minute, CommandTimeout: 1500 * time.Millisecond,
		API: API{
			Socket: "/run/x.sock", ViewGroup: "look", Names: []string{"edge7.example.com"},
			Listen:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8440"), netip.MustParseAddrPort("[::1]:8440")},
			CertFile: "/c", KeyFile: "/k", ClientCAFile: "/ca", Clients: map[string]access.Role{"fleet": access.Change},
		},
		Tray:     Tray{GuestEject: Keep, Strategy: Stepwise},
		Log:      Log{Level: slog.LevelDebug, AuditFile: "/var/log/changes.log"},
		Hooks:    Hooks{Timeout: 5 * time.Minute},
		Library:  Default().Library,  // in TestEveryKeyOfTheLibraryIsTakenOver
		Machines: Default().Machines, // in TestEveryKeyOfMachinesIsTakenOver
	}, c)
}

func TestMistakesNameLineKeyValueAndWhatIsAllowed(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "attach = 'persistent'\nlok = '5s'", "F:2: lok: no such key; did you mean look?"},
		{"right key, wrong table", "socket = '/x'", "F:1: socket: no such key; did you mean api.socket?"},
		{"misspelt in a table", "[tray]\nguest-eject = 'keep'", "F:2: tray.guest-eject: no such key; did you mean tray.guest_eject?"},
		{"misspelt table", "[trays]\nwait = '1s'", "F:1: trays: no such key; did you mean tray?"},
		{"nothing near", "wallpaper_of_desktop = 'blue'", "F:1: wallpaper_of_desktop: no such key; `trayd --print-config` shows all keys"},
		{"number for a duration", "look = 60", `F:1: look: a value of the wrong kind; it is a string in quotes, such as "60s"`},
		{"string for a list", "monitors = '/run/*.qmp'", `F:1: monitors: a value of the wrong kind; it is a list of strings, such as ["/srv/iso"]`},
		{"number in a list", "media_roots = ['/a',\n 5]", `F:2: media_roots: a value of the wrong kind; it is a list of strings, such as ["/srv/iso"]`},
		{"string for a table", "api = '/run/api.sock'", `F:1: api: a value of the wrong kind; it is a table: write [api] on a line of its own`},
		{"not TOML", "look: 60s", "F:1: this is not TOML: "},
		{"twice", "look = '5s'\nlook = '6s'", "F:2: look: this is not TOML: "},
		{"no duration", "look = 'often'", `F:1: look: "often" is not a duration; write a number with its unit, such as "500ms", "60s" or "5m"`},
		{"no unit", "look = '60'", `F:1: look: "60" is not a duration`},
		{"too short", "\nlook = '10ms'", `F:2: look: "10ms" is too short; 1s to 24h are allowed`},
		{"too long", "command_timeout = '1h'", `F:1: command_timeout: "1h" is too long; 100ms to 5m are allowed`},
		{"negative", "[tray]\nwait = '-1s'", `F:2: tray.wait: "-1s" is too short; 0s to 24h are allowed`},
		{"relative", "state_dir = 'state'", `F:1: state_dir: "state" is not absolute; begin it with /`},
		{"empty", "state_dir = ''", `F:1: state_dir: an empty path; an absolute path is wanted`},
		{"zero byte", `state_dir = "/a\u0000b"`, `F:1: state_dir: "/a\x00b" has a zero byte, which no path can have`},
		{"state at the root", "state_dir = '//'", `F:1: state_dir: "//" is the root of everything`},
		{"no glob", "monitors = []", `F:1: monitors: an empty list finds no machine`},
		{"broken glob", "monitors = ['/run/[ab.qmp']", `F:1: monitors: "/run/[ab.qmp" is not a valid glob`},
		{"relative glob", "monitors = ['*.qmp']", `F:1: monitors: "*.qmp" is not absolute`},
		{"glob of directories", "monitors = ['/run/qemu/']", `F:1: monitors: "/run/qemu/" matches directories; name the sockets in it, such as /run/qemu/*.qmp`},
		{"everything", "media_roots = ['/']", `F:1: media_roots: "/" would let every file of the host into a machine`},
		{"everything in disguise", "media_roots = ['/srv/..']", `F:1: media_roots: "/srv/.." would let every file`},
		{"attach", "attach = 'sometimes'", `F:1: attach: "sometimes" is none of "persistent", "on-demand"`},
		{"strategy", "tray = { strategy = 'magic' }", `F:1: tray.strategy: "magic" is none of "auto", "atomic", "stepwise"`},
		{"guest_eject", "tray.guest_eject = 'throw'", `F:1: tray.guest_eject: "throw" is none of "release", "keep"`},
		{"level", "[log]\n\nlevel = 'INFO'", `F:3: log.level: "INFO" is none of "debug", "info", "warn", "error"`},
		{"group", "[api]\ngroup = 'root user'", `F:2: api.group: "root user" can't be a group's name`},
		{"group of digits", "[api]\ngroup = '0'", `F:2: api.group: "0" can't be a group's name`},
		{"no port", "[api]\nlisten = ['127.0.0.1']", `F:2: api.listen: "127.0.0.1" is not an address and a port`},
		{"a name to listen at", "[api]\nlisten = ['edge7:8440']", `F:2: api.listen: "edge7:8440" is not an address and a port`},
		{"no name", "[api]\nnames = ['a b']", `F:2: api.names: "a b" is not a host's name`},
		{"a key alone", "[api]\nkey_file = '/k'", `cert_file and key_file belong together`},
		{"no role", "[api]\nclient_ca_file = '/ca'\n[[client]]\nname = 'a'\nrole = 'root'", `F:5: client[0].role: there is no role "root"`},
		{"twice a client", "[api]\nclient_ca_file = '/ca'\n[[client]]\nname = 'a'\nrole = 'view'\n[[client]]\nname = 'a'\nrole = 'view'", `F:7: client[1].name: "a" is there twice`},
		{"group too long", "[api]\ngroup = '" + strings.Repeat("g", 33) + "'", "can't be a group's name"},
		{"socket is a directory", "[api]\nsocket = '/run/trayd/'", `F:2: api.socket: "/run/trayd/" is a directory's name`},
		{"socket too long", "[api]\nsocket = '/" + strings.Repeat("x", 107) + "'", `has 108 bytes; the kernel takes at most 107`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, problems := parse([]byte(test.text))
			assert.Nil(t, c)
			require.Len(t, problems, 1)
			assert.Contains(t, (&Error{Path: "F", Problems: problems}).Error(), test.want)
		})
	}
}

func TestAllMistakesAtOnceByLine(t *testing.T) {
	_, problems := parse([]byte("look = '1ms'\nfoo = 1\nattach = 'x'\n[log]\nlevel = 'y'\n"))
	var at []int
	for _, p := range problems {
		at = append(at, p.Line)
	}
	assert.Equal(t, []int{1, 2, 3, 5}, at)
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trayd.toml")
	_, err := Load(path)
	assert.ErrorContains(t, err, "no configuration at "+path+"; `trayd --print-config > "+path+"`")

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	c, err := Load(path)
	require.NoError(t, err)
	assert.Equal(t, Default(), c)

	require.NoError(t, os.WriteFile(path, []byte("look = 5"), 0o600))
	_, err = Load(path)
	var wrong *Error
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, path, wrong.Path)

	_, err = Load(t.TempDir())
	assert.ErrorContains(t, err, "can't be read")

	if _, err := os.Stat(DefaultPath); os.IsNotExist(err) {
		c, err = Load(DefaultPath)
		require.NoError(t, err)
		assert.Equal(t, Default(), c)
	}
}

// FuzzParse: whatever the file holds, it is a valid Config or a list of problems.
func FuzzParse(f *testing.F) {
	f.Add(Reference())
	f.Add("[api]\nsocket = '/x'\n[[tray]]\nwait = 5")
	f.Add("a.b.c = { d = [1, {e = 2}] }")
	f.Fuzz(func(t *testing.T, text string) {
		c, problems := parse([]byte(text))
		if (c == nil) == (len(problems) == 0) {
			t.Fatalf("config %v, problems %v", c, problems)
		}
		for _, p := range problems {
			if p.Detail == "" || p.Line < 0 {
				t.Fatalf("a problem that says nothing: %+v", p)
			}
		}
	})
}
