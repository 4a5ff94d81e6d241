package agent

import (
	"errors"
	"os"
	"slices"
	"time"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

func (m *machines) removeSeed(name string) {
	if err := os.Remove(m.store().Path(name, machine.SeedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.a.log.Warn("cloud-init's disc can't be removed", "vm", name, "error", err)
	}
}

// How a machine ended.
type end int

const (
	endSeen   end = iota // while trayd ran
	endUnseen            // while it didn't, or wasn't connected: nobody knows what the guest did
)

// ended is told that a machine's process is no more.
func (m *machines) ended(name string, p Process, how end) {
	if m.options().Runner == nil {
		return
	}
	var r run
	if ok, err := m.a.journal.Get(runPrefix+name, &r); err != nil || !ok || r.Process != p {
		return // none of ours, it never ran, or it runs again
	}
	if m.own(name) {
		now := m.known(name, func(i *installing) {})
		if now.followed == nil && !now.off {
			how = endUnseen
		}
		if how == endUnseen {
			// Nobody knows whether it was powered off or killed: a disk that was written is
			// taken for installed, since most machines aren't killed.
			if d, err := m.store().Load(name); err == nil {
				for _, k := range d.Disks {
					if w, err := disk.Written(m.store().Path(name, machine.DiskFile(k))); err == nil && w {
						m.known(name, func(i *installing) { i.written = true })
					}
				}
			}
		}
		if now.off || how == endUnseen || now.missed {
			m.installed(name, false)
			m.firstBootOver(name)
		}
		e := Event{Type: EventVMStopped, VM: name, Detail: stoppedDetail(how, now, r)}
		switch {
		case how == endSeen && now.off:
			m.setOff(name)
		case how == endSeen && !now.killed:
			e.Type = EventVMFailed
			m.setFailed(name, e.Detail)
		}
		m.a.publish(e)
		m.a.startUnlessStopping(func() { m.tidyEnded(name) })
	}
	m.mu.Lock()
	delete(m.watch, name)
	m.mu.Unlock()
	if err := m.a.journal.Delete(runPrefix + name); err != nil {
		m.a.log.Warn("the record of a machine that has ended can't be removed", "vm", name, "error", err)
	}
}

func stoppedDetail(how end, now installing, r run) string {
	ran := ", after " + time.Since(r.Since).Round(time.Second).String()
	switch {
	case now.killed:
		return "was ended" + ran
	case how == endUnseen:
		return "ended while trayd wasn't connected to it"
	case now.off:
		return "has powered off" + ran
	}
	return "its QEMU has ended without a word" + ran + ": it was killed by somebody else, or it crashed"
}

// firstBootOver takes cloud-init's disc away.
func (m *machines) firstBootOver(name string) {
	d, err := m.store().Load(name)
	if err != nil || !slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Seed }) {
		return
	}
	m.edit(name, func(d *machine.Definition) {
		d.CDROMs = slices.DeleteFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Seed })
	})
	m.removeSeed(name)
}

// forgetSeed removes the drive of a seed whose disc has gone.
func (m *machines) forgetSeed(d *machine.Definition) error {
	gone := func(c wire.CDROM) bool { return c.Seed && c.Medium == "" }
	if !slices.ContainsFunc(d.CDROMs, gone) {
		return nil
	}
	d.CDROMs = slices.DeleteFunc(d.CDROMs, gone)
	m.removeSeed(d.Name)
	return m.store().Save(d)
}
