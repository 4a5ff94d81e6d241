package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// file is the file as it is written. Durations are strings here, so that what is
// wrong with one can be said in our words.
type file struct {
	StateDir       string       `toml:"state_dir"`
	Monitors       []string     `toml:"monitors"`
	MediaRoots     []string     `toml:"media_roots"`
	Attach         string       `toml:"attach"`
	Look           string       `toml:"look"`
	CommandTimeout string       `toml:"command_timeout"`
	API            fileAPI      `toml:"api"`
	Client         []fileClient `toml:"client"`
	Tray           struct {
		Wait       string `toml:"wait"`
		GuestEject string `toml:"guest_eject"`
		Strategy   string `toml:"strategy"`
	} `toml:"tray"`
	Log struct {
		Level     string `toml:"level"`
		AuditFile string `toml:"audit_file"`
	} `toml:"log"`
	Library    fileLibrary      `toml:"library"`
	Machines   fileMachines     `toml:"machines"`
	Flavour    []fileFlavour    `toml:"flavour"`
	Volume     []fileVolume     `toml:"volume"`
	Pool       []filePool       `toml:"pool"`
	Credential []fileCredential `toml:"credential"`
	Hooks      fileHooks        `toml:"hooks"`
	Webhook    []fileWebhook    `toml:"webhook"`
}

type fileLibrary struct {
	Pool               string   `toml:"pool"`
	Verify             string   `toml:"verify"`
	Keys               []string `toml:"keys"`
	Sources            []string `toml:"sources"`
	PrivateTargets     []string `toml:"private_targets"`
	CAFile             string   `toml:"ca_file"`
	ConnectTimeout     string   `toml:"connect_timeout"`
	StallTimeout       string   `toml:"stall_timeout"`
	Attempts           int      `toml:"attempts"`
	AllowWeakChecksums bool     `toml:"allow_weak_checksums"`
	MaxSize            string   `toml:"max_size"`
}

type fileCredential struct {
	Host         string `toml:"host"`
	Path         string `toml:"path"`
	Username     string `toml:"username"`
	PasswordFile string `toml:"password_file"`
	TokenFile    string `toml:"token_file"`
	CertFile     string `toml:"cert_file"`
	KeyFile      string `toml:"key_file"`
}

type fileVolume struct {
	Name       string       `toml:"name"`
	Type       string       `toml:"type"`
	Extents    []fileExtent `toml:"extents"`
	Data       string       `toml:"data"`
	Hash       string       `toml:"hash"`
	HashOffset int64        `toml:"hash_offset"`
	RootHash   string       `toml:"root_hash"`
}

type fileExtent struct {
	Device string `toml:"device"`
	Start  int64  `toml:"start"`
	Length int64  `toml:"length"`
}

type filePool struct {
	Name      string `toml:"name"`
	Type      string `toml:"type"`
	Path      string `toml:"path"`
	VG        string `toml:"vg"`
	Source    string `toml:"source"`
	FSType    string `toml:"fstype"`
	Options   string `toml:"options"`
	Quota     string `toml:"quota"`
	Integrity string `toml:"integrity"`
	Stage     string `toml:"stage"`
}

func defaults() file {
	f := file{
		StateDir:       "/var/lib/trayd",
		Monitors:       []string{"/run/qemu/*.qmp"},
		MediaRoots:     []string{"/var/lib/trayd/media", "/srv/iso"},
		Attach:         Persistent,
		Look:           "60s",
		CommandTimeout: "5s",
	}
	f.API = defaultAPI()
	f.Tray.Wait, f.Tray.GuestEject, f.Tray.Strategy = "10s", Release, Auto
	f.Log.Level, f.Log.AuditFile = "info", AuditAuto
	f.Hooks = fileHooks{Dir: "/etc/trayd/hooks.d", Timeout: "30s"}
	f.Machines = defaultMachines()
	f.Library = fileLibrary{
		Verify: VerifyNone, Keys: []string{}, Sources: []string{}, PrivateTargets: []string{},
		ConnectTimeout: "15s", StallTimeout: "30s", Attempts: 5, MaxSize: "100GiB",
	}
	return f
}

// parse reads a file's text. The Config is nil when there are problems.
func parse(text []byte) (*Config, []Problem) {
	f := defaults()
	d := toml.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(&f)
	var (
		unknown *toml.StrictMissingError
		wrong   *toml.DecodeError
	)
	switch {
	case errors.As(err, &unknown): // everything else has been decoded
	case errors.As(err, &wrong):
		return nil, []Problem{explain(wrong)}
	case err != nil:
		return nil, []Problem{{Detail: err.Error()}}
	}
	c, problems := validate(f, lines(text))
	if unknown != nil {
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			problems = append(problems, unknownKey(strings.Join(e.Key(), "."), line))
		}
	}
	if len(problems) > 0 {
		sortByLine(problems)
		return nil, problems
	}
	return c, nil
}

// explain puts the decoder's complaint into words for people.
func explain(e *toml.DecodeError) Problem {
	line, _ := e.Position()
	key := strings.Join(e.Key(), ".")
	detail := strings.TrimPrefix(e.Error(), "toml: ")
	for _, k := range keys() {
		// The decoder has one type for all complaints; those about kinds begin so.
		if k.name == key && strings.HasPrefix(detail, "cannot ") {
			return Problem{Line: line, Key: key, Detail: "a value of the wrong kind; it is " + k.kind}
		}
	}
	return Problem{Line: line, Key: key, Detail: "this is not TOML: " + detail}
}

// key is one that a file may have.
type key struct {
	name string // with its table
	kind string // for people
}

// keys are all keys and tables, by the struct that they are decoded into.
func keys() []key { return keysOf("", reflect.TypeFor[file]()) }

func keysOf(prefix string, t reflect.Type) []key {
	var all []key
	for f := range t.Fields() {
		name := prefix + f.Tag.Get("toml")
		switch kind := f.Type.Kind(); {
		case kind == reflect.Struct:
			all = append(all, key{name, "a table: write [" + name + "] on a line of its own"})
			all = append(all, keysOf(name+".", f.Type)...)
		case kind == reflect.Slice && prefix == "" && f.Type.Elem().Kind() == reflect.Struct:
			all = append(all, key{name, "one of several tables: write [[" + name + "]] on a line of its own"})
			all = append(all, keysOf(name+".", f.Type.Elem())...)
		case kind == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			all = append(all, key{name, `a list of tables, such as [{ device = "/dev/sdb" }]`})
			all = append(all, keysOf(name+".", f.Type.Elem())...)
		case kind == reflect.Int64:
			all = append(all, key{name, "a whole number of bytes, such as 1048576"})
		case kind == reflect.Int:
			all = append(all, key{name, "a whole number, such as 5"})
		case kind == reflect.Bool:
			all = append(all, key{name, "true or false, without quotes"})
		case kind == reflect.Slice:
			all = append(all, key{name, `a list of strings, such as ["/srv/iso"]`})
		default:
			all = append(all, key{name, `a string in quotes, such as "60s"`})
		}
	}
	return all
}

// lines finds the line of every key of a text that is TOML. It uses the parser below
// the decoder, since the decoder tells positions of its own complaints only.
func lines(text []byte) map[string]int {
	found := make(map[string]int)
	var (
		p     unstable.Parser
		table string
	)
	tables := make(map[string]int) // how many [[tables]] of that name there were
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			name, _ := dotted(&p, e.Key())
			table = name + "."
		case unstable.ArrayTable:
			name, line := dotted(&p, e.Key())
			table = fmt.Sprintf("%s[%d]", name, tables[name])
			found[table] = line
			table += "."
			tables[name]++
		case unstable.KeyValue:
			note(&p, found, table, e)
		}
	}
	return found
}

// note notes the line of a key, and of those in an inline table.
func note(p *unstable.Parser, found map[string]int, prefix string, e *unstable.Node) {
	name, line := dotted(p, e.Key())
	found[prefix+name] = line
	if v := e.Value(); v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			note(p, found, prefix+name+".", it.Node())
		}
	}
}

// dotted is a key with dots between its parts, and its line.
func dotted(p *unstable.Parser, it unstable.Iterator) (name string, line int) {
	for it.Next() {
		n := it.Node()
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		}
		if name != "" {
			name += "."
		}
		name += string(n.Data)
	}
	return name, line
}

func unknownKey(name string, line int) Problem {
	detail := "no such key"
	if best := nearest(name); best != "" {
		detail = fmt.Sprintf("no such key; did you mean %s?", best)
	} else {
		detail += "; `trayd --print-config` shows all keys"
	}
	return Problem{Line: line, Key: name, Detail: detail}
}
