package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const passes = `{"Time":"2026-01-02T03:04:05Z","Action":"run","Package":"p","Test":"TestA"}
{"Time":"2026-01-02T03:04:05Z","Action":"output","Package":"p","Test":"TestA","Output":"    tested_test.go:31: QEMU under test: 5.2.0\n"}
{"Time":"2026-01-02T03:05:05Z","Action":"pass","Package":"p","Test":"TestA","Elapsed":60}
{"Time":"2026-01-02T03:05:06Z","Action":"pass","Package":"p","Elapsed":61}
`

// TestVerdict: what must not go unseen makes the report fail, and is shown.
func TestVerdict(t *testing.T) {
	end := func(action string) string {
		return `{"Action":"output","Package":"p","Test":"TestB","Output":"why not\n"}` + "\n" +
			`{"Action":"` + action + `","Package":"p","Test":"TestB"}` + "\n"
	}
	for name, c := range map[string]struct{ log, fails, shows string }{
		"passed":         {passes, "", "1 passed, 0 failed, 0 skipped, in 1m1s, on QEMU 5.2.0\n"},
		"failed":         {passes + end("fail"), "not everything has passed", "FAIL  p TestB\nwhy not\n"},
		"skipped":        {passes + end("skip"), "not everything has passed", "SKIP  p TestB\nwhy not\n"},
		"doesn't build":  {passes + `{"ImportPath":"q","Action":"build-output","Output":"undefined: x\n"}` + "\n" + `{"ImportPath":"q","Action":"build-fail"}` + "\n", "not everything has passed", "FAIL  q\nundefined: x\n"},
		"nothing":        {"", "no test has run", "0 passed"},
		"not of go test": {passes + "panic: everything\n", "", "panic: everything\n"},
		"a mix":          {passes + strings.ReplaceAll(passes, "5.2.0", "7.2.22"), "more than one QEMU", "on QEMU 5.2.0 and 7.2.22"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "unit-bullseye.json")
			require.NoError(t, os.WriteFile(path, []byte(c.log), 0o644))
			var out, table strings.Builder
			err, tableErr := run(&out, []string{path}), summaries(&table, []string{path, path})
			if c.fails == "" {
				require.NoError(t, err)
				require.NoError(t, tableErr)
			} else {
				require.ErrorContains(t, err, c.fails)
				require.ErrorContains(t, tableErr, "unit-bullseye: "+c.fails)
			}
			require.Contains(t, out.String(), c.shows)
			require.Len(t, strings.Split(table.String(), "\n"), 4)
		})
	}
}
