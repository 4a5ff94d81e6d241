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
	path, err := WriteDisc(dir, name)
	require.NoError(t, err)
	return path
}

// WriteDisc is Disc for those who are no test.
func WriteDisc(dir, name string) (string, error) {
	path := filepath.Join(dir, name+".iso")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	work, err := os.MkdirTemp(dir, ".work")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	fs, err := iso9660.Create(file.New(f, false), 0, 0, 2048, work)
	if err != nil {
		return "", err
	}
	readme, err := fs.OpenFile("README.TXT", os.O_CREATE|os.O_RDWR)
	if err != nil {
		return "", err
	}
	if _, err := readme.Write([]byte("this is disc " + name + "\n")); err != nil {
		return "", err
	}
	if err := readme.Close(); err != nil {
		return "", err
	}
	return path, fs.Finalize(iso9660.FinalizeOptions{VolumeIdentifier: name})
}
