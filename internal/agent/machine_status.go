package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// stoppedVMs shows the machines of trayd's own that aren't among those that run.
func (m *machines) stoppedVMs(ctx context.Context, running []VMStatus) []VMStatus {
	if m.options().Runner == nil {
		return nil
	}
	names, err := m.store().Names()
	if err != nil {
		m.a.log.Warn("the machines can't be listed", "error", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(running, func(v VMStatus) bool { return v.Name == name })
	})
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	all := make([]VMStatus, len(names))
	atOnce := make(chan struct{}, maxAsked) // a token for each question under way
	var work sync.WaitGroup
	for i, name := range names {
		atOnce <- struct{}{}
		work.Go(func() {
			all[i] = m.stoppedVM(ctx, name)
			<-atOnce
		})
	}
	work.Wait()
	return all
}

// maxAsked is how many machines' units the service manager is asked for at once: it answers
// one after the other all the same.
const maxAsked = 8

// isStopped reports whether a VM is a machine of trayd's own that nobody is attached to, and
// that isn't known to run.
func (m *machines) isStopped(name string) bool {
	if !m.own(name) {
		return false
	}
	m.a.mu.Lock()
	v := m.a.vms[name]
	m.a.mu.Unlock()
	return v == nil || v.hidden()
}

// stoppedVM shows a machine that nobody is attached to.
func (m *machines) stoppedVM(ctx context.Context, name string) VMStatus {
	out := VMStatus{Name: name, State: wire.VMStopped, Drives: []DriveStatus{}, Own: true}
	if st, err := m.options().Runner.State(ctx, name); err != nil {
		out.State, out.Reason, out.Next = "unreachable", err.Error(), "see the journal of trayd"
	} else if st.Running {
		out.State, out.PID = "starting", st.PID
	} else if why := m.whyFailed(name, st); why != "" {
		out.State, out.Reason, out.Next = wire.VMFailed, why, "`trayctl vm start "+name+"` starts it again"
	}
	d, err := m.store().Load(name)
	if err != nil {
		out.State, out.Reason, out.Next = wire.VMFailed, err.Error(), "mend "+m.store().Path(name)
		return out
	}
	for _, c := range d.CDROMs {
		s := DriveStatus{VM: name, Name: c.Name, Bus: c.Bus, Changeable: !c.Seed, State: StateEmpty, Reason: "the machine is stopped: a change is of its definition"}
		if c.Medium != "" {
			s.State, s.Medium = StateLoaded, &MediumStatus{Name: c.Medium, ReadOnly: true, Ours: true}
		}
		if d := m.a.lookUpDrive(name, c.Name); d != nil {
			s.Last = d.record().Last
			s.Releasing = d.releasing(d.record())
		}
		out.Drives = append(out.Drives, s)
	}
	return out
}

// lookUpDrive is a drive that the agent knows; nil when it doesn't.
func (a *Agent) lookUpDrive(vmName, name string) *drive {
	a.mu.Lock()
	v := a.vms[vmName]
	a.mu.Unlock()
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.drives[name]
}

// show fills in all that is known of a machine of trayd's own.
func (m *machines) show(ctx context.Context, out *VMStatus) {
	if !m.own(out.Name) {
		return
	}
	o := m.options()
	out.Own = true
	ms := &wire.MachineStatus{Dir: o.Store.Path(out.Name), Disks: []wire.DiskStatus{}}
	if o.Runner.Name() == launch.RunSystemd {
		ms.Unit = launch.Unit(out.Name)
	}
	out.Machine = ms
	d, err := o.Store.Load(out.Name)
	if err != nil {
		ms.Failure = err.Error()
		return
	}
	ms.Definition = *d
	written := make(map[string]bool)
	for _, k := range d.Disks {
		st := wire.DiskStatus{Name: k.Name, File: o.Store.Path(d.Name, machine.DiskFile(k))}
		var sys syscall.Stat_t
		if err := syscall.Stat(st.File, &sys); err != nil {
			ms.Notes = append(ms.Notes, fmt.Sprintf("disk %s can't be had: %v", k.Name, err))
		} else {
			st.Allocated = sys.Blocks * 512
		}
		st.Written, _ = disk.Written(st.File) // what can't be read has been told of
		written[k.Name] = st.Written || k.Image != ""
		ms.Disks = append(ms.Disks, st)
	}
	if st, err := o.Runner.State(ctx, d.Name); err == nil && !st.Running {
		ms.Failure = m.whyFailed(d.Name, st)
	}
	if _, err := m.command(d); err != nil {
		ms.Notes = append(ms.Notes, err.Error()+": "+nextOf(err, "see `trayctl vm show`"))
	}
	m.showRunning(ctx, d, out, written)
	ms.Notes = append(ms.Notes, machine.WhyNotBooted(d, m.inDrives(d, out), written)...)
	if ms.Screen == wire.ScreenBlank {
		ms.Notes = append(ms.Notes, blankNotes(d)...)
	}
}

// showRunning fills in what only a running machine has.
func (m *machines) showRunning(ctx context.Context, d *machine.Definition, out *VMStatus, written map[string]bool) {
	v, err := m.a.lookUpVM(d.Name)
	if err != nil {
		return
	}
	s, release := v.current()
	if s == nil {
		return
	}
	defer release()
	dir := filepath.Join(m.options().RunDir, d.Name)
	out.Machine.Sockets = make(map[string]string)
	for _, name := range []string{machine.OperatorSocket, machine.VNCSocket, machine.SerialSocket, machine.AgentSocket} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			out.Machine.Sockets[name] = filepath.Join(dir, name)
		}
	}
	if m.known(d.Name, func(*installing) {}).written {
		for _, k := range d.Disks {
			written[k.Name] = true
		}
	}
	switch out.State {
	case ioError:
		out.Machine.Notes = append(out.Machine.Notes, "it is paused, since its disk could not be written: is the host's full? free space, then `trayctl vm start "+d.Name+"` lets it run on")
	case paused:
		out.Machine.Notes = append(out.Machine.Notes, "it is paused: `trayctl vm start "+d.Name+"` lets it run on")
	case "running":
	default:
		return
	}
	out.Machine.Screen = s.screenState(ctx)
}

// inDrives is what the drives have, and what boots from that.
func (m *machines) inDrives(d *machine.Definition, out *VMStatus) map[string]machine.InDrive {
	in := make(map[string]machine.InDrive)
	for _, c := range d.CDROMs {
		if c.Seed {
			continue
		}
		has := machine.InDrive{Medium: c.Medium}
		if i := slices.IndexFunc(out.Drives, func(s DriveStatus) bool { return s.Name == c.Name }); i >= 0 && out.Answered {
			has.Medium = ""
			if med := out.Drives[i].Medium; med != nil {
				has.Medium = med.Name
			}
		}
		if has.Medium != "" {
			if boot, err := m.a.bootOf(has.Medium); err != nil && !out.Answered {
				has.Err = err.Error()
			} else {
				has.Boot = boot
			}
		}
		in[c.Name] = has
	}
	return in
}

// bootOf is what boots from a medium; nil where that isn't known without turning on a volume.
func (a *Agent) bootOf(medium string) (*wire.ImageBoot, error) {
	src, err := a.openMedium(medium, a.opts(), true)
	if err != nil {
		return nil, err
	}
	if src.file == nil {
		if src.place != nil {
			if i, err := a.images.Image("", medium[len("image:"):]); err == nil {
				return i.Boot, nil
			}
		}
		return nil, nil
	}
	defer src.file.Close()
	report, err := iso.Inspect(src.file, src.medium.Size)
	if err != nil {
		return nil, nil // said when it is put in
	}
	return &wire.ImageBoot{BIOS: report.Boot.BIOS, UEFIx64: report.Boot.UEFIx64, UEFIarm64: report.Boot.UEFIarm64}, nil
}

// blankNotes say what to look at when nothing is drawn.
func blankNotes(d *machine.Definition) []string {
	notes := []string{"the screen is blank: the guest has drawn nothing yet, or has switched the display off"}
	if d.Serial {
		notes = append(notes, "it may speak on its serial console: `trayctl vm console "+d.Name+" --serial`, `trayctl vm log "+d.Name+"`")
	}
	return notes
}

// SerialLog opens what a machine has said on its serial console.
func (a *Agent) SerialLog(name string) (io.ReadSeekCloser, error) {
	if _, err := a.machines.load(name); err != nil {
		return nil, err
	}
	f, err := os.Open(a.machines.store().Path(name, machine.SerialLog))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Error{Code: NoScreen, VM: name, Err: err, Detail: "VM " + name + " has said nothing on its serial console", Next: "has it run, and has it one (serial = true)?"}
	}
	if err != nil {
		return nil, machineError(name, err)
	}
	return f, nil
}

// ConsoleSocket is the path of a running machine's screen (VNC) or serial console.
func (a *Agent) ConsoleSocket(ctx context.Context, name, socket string) (string, error) {
	d, err := a.machines.load(name)
	if err != nil {
		return "", err
	}
	if socket == machine.VNCSocket && !d.VNC || socket == machine.SerialSocket && !d.Serial {
		return "", &Error{Code: NoScreen, VM: name, Detail: fmt.Sprintf("VM %s has no %s", name, socket), Next: fmt.Sprintf("`trayctl vm set %s --%s` while it is stopped", name, socket)}
	}
	st, err := a.machines.running(ctx, name)
	if err != nil {
		return "", err
	}
	if !st.Running {
		return "", &Error{Code: VMNotRunning, VM: name, Detail: "VM " + name + " doesn't run", Next: "`trayctl vm start " + name + "`"}
	}
	return filepath.Join(a.machines.options().RunDir, name, socket), nil
}

// stoppedDrive shows a drive of a machine that nobody is attached to.
func (m *machines) stoppedDrive(ctx context.Context, name, drive string) (DriveStatus, error) {
	d, err := m.load(name)
	if err != nil {
		return DriveStatus{}, err
	}
	i, err := definedDrive(d, drive)
	if err != nil {
		return DriveStatus{}, err
	}
	for _, s := range m.stoppedVM(ctx, name).Drives {
		if s.Name == d.CDROMs[i].Name {
			return s, nil
		}
	}
	return DriveStatus{}, newError(NoSuchDrive, "try again", "drive %s/%s has just gone", name, drive)
}
