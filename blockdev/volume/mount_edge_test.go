//go:build edge

package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/edge"
)

// A file system on a logical volume that is found by its label.
func TestMountLabel(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	disc := content(1, testSize)
	image := fileSystem(t, dir, "isos", disc)
	tool(t, "dd", "if="+image, "of="+edge.Disks[0], "bs=1M", "conv=fsync")
	t.Cleanup(func() { tool(t, "wipefs", "--all", edge.Disks[0]) })
	tool(t, "udevadm", "settle")
	uuid := tool(t, "blkid", "-o", "value", "-s", "UUID", edge.Disks[0])
	h := NewHost("edge", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{
		{Name: "label", Source: "LABEL=isos"}, {Name: "uuid", Source: "UUID=" + uuid, Type: "ext4"}, {Name: "device", Source: edge.Disks[0]},
	}})
	for _, name := range []string{"label", "uuid", "device"} {
		v := volumeOf(t, h, Ref{Mount, name})
		require.NoError(t, activate(ctx, v))
		f, err := v.Open(ctx, "disc.iso")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, errors.Join(err, f.Close()))
		require.True(t, bytes.Equal(disc, got))
		require.NoError(t, v.Release(ctx))
	}
}

// TestMountOtherSource: what is still mounted of a source that the configuration named
// before isn't taken for what it names now.
func TestMountOtherSource(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	images := []string{fileSystem(t, t.TempDir(), "one", content(1, testSize)), fileSystem(t, t.TempDir(), "two", content(2, testSize))}
	disc := edge.Disks[0]
	tool(t, "dd", "if="+images[0], "of="+disc, "bs=1M", "conv=fsync")
	t.Cleanup(func() { tool(t, "wipefs", "--all", disc) })
	tool(t, "udevadm", "settle")
	for _, sources := range [][2]string{{images[0], images[1]}, {"LABEL=one", images[1]}, {disc, images[0]}, {images[0], disc}} {
		from := func(source string) Options {
			return Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{{Name: "pool", Source: source}}}
		}
		ref := Ref{Mount, "pool"}
		h := NewHost("edge", from(sources[0]))
		require.NoError(t, activate(ctx, volumeOf(t, h, ref)))
		restarted := NewHost("edge", from(sources[0]))
		require.NoError(t, activate(ctx, volumeOf(t, restarted, ref)), sources)
		for _, h := range []*Host{h, restarted, NewHost("edge", Options{})} {
			h.Configure(from(sources[1]))
			require.Equal(t, Damaged, reason(t, activate(ctx, volumeOf(t, h, ref))), sources)
		}
		require.NoError(t, volumeOf(t, h, ref).Release(ctx))
		require.NoError(t, activate(ctx, volumeOf(t, h, ref)))
		require.NoError(t, volumeOf(t, h, ref).Release(ctx))
	}
}

// TestMountNFS: an export of a server, which is this host's own.
func TestMountNFS(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	export := filepath.Join(dir, "export")
	require.NoError(t, os.Mkdir(export, 0o755))
	disc := content(1, testSize)
	require.NoError(t, os.WriteFile(filepath.Join(export, "disc.iso"), disc, 0o644))
	for _, file := range []string{"/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"} { // the maintainer script's
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, nil, 0o644))
	}
	tool(t, "modprobe", "nfsd")
	tool(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	t.Cleanup(func() { tool(t, "umount", "/proc/fs/nfsd") })
	tool(t, "exportfs", "-o", "ro,insecure,no_root_squash,no_subtree_check,fsid=1", "127.0.0.1:"+export)
	t.Cleanup(func() { tool(t, "exportfs", "-au") })
	mountd := exec.Command("/usr/sbin/rpc.mountd", "--foreground", "--no-nfs-version", "2", "--no-nfs-version", "3")
	require.NoError(t, mountd.Start())
	t.Cleanup(func() { _ = mountd.Process.Kill(); _ = mountd.Wait() })
	tool(t, "rpc.nfsd", "--no-nfs-version", "3", "--host", "127.0.0.1", "1")
	t.Cleanup(func() { tool(t, "rpc.nfsd", "0") })
	// A server that has just started makes readers wait for those of before: 90 s.
	require.NoError(t, os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0))

	h := NewHost("edge", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{
		{Name: "nas", Source: "127.0.0.1:" + export, Options: "soft,timeo=50"}, {Name: "typed", Source: "localhost:" + export, Type: "nfs4", Options: "soft,timeo=50"},
		{Name: "none", Source: "127.0.0.1:/no/such/export", Options: "soft,timeo=50"},
	}})
	for _, name := range []string{"nas", "typed"} {
		v := volumeOf(t, h, Ref{Mount, name})
		require.NoError(t, activate(ctx, v), name)
		f, err := v.Open(ctx, "disc.iso")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(disc, got))
		var busy *BusyError
		require.NoError(t, f.Close())
		held := exec.Command("/bin/sleep", "60")
		held.Dir = filepath.Join(dir, "mnt", "edge", name)
		require.NoError(t, held.Start())
		require.ErrorAs(t, v.Release(ctx), &busy)
		require.NoError(t, held.Process.Kill())
		_ = held.Wait() // killed
		require.NoError(t, v.Release(ctx))
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.False(t, st.Active)
	}
	var refused *Error
	require.ErrorAs(t, activate(ctx, volumeOf(t, h, Ref{Mount, "none"})), &refused)
	require.NotEmpty(t, refused.Next)
}
