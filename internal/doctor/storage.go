package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// media looks at the directories that discs come from: whether trayd can read them, and who
// may put discs there.
func (d *Doctor) media(context.Context) []Check {
	var all []Check
	for _, root := range d.o.Config().MediaRoots {
		st, err := os.Stat(root)
		if err == nil && st.IsDir() {
			var f *os.File
			if f, err = os.Open(root); err == nil {
				_, err = f.Readdirnames(1)
				f.Close()
				if errors.Is(err, io.EOF) {
					err = nil // it is empty
				}
			}
		}
		all = append(all, judgeRoot(root, st, err))
	}
	if len(all) == 0 {
		all = append(all, skipped("media", "media_roots", "none is configured: discs come from pools and volumes alone"))
	}
	return all
}

func judgeRoot(root string, st fs.FileInfo, err error) Check {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return warning("media", root, "make it (`install -d "+root+"`), or take it out of media_roots", "there is no such directory")
	case err != nil:
		return failed("media", root, "let the user trayd read it, and go through the directories above it", "trayd can't read it: %v", err)
	case !st.IsDir():
		return failed("media", root, "media_roots are directories", "it is not a directory")
	}
	who := owner(st)
	if mode := st.Mode().Perm(); mode&0o002 != 0 {
		return warning("media", root, "`chmod o-w "+root+"`", "everybody may write there (%s): who may put a disc there decides what machines boot", who)
	}
	return ok("media", root, "trayd reads it; %s", who)
}

// owner says who may write to a directory.
func owner(st fs.FileInfo) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return st.Mode().String()
	}
	text := "written by " + userName(sys.Uid)
	if st.Mode().Perm()&0o020 != 0 {
		text += " and the group " + groupName(sys.Gid)
	}
	return text
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "user " + id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// space looks at the file systems that trayd writes to.
func (d *Doctor) space(context.Context) []Check {
	c := d.o.Config()
	places := []struct {
		name, path string
		least      uint64 // bytes
	}{{"state_dir", c.StateDir, leastState}}
	local := true
	for _, p := range c.Pools {
		if p.Type == "dir" {
			places = append(places, struct {
				name, path string
				least      uint64
			}{"pool " + p.Name, p.Path, leastPool})
		}
		local = local && p.Type == "mount"
	}
	if local {
		places = append(places, struct {
			name, path string
			least      uint64
		}{"pool local", filepath.Join(c.StateDir, "images"), leastPool})
	}
	var all []Check
	for _, p := range places {
		var at unix.Statfs_t
		err := unix.Statfs(p.path, &at)
		if errors.Is(err, fs.ErrNotExist) && p.name == "pool local" {
			continue // it is made with the first image
		}
		all = append(all, judgeSpace(p.name, p.path, p.least, at, err))
	}
	for _, p := range c.Pools {
		if p.Quota > 0 {
			all = append(all, judgeQuota(p.Name, p.Quota, used(p.Name, d.o.Agent.Images())))
		}
	}
	return all
}

// The least that should be left: for the state file, which is compacted at some MiB, and for
// an image to be worth beginning with.
const (
	leastState = 64 << 20
	leastPool  = 1 << 30
	leastFiles = 100
)

func judgeSpace(name, path string, least uint64, at unix.Statfs_t, err error) Check {
	if err != nil {
		return failed("space", name, "is it mounted, and may trayd go there?", "%s can't be looked at: %v", path, err)
	}
	free := at.Bavail * uint64(at.Bsize)
	detail := fmt.Sprintf("%s of %s are free in %s", bytesOf(free), bytesOf(at.Blocks*uint64(at.Bsize)), path)
	switch {
	case free == 0:
		return failed("space", name, "free space there", "%s", detail)
	case at.Files > 0 && at.Ffree < leastFiles:
		return failed("space", name, "remove files there", "%s, but only %d files can be made", detail, at.Ffree)
	case free < least:
		return warning("space", name, "free space there; `trayctl image gc` removes what isn't used", "%s", detail)
	}
	return ok("space", name, "%s", detail)
}

func judgeQuota(pool string, quota, used int64) Check {
	detail := fmt.Sprintf("%s of %s are used", bytesOf(uint64(used)), bytesOf(uint64(quota)))
	if used > quota/10*9 {
		return warning("space", "quota of "+pool, "`trayctl image gc --unused 720h` removes what isn't used, or raise the pool's quota", "%s", detail)
	}
	return ok("space", "quota of "+pool, "%s", detail)
}

// used is how much the images of a pool have together, each content once.
func used(pool string, images []wire.Image) int64 {
	var places []string
	var sum int64
	for _, i := range images {
		if i.Pool == pool && !slices.Contains(places, i.Place) {
			places = append(places, i.Place)
			sum += i.Size
		}
	}
	return sum
}

func bytesOf(n uint64) string {
	for _, u := range []struct {
		name string
		size uint64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.size)), ".0") + " " + u.name
		}
	}
	return strconv.FormatUint(n, 10) + " bytes"
}
