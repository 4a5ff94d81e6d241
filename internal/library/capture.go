package library

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/wire"
)

// CaptureRequest asks for a disk image that is a copy of a machine's disk.
type CaptureRequest struct {
	Name string
	Pool string // "": the default one
	// Source is the absolute path of the machine's disk, which nobody may write to until the
	// capture has ended; SourceFormat is what it is, and isn't looked for in it: a machine
	// could have written anything there.
	Source       string
	SourceFormat disk.Format
	// Base is the file that the disk stands on. A disk whose header says otherwise is
	// refused: its machine would have any file of the host copied.
	Base         disk.Base
	Compress     bool   // the clusters, with zstd where qemu-img has it: a third to a half, for three times the time
	Origin       string // vm:NAME/DISK
	OSType, Site string
}

// Capture begins to copy a machine's disk into a pool, as an image that stands alone, and
// returns it as it is then. It is a job like a download, for Cancel and Wait; how it ends is
// an Event. Unlike a download it can't be gone on with: when trayd dies or stops before the
// image is ready, nothing of it is left.
func (l *Library) Capture(r CaptureRequest) (Image, error) {
	p, e, err := l.fresh(&Request{Name: r.Name, Pool: r.Pool, OSType: r.OSType, Site: r.Site, Format: string(disk.QCOW2)}, r.Origin)
	if err != nil {
		return Image{}, err
	}
	if !filepath.IsAbs(r.Source) || kindOf(string(r.SourceFormat)) != wire.ImageDisk {
		return Image{}, problem(BadRequest, "give its absolute path, and qcow2 or raw", "a disk %q of format %q can't be captured", r.Source, r.SourceFormat)
	}
	done, err := l.occupy(p.Name, e.Name)
	if err != nil {
		return Image{}, err
	}
	defer done()
	if old, ok := l.entry(p.Name, e.Name); ok {
		if old.State != wire.ImageFailed || !old.Captured || old.Place != "" {
			return Image{}, exists(p, e.Name)
		}
	}
	if st, err := os.Stat(r.Source); err != nil || st.IsDir() {
		return Image{}, problem(Unreadable, "see `trayctl vm show`", "the disk %s can't be captured: %w", r.Source, notAFile(err))
	}
	ctx, err := l.enter()
	if err != nil {
		return Image{}, err
	}
	begun := false
	defer func() {
		if !begun {
			l.work.Done()
		}
	}()
	e.Captured = true
	j, ctx := l.newJob(ctx, p, e, nil)
	j.format = string(disk.QCOW2)
	if err := j.save(); err != nil {
		j.end(err)
		return Image{}, err
	}
	l.failPoint("capture-registered")
	begun = true
	go func() {
		defer l.work.Done()
		j.capture(ctx, r)
	}()
	return j.image(), nil
}

func notAFile(err error) error {
	if err == nil {
		return errors.New("it is a directory")
	}
	return err
}

// capture copies a disk, to whatever end.
func (j *job) capture(ctx context.Context, r CaptureRequest) {
	err := j.l.takeCapture(ctx)
	if err == nil {
		err = j.acquire(ctx, &expectation{}, j.conversion(r))
		<-j.l.captures
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errCancelled):
		err = problem(Cancelled, "", "it was cancelled")
		j.failed(clean, err)
	case ctx.Err() != nil: // trayd stops
		if e := j.undo(clean, nil); e != nil {
			j.l.log.Warn("what is left of a capture can't be removed yet", "image", j.image().String(), "error", e)
		}
		j.end(err)
		return
	default:
		j.failed(clean, err)
	}
	i := j.image()
	j.end(err)
	j.l.tell(Event{Image: i, Err: err})
}

// takeCapture waits until one capture less than may be is under way.
func (l *Library) takeCapture(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case l.captures <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// captureAgain is what to do about a capture that is of no use.
func captureAgain(e *entry) string {
	return "`trayctl image rm " + e.Name + "`, then capture it again"
}

// conversion gets the bytes from a machine's disk.
func (j *job) conversion(r CaptureRequest) source {
	return func(ctx context.Context, open func(int64) (*os.File, error), onto func() ([]io.Writer, error)) (int64, error) {
		o, _ := j.l.configured()
		if err := saysBeneath(r); err != nil {
			return 0, err
		}
		tool := disk.Tool(or(o.QemuImg, "qemu-img"))
		if !r.Compress { // by qemu-img where it has to be
			if n, err := j.copyFlat(ctx, tool, r, open, onto); !errors.Is(err, disk.ErrNotPlain) {
				return n, err
			}
		}
		need, err := tool.Measure(ctx, r.Source, r.SourceFormat)
		if err != nil {
			return 0, j.conversionFailed(r, err)
		}
		if o.MaxSize > 0 && need > o.MaxSize {
			return 0, problem(Invalid, "raise max_size in [library] if it is meant to be so large", "it would have up to %d bytes, and at most %d are taken", need, o.MaxSize)
		}
		f, err := open(need)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		err = tool.Convert(ctx, r.Source, r.SourceFormat, f.Name(), r.Compress, func(share float64) {
			now := &wire.ImageProgress{Bytes: int64(share * float64(need)), Total: need}
			if passed := time.Since(began).Seconds(); passed > 0 {
				now.Rate = int64(float64(now.Bytes) / passed)
			}
			if now.Rate > 0 {
				now.Left = (need - now.Bytes) / now.Rate
			}
			j.change(func(e *entry) { e.Progress = now })
		})
		if err != nil {
			return 0, j.conversionFailed(r, err)
		}
		j.l.failPoint("capture-converted")
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		all, err := onto()
		if err != nil {
			return 0, err
		}
		return st.Size(), j.settle(ctx, f, st.Size(), all)
	}
}

// saysBeneath wants a disk to stand on what its machine's definition says, and on nothing else.
func saysBeneath(r CaptureRequest) error {
	if r.SourceFormat != disk.QCOW2 {
		return nil
	}
	err := disk.Beneath(r.Source, r.Base)
	var e *disk.Error
	switch {
	case errors.As(err, &e) && (e.Reason == disk.BackingFile || e.Reason == disk.ExternalData):
		return problem(DiskRefused, e.Next, "%s can't be captured: %w", r.Source, err)
	case e != nil:
		return problem(DiskRefused, "the machine's QEMU wrote that: start it, and look into it", "%s can't be captured: %w", r.Source, err)
	case err != nil:
		return problem(Unreadable, "let trayd's user read it", "%w", err)
	}
	return nil
}

// copyFlat copies a disk as one stream, which is hashed while it is written: qemu-img's output
// can only be hashed afterwards, which takes half as long again. The error is
// disk.ErrNotPlain, before anything is opened, for what only qemu-img can read.
func (j *job) copyFlat(ctx context.Context, tool disk.Tool, r CaptureRequest, open func(int64) (*os.File, error), onto func() ([]io.Writer, error)) (int64, error) {
	o, _ := j.l.configured()
	extents, err := tool.Map(ctx, r.Source, r.SourceFormat)
	if err != nil {
		return 0, j.conversionFailed(r, err)
	}
	var files []io.ReaderAt
	size := int64(0) // that the guest sees
	for i, path := range []string{r.Source, r.Base.Path} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return 0, j.conversionFailed(r, err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return 0, j.conversionFailed(r, err)
		}
		if i == 0 {
			size = st.Size()
			if info, err := disk.Probe(f, st.Size()); r.SourceFormat == disk.QCOW2 && (err == nil || info.BackingFile != "") {
				size = info.VirtualSize
			}
		}
		files = append(files, f)
	}
	flat, err := disk.NewFlat(ctx, files, extents, size)
	if errors.Is(err, disk.ErrNotPlain) {
		return 0, err
	}
	if err != nil {
		return 0, j.conversionFailed(r, err)
	}
	if o.MaxSize > 0 && flat.Size() > o.MaxSize {
		return 0, problem(Invalid, "raise max_size in [library] if it is meant to be so large", "it would have %d bytes, and at most %d are taken", flat.Size(), o.MaxSize)
	}
	to, err := open(flat.Size())
	if err != nil {
		return 0, err
	}
	all, err := onto()
	if err != nil {
		return 0, err
	}
	count := &counter{j: j, total: flat.Size(), began: time.Now()}
	n, err := ingest.Copy(ctx, to, flat, ingest.Options{Limit: flat.Size()}, append(all, count)...)
	j.l.failPoint("capture-converted")
	if err != nil && ctx.Err() == nil {
		return n, j.conversionFailed(r, err)
	}
	return n, err
}

// settle makes a file durable, and hashes it meanwhile from the page cache.
func (j *job) settle(ctx context.Context, f *os.File, size int64, onto []io.Writer) error {
	durable := make(chan error, 1)
	go func() { durable <- f.Sync() }()
	err := ingest.HashFile(ctx, f, size, onto...)
	if synced := <-durable; synced != nil {
		err = synced
	}
	if err != nil && ctx.Err() == nil {
		return problem(Failed, "see the disk that holds pool "+j.pool.Name, "it can't be made durable: %w", err)
	}
	return err
}

// fullBelow is how little room, in bytes, is why a conversion has failed. The tool's own
// words for it aren't the same in all versions.
const fullBelow = 1 << 20

// conversionFailed says why a disk can't be captured, and what to do.
func (j *job) conversionFailed(r CaptureRequest, err error) error {
	var at unix.Statfs_t
	if unix.Statfs(j.pool.Path, &at) == nil && int64(at.Bavail)*at.Bsize < fullBelow {
		return problem(NoSpace, "free space, or use another pool", "pool %s is full: %w", j.pool.Name, err)
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	if next, is := disk.NotInstalled(err); is {
		return problem(Failed, next, "%w", err)
	}
	return problem(Failed, "stop the machine first, if it runs; `qemu-img check -f "+string(r.SourceFormat)+" "+r.Source+"` says whether its disk is sound", "%s can't be captured: %w", r.Source, err)
}
