package qemutest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/stretchr/testify/require"
)

// Disc writes an ISO 9660 image dir/NAME.iso with the volume identifier NAME, in
// upper case letters and digits, and returns its path.
func Disc(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name+".iso")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	work, err := os.MkdirTemp(dir, ".work")
	require.NoError(t, err)
	defer os.RemoveAll(work)
	fs, err := iso9660.Create(file.New(f, false), 0, 0, 2048, work)
	require.NoError(t, err)
	readme, err := fs.OpenFile("README.TXT", os.O_CREATE|os.O_RDWR)
	require.NoError(t, err)
	_, err = readme.Write([]byte("this is disc " + name + "\n"))
	require.NoError(t, err)
	require.NoError(t, readme.Close())
	require.NoError(t, fs.Finalize(iso9660.FinalizeOptions{VolumeIdentifier: name}))
	return path
}
