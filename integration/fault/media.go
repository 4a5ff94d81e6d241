package fault

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/trayd/trayd/internal/qemutest"
)

// media is what the discs of a rig are on: files, or logical volumes. A disc's name is how a
// contender is asked for it.
type media interface {
	// disc is OLD or FRESH; missing is no disc, and unreadable one that can't be read.
	disc(volume string) string
	missing() string
	unreadable() string
	// spare is one more with the content of FRESH, made anew where it is no more. away and
	// back rename it; remove removes it, unless its use forbids that.
	spare(ctx context.Context) (string, error)
	away()
	back()
	remove()
	// is says whether a descriptor is of a disc, by its link in /proc.
	is(link string) bool
	// left says which volumes are active, as the kernel says, where it isn't just that of the
	// disc in the drive; "" is well.
	left(ctx context.Context, d drive) (string, error)
	// close removes what must not stay.
	close()
}

// files are discs in files of a directory.
type files struct {
	dir     string
	failing *failing
}

func newFiles(ctx context.Context, dir string) (*files, error) {
	for _, name := range []string{old, fresh} {
		if _, err := qemutest.WriteDisc(dir, name); err != nil {
			return nil, err
		}
	}
	lost, err := newFailing(ctx, dir)
	return &files{dir, lost}, err
}

func (f *files) disc(volume string) string { return filepath.Join(f.dir, volume+".iso") }
func (f *files) missing() string           { return f.disc("MISSING") }
func (f *files) unreadable() string        { return f.failing.disc }

func (f *files) spare(context.Context) (string, error) {
	f.remove() // the last run has left it
	return f.gone(), os.Link(f.disc(fresh), f.gone())
}

func (f *files) gone() string { return f.disc("GONE") }
func (f *files) away()        { _ = os.Rename(f.gone(), f.gone()+".away") } // whichever is there
func (f *files) back()        { _ = os.Rename(f.gone()+".away", f.gone()) }
func (f *files) remove()      { _ = os.Remove(f.gone()) }

func (f *files) is(link string) bool {
	return strings.HasPrefix(link, f.dir+"/") && strings.Contains(link, ".iso")
}

func (*files) left(context.Context, drive) (string, error) { return "", nil }

func (f *files) close() { f.failing.close() }
