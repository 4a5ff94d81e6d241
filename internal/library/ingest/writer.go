package ingest

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// window is how much is sent to the disk at once, in bytes. The one before it is waited
	// for: at most two are in the page cache and not on the disk.
	window = 8 << 20
	// Between two flushes of the disk's own cache; what is later than the last is read again
	// after a loss of power.
	flushBytes = 64 << 20
	flushTime  = 10 * time.Second
)

// writer writes to the file and keeps the page cache short: what was written goes to the
// disk at once, so that the end has little to wait for, and is then dropped from the cache,
// where it would push out what the machines read.
type writer struct {
	w        *os.File
	start    int64
	at       int64 // the next byte goes there
	sent     int64 // up to here, since start in whole windows, it is on its way to the disk
	dropped  int64 // up to here it is there, as bytes since start
	synced   int64 // up to here the disk has been flushed
	lastSync time.Time
	durable  func(int64)
}

func (w *writer) write(p []byte) error {
	n, err := w.w.WriteAt(p, w.at)
	w.at += int64(n)
	if err != nil {
		return err
	}
	for w.at-w.start-w.sent >= window {
		if err := w.sendWindow(); err != nil {
			return err
		}
	}
	if w.at-w.synced >= flushBytes || time.Since(w.lastSync) >= flushTime {
		return w.flush()
	}
	return nil
}

// sendWindow begins to write back the window that is full, and ends that of the one before.
func (w *writer) sendWindow() error {
	fd := int(w.w.Fd())
	if err := early(unix.SyncFileRange(fd, w.start+w.sent, window, unix.SYNC_FILE_RANGE_WRITE)); err != nil {
		return err
	}
	if w.sent > w.dropped {
		err := early(unix.SyncFileRange(fd, w.start+w.dropped, w.sent-w.dropped,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER))
		if err != nil {
			return err
		}
		_ = unix.Fadvise(fd, w.start+w.dropped, w.sent-w.dropped, unix.FADV_DONTNEED)
		w.dropped = w.sent
	}
	w.sent += window
	return nil
}

// early is what a write-back that was begun early says about the disk. Where it can't be
// begun early, the end waits for it.
func early(err error) error {
	for _, disk := range []error{unix.EIO, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, disk) {
			return fmt.Errorf("writing back: %w", err)
		}
	}
	return nil
}

// flush makes all durable that was written. It is fdatasync(2), which writes the length of
// the file, too, when that has changed.
func (w *writer) flush() error {
	if w.at == w.synced && w.at > w.start {
		return nil
	}
	for {
		err := unix.Fdatasync(int(w.w.Fd()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("making it durable: %w", err)
		}
		break
	}
	w.synced, w.lastSync = w.at, time.Now()
	if w.durable != nil {
		w.durable(w.at)
	}
	return nil
}

// finish is called when nothing more comes.
func (w *writer) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	_ = unix.Fadvise(int(w.w.Fd()), w.start+w.dropped, w.at-w.start-w.dropped, unix.FADV_DONTNEED)
	return nil
}
