package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// trayctl runs the command with no agent anywhere.
func trayctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("TRAYD_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	var out, err bytes.Buffer
	code = run(context.Background(), args, &out, &err)
	return code, out.String(), err.String()
}

// makeDisc makes a disc in the working directory.
func makeDisc(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command("xorriso", append(append([]string{"-as", "mkisofs", "-V", "A DISC", "-R", "-o", name}, args...), "tree")...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestLookingIntoImages(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.MkdirAll("tree/sub/deeper", 0o755))
	require.NoError(t, os.WriteFile("tree/README", []byte("hello\n"), 0o644))
	require.NoError(t, os.WriteFile("tree/sub/evil\x1b[2Jname\\", []byte("evil"), 0o644))
	require.NoError(t, os.WriteFile("tree/sub/deeper/big", make([]byte, 1_000_000), 0o644))
	require.NoError(t, os.Symlink("../README", "tree/sub/link"))
	require.NoError(t, os.WriteFile("tree/boot.img", bytes.Repeat([]byte("boot"), 1000), 0o644))
	makeDisc(t, "disc.iso", "-b", "boot.img", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4")
	whole, err := os.ReadFile("disc.iso")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("cut.iso", whole[:600_000], 0o644))
	damaged := bytes.Clone(whole)
	damaged[32768+123] = 9
	require.NoError(t, os.WriteFile("damaged.iso", damaged, 0o644))
	require.NoError(t, os.WriteFile("page.iso", []byte("<html>log in"), 0o644))

	code, out, errs := trayctl(t, "image", "inspect", "disc.iso")
	require.Equal(t, exitDone, code, errs)
	require.Empty(t, errs)
	assert.Regexp(t, `(?m)^format +an ISO 9660 disc \(Rock Ridge\)$`, out)
	assert.Regexp(t, `(?m)^volume id +A DISC$`, out)
	assert.Regexp(t, `(?m)^bootable +BIOS \(not UEFI x64, UEFI arm64\)$`, out)
	assert.Regexp(t, `(?m)^defects +none$`, out)

	code, out, errs = trayctl(t, "image", "inspect", "./cut.iso")
	require.Equal(t, exitFailed, code)
	assert.Regexp(t, `(?m)^size +600000 bytes: TRUNCATED, \d+ bytes \(\d+\.\d %\) of \d+ are missing$`, out)
	assert.Regexp(t, `^trayctl: ./cut.iso: truncated: the volume says \d+ bytes, the file has 600000: download or copy it again\n$`, errs)

	code, out, errs = trayctl(t, "image", "inspect", "damaged.iso")
	require.Equal(t, exitFailed, code)
	assert.Regexp(t, `(?m)^defect +byte 32888: the two byte orders of the volume set size disagree: 1 and 9$`, out)
	assert.Equal(t, 1, strings.Count(errs, "\n"))

	code, out, errs = trayctl(t, "image", "inspect", "page.iso", "-o", "json")
	require.Equal(t, exitFailed, code)
	var report map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	assert.Equal(t, "html", report["format"])
	assert.Contains(t, errs, "this is an HTML page")

	code, out, _ = trayctl(t, "image", "ls-files", "disc.iso")
	require.Equal(t, exitDone, code)
	assert.Regexp(t, `(?m)^-rw-r--r-- +6  \d{4}-\d\d-\d\d \d\d:\d\d  README$`, out)
	assert.Regexp(t, `(?m)^-rw-r--r-- +1000000  .*  sub/deeper/big$`, out)
	assert.Contains(t, out, `  sub/evil\x1b[2Jname\\`+"\n")
	assert.Contains(t, out, "  sub/link -> ../README\n")
	assert.NotContains(t, out, "\x1b")
	code, out, _ = trayctl(t, "image", "ls-files", "disc.iso", "/sub/", "--flat")
	require.Equal(t, exitDone, code)
	assert.Equal(t, 3, strings.Count(out, "\n"))
	code, out, _ = trayctl(t, "image", "ls-files", "disc.iso", "sub", "-o", "json")
	require.Equal(t, exitDone, code)
	var files []discFile
	require.NoError(t, json.Unmarshal([]byte(out), &files))
	require.Len(t, files, 4)
	assert.Equal(t, "sub/evil\x1b[2Jname\\", files[2].Name)
	assert.Equal(t, "symlink", files[3].Type)
	code, _, errs = trayctl(t, "image", "ls-files", "disc.iso", "nowhere\x1b")
	require.Equal(t, exitFailed, code)
	assert.NotContains(t, errs, "\x1b")

	code, out, _ = trayctl(t, "image", "cat", "disc.iso", "/sub/link")
	require.Equal(t, exitDone, code)
	assert.Equal(t, "hello\n", out)
	code, _, errs = trayctl(t, "image", "cat", "disc.iso", "readme")
	require.Equal(t, exitFailed, code)
	assert.Contains(t, errs, "no file readme on the disc: `trayctl image ls-files disc.iso` lists")
	code, _, errs = trayctl(t, "image", "cat", "disc.iso", "sub")
	require.Equal(t, exitFailed, code)
	assert.Contains(t, errs, "is a directory")
	code, _, errs = trayctl(t, "image", "cat", "cut.iso", "sub/deeper/big")
	require.Equal(t, exitFailed, code)
	assert.Contains(t, errs, "unexpected EOF")
}

func TestWhichImage(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("here", []byte("hello"), 0o644))
	for arg, want := range map[string]string{
		"here":      "a text file",
		"./gone":    "no such file or directory",
		"/dev/null": "neither a regular file nor a block device",
		".":         "neither a regular file nor a block device",
	} {
		code, _, errs := trayctl(t, "image", "inspect", arg)
		assert.Equal(t, exitFailed, code, arg)
		assert.Contains(t, errs, want, arg)
	}
	for _, arg := range []string{"image:here", "name"} { // trayd has those
		code, _, errs := trayctl(t, "image", "inspect", arg)
		assert.Equal(t, exitUnreachable, code, arg)
		assert.Contains(t, errs, "trayd can't be reached", arg)
	}
	code, _, errs := trayctl(t, "image", "inspect")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, errs, "accepts 1 arg")
}
