package config

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/machine"
)

// DefaultPath is where the configuration is looked for. Only there may it be missing.
const DefaultPath = "/etc/trayd/trayd.toml"

// stateFile is the journal's name within the state directory.
const stateFile = "state.journal"

// Config is a valid configuration.
type Config struct {
	StateDir       string
	Monitors       []string // globs of QMP sockets
	MediaRoots     []string
	Attach         string // Persistent or OnDemand
	Look           time.Duration
	CommandTimeout time.Duration
	API            API
	Tray           Tray
	Log            Log
	Volumes        []volume.Definition // what dm:NAME means
	Pools          []Pool
	Library        Library
	Credentials    []Credential // for the library's sources
	Machines       Machines
	Flavours       []machine.Flavour // the named sizes of machines
	Hooks          Hooks
	Webhooks       []Webhook
}

// Pool is a place that holds images.
type Pool struct {
	Name string
	Type string // PoolDir, PoolLVM or PoolMount
	Path string // of a PoolDir: the directory
	VG   string // of a PoolLVM: the volume group
	// Of a PoolMount: what is mounted while something in it is used, and how.
	Source, FSType, Options string
	// Quota is the most that the images of a PoolDir or PoolLVM may have together, in
	// bytes. 0: what there is room for.
	Quota int64
	// Verity of a PoolDir or PoolLVM has its images carry their hash tree and be read
	// through dm-verity.
	Verity bool
	// Stage of a PoolMount is the pool in which copies of its images are kept; "" is none.
	Stage string
}

// The types of pools.
const (
	PoolDir   = "dir"
	PoolLVM   = "lvm"
	PoolMount = "mount"
)

// Tray is how discs are changed.
type Tray struct {
	Wait       time.Duration
	GuestEject string // Release or Keep
	Strategy   string // Auto, Atomic or Stepwise
}

// Library is where images may come from, and what has to be known of them.
type Library struct {
	Pool               string         // for those who name none; "": the first that can be written
	Verify             string         // VerifyNone, VerifyChecksum or VerifySignature: the least
	Keys               []string       // files with public keys, of which signatures count
	Sources            []string       // what may be fetched from; empty: everything
	PrivateTargets     []netip.Prefix // addresses that may be dialled besides the ordinary
	CAFile             string         // trusted besides the system's; empty for none
	ConnectTimeout     time.Duration
	StallTimeout       time.Duration
	Attempts           int
	AllowWeakChecksums bool
	MaxSize            int64 // of an image, in bytes
}

// Credential is a login for a source: a name and a file with the password, or a file with a
// token; or a client certificate, alone or beside them. What isn't given is empty.
type Credential struct {
	Host                   string // with its port, unless that is 443
	Path                   string // a prefix; empty: all of the host
	Username, PasswordFile string
	TokenFile              string
	CertFile, KeyFile      string
}

// Log is what is logged.
type Log struct {
	Level     slog.Level
	AuditFile string // AuditAuto, a path, or "" for none; see AuditPath
}

// The words that the keys attach, tray.guest_eject, tray.strategy and library.verify know.
const (
	Persistent = "persistent"
	OnDemand   = "on-demand"

	Release = "release"
	Keep    = "keep"

	Auto     = "auto"
	Atomic   = "atomic"
	Stepwise = "stepwise"

	VerifyNone      = "none"
	VerifyChecksum  = "checksum"
	VerifySignature = "signature"
)

//go:embed reference.toml
var reference string

// Reference is the commented file that holds every key with its default.
func Reference() string { return reference }

// Default is the configuration of an empty file.
func Default() *Config {
	c, problems := validate(defaults(), nil)
	if len(problems) > 0 {
		panic(fmt.Sprint(problems)) // the tests rule it out
	}
	return c
}

// StateFile is the journal's path.
func (c *Config) StateFile() string { return filepath.Join(c.StateDir, stateFile) }

// Load reads the file at path. The error is an *Error for what is wrong in the file,
// and else what the file system says.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
		return Default(), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no configuration at %s; `trayd --print-config > %s` writes one with the defaults", path, path)
	case err != nil:
		return nil, fmt.Errorf("the configuration can't be read: %w", err)
	}
	c, problems := parse(text)
	if len(problems) > 0 {
		return nil, &Error{Path: path, Problems: problems}
	}
	return c, nil
}
