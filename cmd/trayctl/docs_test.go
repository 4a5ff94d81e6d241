package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shown are the commands in a document: lines of code that begin with one, and words in
// backquotes that do.
var shown = regexp.MustCompile("(?m)^ {4,}(?:sudo )?trayctl ([^#|>\n]*)|`(?:sudo )?trayctl ([^`|>]*)`")

// TestDocs: every command line that the documentation shows is one that trayctl takes.
func TestDocs(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	count := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range shown.FindAllStringSubmatch(string(text), -1) {
			line := strings.TrimSpace(m[1] + m[2])
			for _, one := range alternatives(line) {
				count++
				assert.NoError(t, takes(one), "%s: trayctl %s", filepath.Base(file), one)
			}
		}
	}
	require.Greater(t, count, 100, "commands are found at all")
}

// alternatives are the commands of a line such as "token create|ls".
func alternatives(line string) []string {
	first, rest, _ := strings.Cut(line, " ")
	if strings.Contains(first, "|") {
		var all []string
		for _, f := range strings.Split(first, "|") {
			all = append(all, f+" "+rest)
		}
		return all
	}
	second, rest, _ := strings.Cut(rest, " ")
	if strings.Contains(second, "|") && !strings.ContainsAny(second, "[<-") {
		var all []string
		for _, s := range strings.Split(second, "|") {
			all = append(all, first+" "+s+" "+rest)
		}
		return all
	}
	return []string{line}
}

// takes parses a command line as far as its flags.
func takes(line string) error {
	if line == "" || strings.HasPrefix(line, "...") {
		return nil
	}
	c := &cli{stdout: io.Discard, stderr: io.Discard}
	root := c.command()
	cmd, rest, err := root.Find(strings.Fields(strings.NewReplacer("'", "", `"`, "", "...", "x").Replace(line)))
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if names := cmd.Flags().Args(); cmd.HasSubCommands() && cmd != root && len(names) > 0 {
		return fmt.Errorf("%s has no command %s", cmd.CommandPath(), names[0])
	}
	return nil
}

// TestTakes: what trayctl doesn't take is found.
func TestTakes(t *testing.T) {
	for _, wrong := range []string{"nope", "image nope x", "insert vm1 x --nope", "token make"} {
		require.Error(t, takes(wrong), wrong)
	}
}
