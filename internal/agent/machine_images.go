package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// lent is a disk image that a machine is being made from.
type lent struct {
	image  string // as it is written into the definition: image:POOL/NAME
	path   string
	format string
	size   int64 // of the disk, in bytes
	done   func()
}

// lend finds a disk image, and keeps it where it is until done is called.
func (m *machines) lend(image string) (*lent, error) {
	place, i, done, err := m.a.images.Lend(imageName(image))
	if err != nil {
		return nil, imageError(image, err)
	}
	return &lent{image: i.String(), path: place.Path, format: i.Format, size: i.VirtualSize, done: done}, nil
}

// copyDisk makes a disk of an image: sharing its blocks where the file system can.
func (m *machines) copyDisk(ctx context.Context, file string, base *lent) error {
	from, err := os.Open(base.path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(disk.Copy(ctx, to, from, nil), to.Close()); err != nil {
		return fmt.Errorf("%s can't be copied: %w", base.image, err)
	}
	return nil
}

// CaptureVM begins to copy a stopped machine's disk into the library, as an image that
// stands alone. A running machine is refused, or powered off first where the request says so.
// The machine stays, and can't be started before the copy is made.
func (a *Agent) CaptureVM(ctx context.Context, name string, r wire.CaptureRequest, by Caller) (i library.Image, err error) {
	t := a.trace(by, "capture", "vm", name, "image", r.Name)
	defer func() { t.end(err, "pool", cmp.Or(i.Pool, r.Pool)) }()
	var begun atomic.Pointer[library.Image]
	done, err := a.machines.turnUntil(name, "captured", func() bool {
		i := begun.Load()
		return i != nil && !a.images.UnderWay(i.Pool, i.Name)
	})
	if err != nil {
		return library.Image{}, err
	}
	i, err = a.machines.capture(ctx, name, r)
	if err != nil {
		done()
		return i, err
	}
	image := i // what is returned may change after this
	begun.Store(&image)
	a.imageJob("capture", name, i, by)
	a.startUnlessStopping(func() {
		defer done()
		_, _ = a.images.Wait(a.ctx, image.Pool, image.Name) // how it ends is told by an event
	})
	return i, nil
}

func (m *machines) capture(ctx context.Context, name string, r wire.CaptureRequest) (library.Image, error) {
	d, err := m.load(name)
	if err != nil {
		return library.Image{}, err
	}
	if _, err := diskToCapture(d, r.Disk); err != nil {
		return library.Image{}, err
	}
	if _, err := m.a.images.Image(r.Pool, r.Name); err == nil {
		return library.Image{}, newError(ImageExists, "choose another name, or remove it: `trayctl image rm "+r.Name+"`", "there is an image %s already", r.Name)
	}
	err = m.stopped(ctx, name, "captured")
	if CodeOf(err) == VMRunning && r.Shutdown {
		var wait *time.Duration
		if r.Wait != "" {
			limit, err := time.ParseDuration(r.Wait)
			if err != nil {
				return library.Image{}, newError(BadRequest, "use a duration such as 2m", "wait: %w", err)
			}
			wait = &limit
		}
		_, err = m.stop(ctx, name, wait, false)
	} else if CodeOf(err) == VMRunning {
		var e *Error
		errors.As(err, &e)
		named := *e
		named.Next = "power it off, or let --shutdown do that: `trayctl image capture " + name + " --name " + r.Name + " --shutdown`"
		err = &named
	}
	if err != nil {
		return library.Image{}, err
	}
	if d, err = m.load(name); err != nil {
		return library.Image{}, err
	}
	k, err := diskToCapture(d, r.Disk)
	if err != nil {
		return library.Image{}, err
	}
	i, err := m.a.images.Capture(library.CaptureRequest{
		Name: r.Name, Pool: r.Pool, Source: m.store().Path(name, machine.DiskFile(k)), SourceFormat: disk.Format(k.Format), Base: baseOf(k),
		Compress: r.Compress, Origin: "vm:" + name + "/" + k.Name,
	})
	return i, forImage(err)
}

// baseOf is what a disk stands on, by its machine's definition.
func baseOf(k wire.Disk) disk.Base {
	if !k.Linked {
		return disk.Base{}
	}
	return disk.Base{Path: k.Base, Format: disk.Format(k.BaseFormat)}
}

// diskToCapture is the disk of that name, or the first.
func diskToCapture(d *machine.Definition, name string) (wire.Disk, error) {
	i := slices.IndexFunc(d.Disks, func(k wire.Disk) bool { return name == "" || k.Name == name })
	if i >= 0 {
		return d.Disks[i], nil
	}
	if name == "" {
		return wire.Disk{}, &Error{Code: BadRequest, VM: d.Name, Detail: "VM " + d.Name + " has no disk", Next: "there is nothing to capture"}
	}
	return wire.Disk{}, &Error{Code: BadRequest, VM: d.Name, Detail: fmt.Sprintf("VM %s has no disk %s", d.Name, name), Next: "see `trayctl vm show " + d.Name + "`"}
}

// imageName is an image's name as the library takes it.
func imageName(image string) string {
	const kind = "image:"
	if len(image) > len(kind) && image[:len(kind)] == kind {
		return image[len(kind):]
	}
	return image
}
