package state

import (
	"errors"
	"sync"
)

var errInjected = errors.New("injected")

// A faultDisk is the real disk with faults by name: "open", "create", "write", "sync", "truncate", "reserve",
// "rename", "syncdir". A fault with dead set is the process's last act: nothing works afterwards.
type faultDisk struct {
	osDisk
	mu     sync.Mutex
	faults map[string]fault
	calls  map[string]int
	dead   bool
}

type fault struct {
	after int   // so many calls pass before
	err   error // errInjected when nil
	short int   // of a write: bytes that get through all the same
	dead  bool
	times int // calls that fail; all when 0
}

func newFaultDisk() *faultDisk {
	return &faultDisk{faults: map[string]fault{}, calls: map[string]int{}}
}

func (d *faultDisk) set(name string, f fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[name] = 0
	d.faults[name] = f
}

func (d *faultDisk) count(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[name]
}

// hit counts a call and says whether it fails.
func (d *faultDisk) hit(name string) (fault, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[name]++
	if d.dead {
		return fault{err: errInjected}, true
	}
	f, ok := d.faults[name]
	if !ok || d.calls[name] <= f.after || f.times > 0 && d.calls[name] > f.after+f.times {
		return f, false
	}
	d.dead = f.dead
	if f.err == nil {
		f.err = errInjected
	}
	return f, true
}

func (d *faultDisk) open(path string) (file, error) {
	if f, bad := d.hit("open"); bad {
		return nil, f.err
	}
	f, err := d.osDisk.open(path)
	if err != nil {
		return nil, err
	}
	return faultFile{f, d}, nil
}

func (d *faultDisk) create(path string) (file, error) {
	if f, bad := d.hit("create"); bad {
		return nil, f.err
	}
	f, err := d.osDisk.create(path)
	if err != nil {
		return nil, err
	}
	return faultFile{f, d}, nil
}

func (d *faultDisk) rename(from, to string) error {
	if f, bad := d.hit("rename"); bad {
		return f.err
	}
	return d.osDisk.rename(from, to)
}

func (d *faultDisk) syncDir(dir string) error {
	if f, bad := d.hit("syncdir"); bad {
		return f.err
	}
	return d.osDisk.syncDir(dir)
}

type faultFile struct {
	file
	disk *faultDisk
}

func (f faultFile) WriteAt(p []byte, off int64) (int, error) {
	if fault, bad := f.disk.hit("write"); bad {
		n, _ := f.file.WriteAt(p[:min(fault.short, len(p))], off)
		return n, fault.err
	}
	return f.file.WriteAt(p, off)
}

func (f faultFile) datasync() error {
	if fault, bad := f.disk.hit("sync"); bad {
		return fault.err
	}
	return f.file.datasync()
}

func (f faultFile) Truncate(size int64) error {
	if fault, bad := f.disk.hit("truncate"); bad {
		return fault.err
	}
	return f.file.Truncate(size)
}

func (f faultFile) reserve(offset, length int64) error {
	if fault, bad := f.disk.hit("reserve"); bad {
		return fault.err
	}
	return f.file.reserve(offset, length)
}
