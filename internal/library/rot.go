package library

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/wire"
)

// contentFile is an open content.
type contentFile = *os.File

// reading opens the content of an image for f. A volume is active meanwhile; the caller
// has the image's name, so that nobody else turns it on or off.
func (l *Library) reading(ctx context.Context, p Pool, e *entry, f func(contentFile) error) (err error) {
	if !l.isIn(p, e.Place) {
		return l.strayed(p, e)
	}
	if p.Type == Dir {
		file, err := os.Open(e.Place)
		if err != nil {
			return problem(Changed, "remove it, then add it again", "the file of image %s is gone: %w", e.Name, err)
		}
		defer file.Close()
		return f(file)
	}
	ref, err := volume.ParseRef(e.Place)
	if err != nil {
		return err
	}
	v, err := l.storage.Volume(ref)
	if err != nil {
		return err
	}
	made, err := v.Activate(ctx)
	if err != nil {
		return (&lvmStore{l.storage, p}).failed(e.Name, err)
	}
	if made {
		defer func() {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
			defer cancel()
			err = errors.Join(err, releasePatiently(clean, v))
			if all := joined(err); len(all) == 1 {
				err = all[0]
			}
		}()
	}
	file, err := v.Open(ctx, "")
	if err != nil {
		return (&lvmStore{l.storage, p}).failed(e.Name, err)
	}
	defer file.Close()
	return f(file)
}

// Read opens the content of an image, which nobody else removes or turns off meanwhile:
// size bytes of it.
func (l *Library) Read(ctx context.Context, pool, name string, f func(content io.ReaderAt, size int64) error) error {
	i, err := l.Image(pool, name)
	if err != nil {
		return err
	}
	if err := ready(i); err != nil {
		return err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return err
	}
	e, _ := l.entry(i.Pool, name)
	if p.Type == LVM && len(l.usersOf(e)) == 0 {
		done, err := l.occupy(p.Name, name)
		if err != nil {
			return err
		}
		defer done()
	}
	return l.reading(ctx, p, e, func(file contentFile) error { return f(file, e.Size) })
}

// Verify reads an image again, and compares it with what was added. One that is another
// now can't be put into a drive any more.
func (l *Library) Verify(ctx context.Context, pool, name string) (Image, error) {
	i, err := l.Image(pool, name)
	if err != nil {
		return i, err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return i, err
	}
	done, err := l.occupy(p.Name, name)
	if err != nil {
		return i, err
	}
	defer done()
	e, ok := l.entry(p.Name, name)
	if !ok || e.State != wire.ImageReady && !rotten(e) {
		return i, problem(NotReady, "see `trayctl image show "+name+"`", "image %s is %s", name, i.State)
	}
	var got string
	err = l.reading(ctx, p, e, func(f contentFile) (err error) {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() != e.Size {
			return problem(Changed, "", "it has %d bytes, and %d were added", st.Size(), e.Size)
		}
		// Not what the page cache remembers, but what the disk has.
		_ = unix.Fadvise(int(f.Fd()), 0, e.Size, unix.FADV_DONTNEED)
		got, err = hashOf(ctx, f, e.Size)
		return err
	})
	var known *Error
	switch {
	case err == nil && got != e.SHA256:
		err = problem(Changed, "", "its sha256 is %s, and %s was added", got, e.SHA256)
	case err == nil:
		e.State, e.Failure = wire.ImageReady, nil
		e.Seen = seenAt(p, e.Place)
		return e.Image, l.put(e)
	case ctx.Err() != nil, errors.As(err, &known) && known.Code != Changed:
		return i, err
	case !errors.As(err, &known):
		err = problem(Changed, "", "it can't be read: %w", err)
	}
	cause := err.Error()
	for _, same := range append(l.sharing(e), e) { // whatever it is called
		same.State = wire.ImageFailed
		same.Failure = &wire.ImageFailure{
			Code: Changed, Cause: "its content has changed since it was added: " + cause, Remedy: remedyOfRot(same), At: time.Now().UTC(),
		}
		if err := l.put(same); err != nil {
			return e.Image, err
		}
	}
	return e.Image, problem(Changed, e.Failure.Remedy, "image %s of pool %s is damaged: %s", name, p.Name, cause)
}

// rotten reports whether an image has failed since its content has changed.
func rotten(e *entry) bool {
	return e.State == wire.ImageFailed && e.Failure != nil && e.Failure.Code == Changed && e.Place != ""
}

func remedyOfRot(e *entry) string {
	if e.Request != nil && len(e.Request.URLs) > 0 {
		return fmt.Sprintf("see the disk that holds it; `trayctl image retry %s` downloads it again", e.Name)
	}
	return fmt.Sprintf("see the disk that holds it; `trayctl image rm %s`, then add it again", e.Name)
}
