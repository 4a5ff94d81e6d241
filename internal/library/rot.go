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
	if e.Place == "" {
		return problem(NoSuchImage, "`trayctl image ls` shows those that there are", "image %s of pool %s is no more", e.Name, p.Name)
	}
	if err := l.strayed(p, e); err != nil {
		return err
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
	e, ok := l.entry(i.Pool, name)
	if !ok {
		e.Name = name
	}
	if p.Type == LVM && len(l.usersOf(e)) == 0 {
		done, err := l.occupy(p.Name, name)
		if err != nil {
			return err
		}
		defer done()
		if now, ok := l.entry(p.Name, name); ok {
			e = now
		} else {
			e.Place = ""
		}
	}
	return l.reading(ctx, p, e, func(file contentFile) error { return f(file, e.Size) })
}

// Verify reads an image again, and compares it with what was added. One that is another
// now can't be put into a drive any more, whatever it is called.
func (l *Library) Verify(ctx context.Context, pool, name string) (Image, error) {
	i, err := l.Image(pool, name)
	if err != nil {
		return i, err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return i, err
	}
	e, cause, err := l.reread(ctx, p, name)
	switch {
	case err != nil:
		return i, err
	case cause == "":
		return e.Image, nil
	}
	for _, other := range l.sharing(e) {
		if err := l.noteRot(ctx, p, other, cause); err != nil {
			return e.Image, err
		}
	}
	return e.Image, problem(Changed, e.Failure.Remedy, "image %s of pool %s is damaged: %s", name, p.Name, cause)
}

// reread reads an image again, and writes down what it is now; cause is how it differs
// from what was added.
func (l *Library) reread(ctx context.Context, p Pool, name string) (e *entry, cause string, err error) {
	done, err := l.occupy(p.Name, name)
	if err != nil {
		return nil, "", err
	}
	defer done()
	e, ok := l.entry(p.Name, name)
	if !ok || e.State != wire.ImageReady && !rotten(e) {
		return nil, "", problem(NotReady, "see `trayctl image show "+name+"`", "image %s is not ready", name)
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
		return e, "", l.put(e)
	case ctx.Err() != nil, errors.As(err, &known) && known.Code != Changed:
		return nil, "", err
	case !errors.As(err, &known):
		err = problem(Changed, "", "it can't be read: %w", err)
	}
	cause = err.Error()
	e.rots(cause)
	return e, cause, l.put(e)
}

// rots makes an image one whose content has changed.
func (e *entry) rots(cause string) {
	e.State = wire.ImageFailed
	e.Failure = &wire.ImageFailure{
		Code: Changed, Cause: "its content has changed since it was added: " + cause, Remedy: remedyOfRot(e), At: time.Now().UTC(),
	}
}

// noteRot writes down that another name's content has changed, too. It waits for whoever
// does something about that image: it may be going.
func (l *Library) noteRot(ctx context.Context, p Pool, other *entry, cause string) error {
	for {
		now, ok := l.entry(p.Name, other.Name)
		if !ok || now.State != wire.ImageReady || now.Place != other.Place {
			return nil
		}
		done, err := l.occupy(p.Name, other.Name)
		if err != nil {
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		defer done()
		if now, ok = l.entry(p.Name, other.Name); ok && now.State == wire.ImageReady && now.Place == other.Place {
			now.rots(cause)
			return l.put(now)
		}
		return nil
	}
}

// rotten reports whether an image has failed since its content has changed.
func rotten(e *entry) bool {
	return e.State == wire.ImageFailed && e.Failure != nil && e.Failure.Code == Changed && e.Place != ""
}

func remedyOfRot(e *entry) string {
	if e.Captured {
		return "see the disk that holds it; if its machine still is as it was, " + captureAgain(e)
	}
	if e.Request != nil && len(e.Request.URLs) > 0 {
		return fmt.Sprintf("see the disk that holds it; `trayctl image retry %s` downloads it again", e.Name)
	}
	return fmt.Sprintf("see the disk that holds it; `trayctl image rm %s`, then add it again", e.Name)
}
