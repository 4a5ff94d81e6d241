package library

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
)

// Image is one image of the catalogue.
type Image = wire.Image

// Request asks for an image.
type Request = wire.ImageRequest

// entry is what the state file says of an image.
type entry struct {
	Image
	// Request is what a retry, or the next start, goes on with; nil of an upload. Asked is
	// the checksum as it was asked for.
	Request *Request `json:"request,omitempty"`
	Asked   string   `json:"asked,omitempty"`
	// Unfinished is the logical volume that its bytes go to, where that isn't named like it.
	Unfinished string `json:"unfinished,omitempty"`
	// Fetched is how far a download is.
	Fetched fetch.State `json:"fetched,omitzero"`
	// Captured is set for a copy of a machine's disk. It can't be made again by itself: the
	// machine goes on.
	Captured bool `json:"captured,omitempty"`
	// Seen is the file as it was when it was inspected.
	Seen *Seen `json:"seen,omitempty"`
	// Origin is the file in a pool of type mount that it is a staged copy of.
	Origin *Origin `json:"origin,omitempty"`
}

// Seen tells a file that is unchanged since it was inspected from any other: whatever
// writes to it changes the last of these.
type Seen struct {
	Dev     uint64 `json:"dev"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	Changed int64  `json:"changed"` // st_ctim, in nanoseconds
}

// Is reports whether an open file is that one, unchanged.
func (s Seen) Is(f *os.File) bool {
	now, ok := seenNow(f)
	return ok && now == s
}

func seenNow(f *os.File) (Seen, bool) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return Seen{}, false
	}
	return Seen{Dev: st.Dev, Inode: st.Ino, Size: st.Size, Changed: st.Ctim.Nano()}, true
}

// Origin is a file in a pool that is mounted while it is used.
type Origin struct {
	Pool     string `json:"pool"`
	File     string `json:"file"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // in nanoseconds
}

const keyPrefix = "image/"

func key(pool, name string) string { return keyPrefix + pool + "/" + name }

// unfinished is what its bytes are called as long as they have no place.
func (e *entry) unfinished() string { return or(e.Unfinished, e.Name) }

func (e *entry) key() string { return key(e.Pool, e.Name) }

// entries is the catalogue, by pool and name.
func (l *Library) entries() []*entry {
	var all []*entry
	l.journal.Range(func(k string, value json.RawMessage) bool {
		e := new(entry)
		if strings.HasPrefix(k, keyPrefix) && json.Unmarshal(value, e) == nil {
			all = append(all, e.completed())
		}
		return true
	})
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.key(), b.key()) })
	return all
}

// completed fills in what the records of earlier versions don't say.
func (e *entry) completed() *entry {
	if e.State == "" {
		e.State = wire.ImageReady
	}
	if e.Kind == "" && e.Place != "" {
		e.Kind = wire.ImageDisc
	}
	return e
}

// entry looks one up.
func (l *Library) entry(pool, name string) (*entry, bool) {
	e := new(entry)
	ok, err := l.journal.Get(key(pool, name), e)
	return e.completed(), ok && err == nil
}

// put makes an entry durable.
func (l *Library) put(e *entry) error {
	if err := l.journal.Put(e.key(), e); err != nil {
		return problem(Failed, "see `trayctl state check`", "image %s can't be written to the catalogue: %w", e.Name, err)
	}
	return nil
}

func (l *Library) drop(e *entry) error {
	if err := l.journal.Delete(e.key()); err != nil {
		return problem(Failed, "see `trayctl state check`", "image %s can't be taken out of the catalogue: %w", e.Name, err)
	}
	return nil
}

// sharing are the other images of the pool whose content lies at the same place.
func (l *Library) sharing(e *entry) []*entry {
	return slices.DeleteFunc(l.entries(), func(o *entry) bool {
		return o.Place != e.Place || o.Place == "" || o.Pool != e.Pool || o.Name == e.Name
	})
}

// withContent finds another image of the pool that has the content of one, and can be used
// in its place. The caller holds the content.
func (l *Library) withContent(p Pool, sha256 string, like Image) (*entry, bool) {
	for _, e := range l.entries() {
		if e.Pool == p.Name && e.SHA256 == sha256 && sha256 != "" && e.Name != like.Name && carries(e, like.Integrity) && l.isIn(p, e.Place) {
			return e, true
		}
	}
	return nil, false
}

// Images is the catalogue, by pool and name, with what is under way.
func (l *Library) Images() []Image {
	images := []Image{}
	seen := make(map[string]bool)
	for _, e := range l.entries() {
		seen[e.key()] = true
		images = append(images, l.shown(e))
	}
	l.mu.Lock()
	for k, j := range l.jobs {
		if !seen[k] { // its bytes come from a client; the catalogue has it once they are here
			images = append(images, j.image())
		}
	}
	l.mu.Unlock()
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.String(), b.String()) })
	return images
}

// Image looks one up, by POOL and NAME; an empty pool is whichever has it.
func (l *Library) Image(pool, name string) (Image, error) {
	all := l.Images()
	var found []Image
	var in []string
	for _, i := range all {
		if i.Name == name && (pool == "" || i.Pool == pool) {
			found, in = append(found, i), append(in, i.String())
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Image{}, problem(Ambiguous, "name one: "+strings.Join(in, ", "), "image %s is in several pools", name)
	}
	if pool != "" {
		if _, err := l.pool(pool); err != nil {
			return Image{}, err
		}
		return Image{}, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s that trayd has added to pool %s", name, pool)
	}
	return Image{}, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s that trayd has added to a pool", name)
}

// shown is an entry as people see it: with how far it is, and who uses it.
func (l *Library) shown(e *entry) Image {
	l.mu.Lock()
	j := l.jobs[e.key()]
	l.mu.Unlock()
	i := e.Image
	if j != nil {
		i = j.image()
	}
	i.Users = named(l.usersOf(e))
	return i
}

// Problems are the images that need somebody's attention: those that have failed, and those
// whose pool isn't where it was. Next of each says what to do.
func (l *Library) Problems() []*Error {
	var all []*Error
	for _, e := range l.entries() {
		var moved *Error
		p, err := l.pool(e.Pool)
		if err == nil {
			err = l.strayed(p, e)
		}
		switch {
		case errors.As(err, &moved):
			all = append(all, problem(moved.Code, "define the pool as it was, then use or remove the image", "%s can't be used: %s", e, moved.Detail))
		case e.State == wire.ImageFailed && e.Failure != nil:
			all = append(all, problem(e.Failure.Code, e.Failure.Remedy, "%s has failed: %s", e, e.Failure.Cause))
		}
	}
	return all
}
