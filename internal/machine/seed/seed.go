// Package seed makes the disc that cloud-init reads at a machine's first boot: NoCloud's, an
// ISO 9660 image with Rock Ridge and Joliet whose volume identifier is cidata.
//
// go-diskfs writes the image: a small tree of our own making is what it is good at.
package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

// volumeID is what cloud-init looks for (its documentation of NoCloud).
const volumeID = "cidata"

// Seed is what a machine learns at its first boot.
type Seed struct {
	InstanceID string // cloud-init runs again when it changes
	Hostname   string
	UserData   string   // "" for one that only has the keys
	SSHKeys    []string // lines of authorized_keys; empty ones and comments are left out
}

// Error is a seed that cloud-init would do nothing with.
type Error struct{ What, Remedy string }

func (e *Error) Error() string { return e.What }

// Next is what to do about it.
func (e *Error) Next() string { return e.Remedy }

// headers begin the kinds of user data that cloud-init knows ("User-Data Formats" of its
// documentation). It ignores all else without a word to anybody.
var headers = []string{
	"#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#cloud-config-archive",
	"## template:", "Content-Type:", "MIME-Version:", "From nobody", "\x1f\x8b",
}

// Check refuses what cloud-init would not understand. The error is an *Error.
func (s Seed) Check() error {
	_, err := s.keys()
	if err != nil || s.UserData == "" {
		return err
	}
	for _, h := range headers {
		if strings.HasPrefix(s.UserData, h) {
			return nil
		}
	}
	return &Error{fmt.Sprintf("the user data begins with %q, which cloud-init doesn't know and would ignore", firstLine(s.UserData)), "begin it with a line #cloud-config, or #!/bin/sh"}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if len(line) > 40 {
		line = line[:40]
	}
	return line
}

// keys are the public keys, without the lines that are none.
func (s Seed) keys() ([]string, error) {
	var keys []string
	for _, line := range s.SSHKeys {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.Contains(line, "PRIVATE KEY"):
			return nil, &Error{"an SSH key is a private one, which nobody else may have", "give the file beside it whose name ends in .pub"}
		case !publicKey(line):
			return nil, &Error{fmt.Sprintf("%q is no public SSH key", firstLine(line)), "give a file such as ~/.ssh/id_ed25519.pub"}
		default:
			keys = append(keys, line)
		}
	}
	return keys, nil
}

// publicKey reports whether a line of authorized_keys has a key: its type, and base64 of a
// string that begins with that type (RFC 4253, section 6.6). Options may stand before it.
func publicKey(line string) bool {
	fields := strings.Fields(line)
	for i := range len(fields) - 1 {
		b, err := base64.StdEncoding.DecodeString(fields[i+1])
		n := len(fields[i])
		if err == nil && len(b) > 4+n && bytes.Equal(b[:4], []byte{0, 0, byte(n >> 8), byte(n)}) && string(b[4:4+n]) == fields[i] {
			return true
		}
	}
	return false
}

// files are those of the disc.
func (s Seed) files() (map[string]string, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, err
	}
	meta, err := json.Marshal(struct { // JSON is YAML
		InstanceID string   `json:"instance-id"`
		Hostname   string   `json:"local-hostname"`
		Keys       []string `json:"public-keys,omitempty"`
	}{s.InstanceID, s.Hostname, keys})
	user := s.UserData
	if user == "" {
		user = "#cloud-config\n{}\n"
	}
	return map[string]string{"meta-data": string(meta) + "\n", "user-data": user}, err
}

// Write makes the disc at path, which must not exist, durable and readable by its owner
// alone: user data may hold passwords.
func Write(path string, s Seed) (err error) {
	if err := s.Check(); err != nil {
		return err
	}
	files, err := s.files()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	// go-diskfs gathers the tree in a directory first: in one beside the disc, which is as
	// little others' to read.
	work, err := os.MkdirTemp(filepath.Dir(path), ".seed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	const sector = 2048
	fs, err := iso9660.Create(file.New(f, false), 0, 0, sector, work)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o444); err != nil {
			return err
		}
	}
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: volumeID}); err != nil {
		return err
	}
	// go-diskfs ends it with the last byte that it has to say, in the middle of a sector.
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate((st.Size() + sector - 1) / sector * sector)
}
