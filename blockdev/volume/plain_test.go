package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const testSize = 4 << 20

func TestFile(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		dir, disc := t.TempDir(), content(1, testSize)
		return &subject{
			host: NewHost("plain", Options{}), ref: Ref{File, file(t, dir, "disc.iso", disc)}, content: disc,
			absent: Ref{File, filepath.Join(dir, "none.iso")}, always: true,
		}
	})
}

func TestBlock(t *testing.T) {
	needRoot(t)
	contract(t, func(t *testing.T) *subject {
		disc := content(2, testSize)
		loop := tool(t, "losetup", "--find", "--show", "--read-only", file(t, t.TempDir(), "disc.iso", disc))
		t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
		return &subject{
			host: NewHost("plain", Options{}), ref: Ref{Block, loop}, content: disc,
			absent: Ref{Block, "/dev/none"}, always: true,
		}
	})
}

func TestLoop(t *testing.T) {
	needRoot(t)
	contract(t, func(t *testing.T) *subject {
		dir, disc, other := t.TempDir(), content(3, testSize), content(4, testSize)
		h := NewHost("loop", Options{})
		s := &subject{
			host: h, ref: Ref{Loop, file(t, dir, "disc.iso", disc)}, content: disc,
			other:  &subject{host: h, ref: Ref{Loop, file(t, dir, "other.iso", other)}, content: other},
			absent: Ref{Loop, filepath.Join(dir, "none.iso")},
		}
		s.foreign = func(t *testing.T) { // an agent that was killed
			require.NoError(t, activate(context.Background(), volumeOf(t, NewHost("loop", Options{}), s.ref)))
		}
		return s
	})
}

// A loop device is found again by its mark, and by nobody of another mark.
func TestLoopOrphan(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	ref := Ref{Loop, file(t, t.TempDir(), "disc.iso", content(5, testSize))}
	require.NoError(t, activate(ctx, volumeOf(t, NewHost("loop1", Options{}), ref)))
	stranger := NewHost("loop2", Options{})
	orphans, err := stranger.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans)
	require.NoError(t, volumeOf(t, stranger, ref).Release(ctx))
	require.NoError(t, os.Remove(ref.Name))
	again := NewHost("loop1", Options{})
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{ref}, orphans)
	require.NoError(t, volumeOf(t, again, ref).Release(ctx))
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans)
}

// Loop devices are taken by many at once, and each gets its own file's.
func TestLoopsAtOnce(t *testing.T) {
	needRoot(t)
	ctx, dir := context.Background(), t.TempDir()
	h := NewHost("loops", Options{})
	var group errgroup
	for i := range 12 {
		disc := content(int64(i), 64<<10)
		v := volumeOf(t, h, Ref{Loop, file(t, dir, fmt.Sprint(i), disc)})
		group.Go(func() error {
			for range 3 {
				if err := activate(ctx, v); err != nil {
					return err
				}
				f, err := v.Open(ctx, "")
				if err != nil {
					return err
				}
				got := make([]byte, len(disc))
				_, err = f.ReadAt(got, 0)
				if err = errors.Join(err, f.Close()); err != nil {
					return err
				}
				if !bytes.Equal(disc, got) {
					return errors.New("another's content")
				}
				if err := v.Release(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// errgroup joins what goroutines return.
type errgroup struct {
	wait sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
}

func (g *errgroup) Go(f func() error) {
	g.wait.Go(func() {
		err := f()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.errs = append(g.errs, err)
	})
}

func (g *errgroup) Wait() error {
	g.wait.Wait()
	return errors.Join(g.errs...)
}

func TestBadNames(t *testing.T) {
	h := NewHost("mark", Options{})
	for _, ref := range []Ref{
		{File, "disc.iso"}, {File, "/a/../b"}, {Block, ""}, {Loop, "/a/./b"}, {"tape", "/dev/st0"},
		{DM, ""}, {DM, "a/b"}, {DM, string(make([]byte, 200))}, {DM, "a b"},
		{Mount, ".."}, {Mount, "a/b"}, {Mount, ""},
		{LVM, "vg0"}, {LVM, "/lv"}, {LVM, "vg/"}, {LVM, "-vg/lv"}, {LVM, "vg/-lv"}, {LVM, "vg/.."}, {LVM, "vg/a b"}, {LVM, "vg/a/b"},
		{LVM, "vg/pvmove0"}, {LVM, "vg/snapshot0"}, {LVM, "vg/pool_tmeta"}, {LVM, "vg/lvol0_pmspare"}, {LVM, "vg/mir_rimage_0"},
		{LVM, "vg/@tag"}, {LVM, "vg/$(reboot)"}, {LVM, "vg/" + string(content(0, 0)) + ";"},
	} {
		v, err := h.Volume(ref)
		require.Equal(t, BadName, reason(t, err), "%s", ref)
		require.Nil(t, v)
	}
	v, err := h.lvmVolume(Ref{LVM, "vg-a/my-lv_1.iso"})
	require.NoError(t, err)
	require.Equal(t, "vg--a-my--lv_1.iso", v.device())
}

// Work that hangs holds up neither its caller nor the end of its context, and is put
// back when it succeeds after all.
func TestHangs(t *testing.T) {
	h := NewHost("mark", Options{})
	ref := Ref{LVM, "vg/lv"}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	hang, undone := make(chan struct{}), make(chan struct{})
	begin := time.Now()
	err := h.do(ctx, ref, func(context.Context) error { <-hang; return nil }, func() { close(undone) })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, Failed, reason(t, err))
	require.Less(t, time.Since(begin), leaveAfter+time.Second)
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err = h.do(ctx, ref, func(context.Context) error { t.Error("two at once"); return nil }, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(hang)
	<-undone
	require.NoError(t, h.do(context.Background(), ref, func(context.Context) error { return nil }, nil))
}

func TestMount(t *testing.T) {
	needRoot(t)
	contract(t, func(t *testing.T) *subject {
		dir, disc, other := t.TempDir(), content(6, testSize), content(7, testSize)
		h := NewHost("mount", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{
			{Name: "usb", Source: fileSystem(t, dir, "usb", disc), Options: "rw,noauto,x-systemd.idle-timeout=1m,noload"},
			{Name: "two", Source: fileSystem(t, dir, "two", other), Type: "ext4"},
		}})
		s := &subject{
			host: h, ref: Ref{Mount, "usb"}, content: disc, rel: "disc.iso",
			other: &subject{host: h, ref: Ref{Mount, "two"}, content: other, rel: "sub/b.iso"}, absent: Ref{Mount, "none"},
		}
		s.foreign = func(t *testing.T) {
			point := filepath.Join(dir, "mnt", "mount", "usb")
			require.NoError(t, os.MkdirAll(point, 0o755))
			tool(t, "mount", "-o", "ro,loop", filepath.Join(dir, "usb.img"), point)
		}
		return s
	})
}

// What is opened lies in the file system, and it is mounted so that it can do no harm.
func TestMountBeneath(t *testing.T) {
	needRoot(t)
	ctx, dir := context.Background(), t.TempDir()
	h := NewHost("mount", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{{Name: "usb", Source: fileSystem(t, dir, "usb", content(8, testSize)), Options: "rw,suid"}}})
	v := volumeOf(t, h, Ref{Mount, "usb"})
	require.NoError(t, activate(ctx, v))
	t.Cleanup(func() { require.NoError(t, v.Release(ctx)) })
	for _, rel := range []string{"", "/etc/passwd", "../../etc/passwd", "away", "sub", "none", "sub/../../x"} {
		_, err := v.Open(ctx, rel)
		require.Error(t, err, rel)
	}
	f, err := v.Open(ctx, "link")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(filepath.Join(dir, "mnt/mount/usb"), &st))
	require.EqualValues(t, restricted, st.Flags&restricted)
	orphans, err := NewHost("mount", Options{Dir: filepath.Join(dir, "mnt")}).Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{{Mount, "usb"}}, orphans)
	stranger := NewHost("other", Options{Dir: filepath.Join(dir, "mnt")}) // another agent, with a pool of that name
	orphans, err = stranger.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans)
	require.NoError(t, volumeOf(t, stranger, Ref{Mount, "usb"}).Release(ctx))
	active, err := v.State(ctx)
	require.NoError(t, err)
	require.True(t, active.Active, "it is not the stranger's")
}

// A disk that somebody has mounted already, read-write, is no problem.
func TestMountedElsewhere(t *testing.T) {
	needRoot(t)
	ctx, dir := context.Background(), t.TempDir()
	loop := tool(t, "losetup", "--find", "--show", fileSystem(t, dir, "shared", content(9, testSize)))
	t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
	theirs := t.TempDir()
	tool(t, "mount", loop, theirs)
	t.Cleanup(func() { tool(t, "umount", theirs) })
	h := NewHost("mount", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{{Name: "usb", Source: "LABEL=shared"}, {Name: "none", Source: "UUID=none"}}})
	v := volumeOf(t, h, Ref{Mount, "usb"})
	require.NoError(t, activate(ctx, v))
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "mnt/mount/usb/new"), nil, 0o600), unix.EROFS)
	require.NoError(t, os.WriteFile(filepath.Join(theirs, "new"), nil, 0o600), "theirs stays as it is")
	require.NoError(t, v.Release(ctx))
	require.Equal(t, NotHere, reason(t, activate(ctx, volumeOf(t, h, Ref{Mount, "none"}))))
	require.NoDirExists(t, filepath.Join(dir, "mnt/mount/none"))
}

func TestMountOptions(t *testing.T) {
	flags, data := mountOptions("rw,suid,noatime,noload,x-gvfs-show,data=ordered,")
	require.EqualValues(t, restricted|unix.MS_NOATIME, flags)
	require.Equal(t, "noload,data=ordered", data)
	require.True(t, isNFS(FileSystem{Source: "nas:/isos"}))
	require.True(t, isNFS(FileSystem{Source: "[2001:db8::1]:/isos"}))
	require.False(t, isNFS(FileSystem{Source: "/dev/disk/by-path/pci-0:/x"}))
	require.Equal(t, `my\x20disc`, udevName("my disc"))
}

// TestMountLocked: a mount that a user namespace has inherited can't be ended there
// (mount_namespaces(7)), and the attempt doesn't go on for ever.
func TestMountLocked(t *testing.T) {
	const inside = "TRAYD_TEST_USER_NAMESPACE"
	if os.Getenv(inside) != "" {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		v, err := NewHost("", Options{Dir: "/"}).Volume(Ref{Mount, "proc"})
		require.NoError(t, err)
		require.ErrorIs(t, v.Release(ctx), unix.EINVAL)
		return
	}
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMountLocked$")
	cmd.Env = append(os.Environ(), inside+"=1")
	root := []syscall.SysProcIDMap{{Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: root, GidMappings: root}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
