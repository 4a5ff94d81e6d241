package seed

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/iso"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7eE3Zc0pO1pWJb8g3lq2mF9mJw1e3n2c4x5y6z7A8B someone@example.com"

func seeded(t *testing.T, s Seed) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seed.iso")
	require.NoError(t, Write(path, s))
	return path
}

// TestDisc: our own inspection and isoinfo see a sound disc with cloud-init's label and files.
func TestDisc(t *testing.T) {
	user := "#cloud-config\npackages: [nginx]\n" + strings.Repeat("# a long one\n", 5000)
	path := seeded(t, Seed{InstanceID: "i-1", Hostname: "web1", UserData: user, SSHKeys: []string{"# mine", "", key}})
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode(), "passwords may be on it")

	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	report, err := iso.Inspect(f, st.Size())
	require.NoError(t, err)
	require.Equal(t, "cidata", report.VolumeID)
	files, err := iso.Files(f, st.Size())
	require.NoError(t, err)
	got, err := fs.ReadFile(files, "user-data")
	require.NoError(t, err)
	require.Equal(t, user, string(got))
	b, err := fs.ReadFile(files, "meta-data")
	require.NoError(t, err)
	var meta map[string]any
	require.NoError(t, json.Unmarshal(b, &meta))
	require.Equal(t, map[string]any{"instance-id": "i-1", "local-hostname": "web1", "public-keys": []any{key}}, meta)

	for _, names := range []string{"-R", "-J"} { // Rock Ridge for Linux, Joliet for Windows
		out, err := exec.Command("isoinfo", "-i", path, names, "-f").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, "/meta-data\n/user-data\n", string(out), names)
	}
	out, err := exec.Command("isoinfo", "-i", path, "-R", "-x", "/user-data").Output()
	require.NoError(t, err)
	require.Equal(t, user, string(out))
	out, err = exec.Command("isoinfo", "-d", "-i", path).Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "Volume id: cidata\n")
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".seed-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestDiscIsWhole: whatever the lengths of its files are, the disc has all sectors that its
// volume speaks of.
func TestDiscIsWhole(t *testing.T) {
	const header = "#cloud-config\n"
	for _, n := range []int{len(header), 60, 2047, 2048, 2049, 3 * 2048, 100_001} {
		path := seeded(t, Seed{InstanceID: "i", Hostname: "h", UserData: header + strings.Repeat("#", n-len(header))})
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		st, err := f.Stat()
		require.NoError(t, err)
		_, err = iso.Probe(f, st.Size())
		require.NoError(t, err, "%d bytes of user data", n)
		require.Zero(t, st.Size()%2048)
	}
}

func TestKeysAlone(t *testing.T) {
	path := seeded(t, Seed{InstanceID: "i", Hostname: "h", SSHKeys: []string{key}})
	out, err := exec.Command("isoinfo", "-i", path, "-R", "-x", "/user-data").Output()
	require.NoError(t, err)
	require.Equal(t, "#cloud-config\n{}\n", string(out))
}

func TestWhatCloudInitWouldIgnore(t *testing.T) {
	for _, row := range []struct {
		seed Seed
		says string
	}{
		{Seed{UserData: "packages: [nginx]\n"}, `begins with "packages: [nginx]"`},
		{Seed{UserData: "\n#cloud-config\n"}, `begins with ""`},
		{Seed{SSHKeys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}, "a private one"},
		{Seed{SSHKeys: []string{"ssh-ed25519 AAAA"}}, "no public SSH key"},
		{Seed{SSHKeys: []string{strings.Replace(key, "ssh-ed25519", "ssh-rsa", 1)}}, "no public SSH key"},
		{Seed{SSHKeys: []string{"hello"}}, "no public SSH key"},
	} {
		path := filepath.Join(t.TempDir(), "seed.iso")
		err := Write(path, row.seed)
		require.ErrorContains(t, err, row.says)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.Next())
		require.NoFileExists(t, path)
	}
	for _, good := range []string{"#cloud-config\n", "#!/bin/sh\n", "\x1f\x8b", "## template: jinja\n", `Content-Type: multipart/mixed; boundary="x"`} {
		require.NoError(t, Seed{UserData: good, SSHKeys: []string{`command="x y" ` + key}}.Check())
	}
}
