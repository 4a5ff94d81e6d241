package agent

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/wire"
)

// Images lists the images of the catalogue, and those that are on their way there.
func (a *Agent) Images() []library.Image { return a.images.Images() }

// Image looks one up; an empty pool is whichever has it.
func (a *Agent) Image(pool, name string) (library.Image, error) {
	i, err := a.images.Image(pool, name)
	return i, forImage(err)
}

// RegisterImage begins to download an image, or makes ready for the upload of one.
func (a *Agent) RegisterImage(r library.Request, by Caller) (library.Image, error) {
	register := a.images.Register
	if len(r.URLs) == 0 {
		register = a.images.Announce
	}
	t := a.trace(by, "register image", "image", r.Name)
	i, err := register(r)
	if err == nil && len(r.URLs) > 0 {
		a.imageJob("add", "", i, by)
	}
	t.end(forImage(err), "pool", cmp.Or(i.Pool, r.Pool), "source", i.Source)
	return i, forImage(err)
}

// UploadImage puts an image into a pool, see library.Upload. It ends with the agent: an
// upload of minutes would hold up its stop, and leave what a death leaves.
func (a *Agent) UploadImage(ctx context.Context, pool, name string, announced bool, content io.Reader, size int64, by Caller) (i library.Image, err error) {
	t := a.trace(by, "add image", "image", name)
	defer func() { t.end(err, "pool", cmp.Or(i.Pool, pool)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	r, known := a.images.Announced(pool, name)
	if announced && !known {
		return library.Image{}, newError(ImageCutOff, "add it again", "what image %s is to be compared with is not known any more: trayd was started anew, or somebody else adds an image of that name", name)
	}
	about := library.Image{Pool: cmp.Or(r.Pool, pool), Name: name, State: wire.ImageDownloading}
	err = a.duringImage(ctx, "add", about, by, func(ctx context.Context) (err error) {
		i, err = a.images.Upload(ctx, r, content, size)
		return forImage(err)
	})
	if err != nil {
		if CodeOf(forImage(err)) != ImageExists { // of the one that exists nothing failed
			a.publish(Event{Type: EventImageFailed, Detail: about.String() + ": " + err.Error()})
		}
		return i, forImage(err)
	}
	a.publish(Event{Type: EventImageAdded, Detail: i.String()})
	return i, nil
}

// CanClone reports whether the pool can share the blocks of a file. An empty pool is the
// default one.
func (a *Agent) CanClone(pool string, f *os.File) bool { return a.images.CanClone(pool, f) }

// imageEnded is told what became of a download.
func (a *Agent) imageEnded(e library.Event) {
	verb := "download image"
	if strings.HasPrefix(e.Image.Source, "vm:") {
		verb = "capture image"
	}
	t := a.trace(Caller{Name: askedByTrayd}, verb, "image", e.Image.Name, "pool", e.Image.Pool, "source", e.Image.Source)
	t.began = e.Image.Added
	t.end(forImage(e.Err))
	if e.Err != nil {
		a.publish(Event{Type: EventImageFailed, Detail: e.Image.String() + ": " + e.Err.Error()})
		return
	}
	a.publish(Event{Type: EventImageAdded, Detail: e.Image.String()})
}

// ChangeImage does one thing to an image, by the name of the verb: cancel, retry, pin,
// unpin or verify.
func (a *Agent) ChangeImage(ctx context.Context, verb, pool, name string, by Caller) (library.Image, error) {
	var i library.Image
	var err error
	t := a.trace(by, verb+" image", "image", name)
	switch verb {
	case "cancel":
		i, err = a.images.Cancel(pool, name)
	case "retry":
		if i, err = a.images.Retry(pool, name); err == nil {
			a.imageJob("add", "", i, by)
		}
	case "pin", "unpin":
		i, err = a.images.Pin(pool, name, verb == "pin")
	case "verify":
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(a.ctx, cancel)()
		if i, err = a.images.Image(pool, name); err != nil {
			break
		}
		image := i.String()
		err = a.duringImage(ctx, "verify", i, by, func(ctx context.Context) (err error) {
			i, err = a.images.Verify(ctx, i.Pool, name)
			return forImage(err)
		})
		if err != nil {
			a.publish(Event{Type: EventImageFailed, Detail: image + ": " + err.Error()})
		} else {
			a.publish(Event{Type: EventImageVerified, Detail: image})
		}
	default:
		err = newError(BadRequest, "use cancel, retry, pin, unpin or verify", "nothing is done to an image by %q", verb)
	}
	t.end(forImage(err), "pool", cmp.Or(i.Pool, pool))
	return i, forImage(err)
}

// WaitImage returns an image once nothing of it is under way, or ctx ends.
func (a *Agent) WaitImage(ctx context.Context, pool, name string) (library.Image, error) {
	i, err := a.images.Wait(ctx, pool, name)
	return i, forImage(err)
}

// ReadImage opens the content of an image for f.
func (a *Agent) ReadImage(ctx context.Context, pool, name string, f func(content io.ReaderAt, size int64) error) error {
	return forImage(a.images.Read(ctx, pool, name, f))
}

// IsDisc refuses a disk image, in which there are no files to look at.
func (a *Agent) IsDisc(pool, name string) error {
	if i, err := a.images.Image(pool, name); err == nil && i.Kind == wire.ImageDisk {
		return newError(NotADisc, "`trayctl image show "+name+"` says what is known of it", "image:%s is a disk image (%s), not a disc", name, i.Format)
	}
	return nil
}

// RemoveImage removes an image that no drive uses and no machine stands on.
func (a *Agent) RemoveImage(ctx context.Context, pool, name string, by Caller) error {
	if i, err := a.images.Image(pool, name); err == nil {
		pool = i.Pool // for those who read of it
	}
	t := a.trace(by, "remove image", "image", name, "pool", pool)
	err := a.images.Remove(ctx, pool, name)
	t.end(forImage(err))
	if err != nil {
		return forImage(err)
	}
	a.publish(Event{Type: EventImageRemoved, Detail: "image:" + strings.TrimPrefix(pool+"/"+name, "/")})
	return nil
}

// CollectImages removes what is of no use, see library.Collect.
func (a *Agent) CollectImages(ctx context.Context, unused time.Duration, dry bool, by Caller) ([]wire.ImageRemoval, error) {
	t := a.trace(by, "gc images")
	all, err := a.images.Collect(ctx, unused, dry)
	if !dry {
		for _, r := range all {
			a.trace(by, "gc image", "image", r.What, "reason", r.Why).end(said(r.Error))
		}
		t.end(forImage(err), "removed", len(all))
	}
	return all, forImage(err)
}

// said is an error of which only the words are left; nil for none.
func said(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

// imageUsed notes that an image is in a drive, and has one of a slow pool copied.
func (a *Agent) imageUsed(p library.Place) {
	a.images.NoteUse(p)
	if !p.Stage {
		return
	}
	v, err := a.volumes.storage.Volume(*p.Volume)
	var f *os.File
	if err == nil {
		f, err = v.Open(a.ctx, p.Inside) // it is active as long as the drive has it
	}
	if err == nil {
		err = a.images.Stage(p.Volume.Name, p.Inside, f)
	}
	if err != nil {
		a.log.Warn("an image can't be staged", "pool", p.Volume.Name, "image", p.Inside, "error", err)
	}
}

// usersOf are the drives whose records speak of what lies at a place, and the machines that
// stand on it.
func (a *Agent) usersOf(p library.Place) []library.User {
	var by []library.User
	if a.diskUsers != nil {
		by = a.diskUsers(p)
	}
	var st unix.Stat_t
	there := p.Volume == nil && unix.Stat(p.Path, &st) == nil
	for _, v := range a.all() {
		for _, d := range v.allDrives() {
			rec := d.record()
			var media []*Medium
			if rec.Loaded != nil {
				media = append(media, &rec.Loaded.Medium)
			}
			if rec.Change != nil && rec.Change.Target != nil {
				media = append(media, rec.Change.Target)
			}
			for _, m := range media {
				// By its inode, too: the pool may be reached by another path than the file was.
				file := p.Volume == nil && m.Volume == nil && (m.Path == p.Path || there && m.Dev == st.Dev && m.Inode == st.Ino)
				if file || p.Volume != nil && m.Volume != nil && (*m.Volume == *p.Volume || a.standsOn(m, p)) {
					by = append(by, library.User{Drive: v.name + "/" + d.name, Medium: m.Name})
					break
				}
			}
			for _, q := range rec.Releasing {
				if p.Volume != nil && q.Volume == *p.Volume {
					by = append(by, library.User{Drive: v.name + "/" + d.name})
				}
			}
		}
	}
	return by
}

// standsOn reports whether a medium's volume and a place's are two views of one content.
func (a *Agent) standsOn(m *Medium, p library.Place) bool {
	mine, theirs := a.volumes.storage.Under(*m.Volume), a.volumes.storage.Under(*p.Volume)
	return mine != nil && *mine == *p.Volume || theirs != nil && *theirs == *m.Volume
}

// A pool that can't be looked into, since its disks aren't there yet after a boot or lvm2
// is busy, is looked into again after minClean, then after twice that each time.
const (
	minClean = time.Second
	maxClean = 5 * time.Minute
)

// resumeImages goes on with downloads, and puts in order what additions that were cut off
// have left, active volumes among it, as soon as it can.
func (a *Agent) resumeImages() {
	said := ""
	for pause := minClean; ; pause = min(2*pause, maxClean) {
		ctx, cancel := context.WithTimeout(a.ctx, activateLimit)
		err := a.images.Resume(ctx)
		cancel()
		a.resumedJobs()
		if err == nil || a.ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			a.log.Warn("a pool can't be put in order yet; trayd goes on trying", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-a.ctx.Done():
			return
		}
	}
}

// forImage gives a library's error a code of ours; nil stays nil.
func forImage(err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	var e *library.Error
	if !errors.As(err, &e) {
		return newError(Unreadable, "see the journal of trayd", "%w", err)
	}
	return newError(e.Code, e.Next, "%w", err)
}
