package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEdgeTests(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"plain_test.go":  "package p\nfunc TestPlain(t *testing.T) {}\n",
		"edge_test.go":   "//go:build edge\n\npackage p\nfunc TestMain(m *testing.M) {}\nfunc TestOne(t *testing.T) {}\nfunc (x) TestMethod() {}\nfunc helper() {}\n",
		"both_test.go":   "// Words.\n\n//go:build linux && edge\n\npackage p\nfunc TestTwo(t *testing.T) {}\n",
		"either_test.go": "//go:build linux || edge\n\npackage p\nfunc TestAnywhere(t *testing.T) {}\n",
		"other_test.go":  "//go:build integration\n\npackage p\nfunc TestOutside(t *testing.T) {}\n",
		"below_test.go":  "package p\n\n//go:build edge\nfunc TestTooLate(t *testing.T) {}\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	names, err := edgeTests(dir)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"TestOne", "TestTwo"}, names)

	_, err = edgeTests(t.TempDir())
	require.ErrorContains(t, err, "no test here")
}
