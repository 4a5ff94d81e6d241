//go:build integration

package integration_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestManual: every command has a page with all its flags, which man has nothing to say
// against; the same commit makes the same pages.
func TestManual(t *testing.T) {
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	dirs := []string{t.TempDir(), t.TempDir()}
	for _, dir := range dirs {
		for _, program := range []string{"trayd", "trayctl"} {
			cmd := exec.Command("go", "run", "-buildvcs=false", "-tags", "man", "./cmd/"+program, dir)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
	}
	pages, err := filepath.Glob(filepath.Join(dirs[0], "*"))
	require.NoError(t, err)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		again, err := os.ReadFile(filepath.Join(dirs[1], filepath.Base(page)))
		require.NoError(t, err)
		require.Equal(t, string(text), string(again))
		cmd := exec.Command("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		var said bytes.Buffer
		cmd.Stderr = &said
		require.NoError(t, cmd.Run(), page)
		require.Empty(t, said.String(), page)
	}
	for program, section := range map[string]string{"trayd": "8", "trayctl": "1"} {
		commands(t, program, nil, func(words []string, help string) {
			page := filepath.Join(dirs[0], strings.Join(append([]string{program}, words...), "-")+"."+section)
			text, err := os.ReadFile(page)
			require.NoError(t, err)
			for _, flag := range regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[\w-]+)`).FindAllStringSubmatch(help, -1) {
				require.Contains(t, strings.ReplaceAll(string(text), `\-`, "-"), flag[1], "%s", page)
			}
		})
	}
}

// commands calls f for a program's commands, with their help.
func commands(t *testing.T, program string, words []string, f func(words []string, help string)) {
	out, err := exec.Command(filepath.Join(bin, program), append(words, "--help")...).Output()
	require.NoError(t, err)
	f(words, string(out))
	_, list, _ := strings.Cut(string(out), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		name := strings.Fields(line)[0]
		if name != "help" {
			commands(t, program, append(words[:len(words):len(words)], name), f)
		}
	}
}
