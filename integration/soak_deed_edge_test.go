//go:build edge

package integration_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// soakVM is a machine of a soak. Its guest has the first of its drives, and leaves another alone.
type soakVM struct {
	name   string
	vm     *qemutest.VM
	side   *qmp.Conn
	drives []*soakDrive
	// obliging guests hold the door and let it go, and eject only when they are asked to: what
	// is in their drives is what clients were told.
	obliging bool

	hand    sync.Mutex // guards below; a guest does one thing at a time
	guest   *qemutest.Guest
	ejected bool // the guest has opened the tray by itself in this round: its disc may be taken out
}

// soakDrive is what is known of a drive.
type soakDrive struct {
	vm *soakVM
	id string

	mu sync.Mutex // guards may; one client at a time changes a drive
	// may are the discs that may be in: one that a change was confirmed for, and more
	// when nobody knows what became of one. "" is none.
	may []string
}

func (d *soakDrive) name() string { return d.vm.name + "/" + d.id }

func newSoakVM(name string, obliging bool, drives ...string) *soakVM {
	v := &soakVM{name: name, obliging: obliging}
	for _, id := range drives {
		v.drives = append(v.drives, &soakDrive{vm: v, id: id, may: []string{""}})
	}
	return v
}

// boot starts the machine, again after it was killed.
func (v *soakVM) boot(s *soak) {
	left, err := filepath.Glob(filepath.Join(s.dir, "run", v.name+".*"))
	require.NoError(s.t, err)
	for _, path := range append(left, filepath.Join(s.dir, v.name+".side")) {
		_ = os.Remove(path) // the sockets of the one before
	}
	args := qemutest.IDE.With("")
	if len(v.drives) > 1 {
		args = twoDrives
	}
	v.vm, v.side = s.running(v.name, args...)
	v.guest = v.vm.Guest(s.t)
}

// die kills the machine, and starts it again with empty drives.
func (v *soakVM) die(s *soak) {
	v.hand.Lock()
	defer v.hand.Unlock()
	v.vm.Kill()
	for _, d := range v.drives {
		d.mu.Lock() // what a client does meanwhile comes to its end
		defer d.mu.Unlock()
		d.may = []string{""}
	}
	v.ejected = false
	v.boot(s)
}

// deed is what one client does.
func (s *soak) deed(choices *rand.Rand) {
	v := s.all[choices.IntN(len(s.all))]
	drive := v.drives[choices.IntN(len(v.drives))]
	discs := append(append([]string{""}, soakVolumes...), soakImages...)
	disc, image := discs[choices.IntN(len(discs))], soakImages[choices.IntN(len(soakImages))]
	how := [][]string{nil, nil, nil, {"--force"}, {"--then-force"}}[choices.IntN(5)]
	verb := []string{"change", "change", "insert"}[choices.IntN(3)]
	switch n := choices.IntN(21); {
	case n < 14:
		s.change(drive, verb, disc, how)
	case n < 15:
		s.cancel(choices.IntN(len(s.all)))
	case n < 19:
		kind := []string{"/", "/slow/", "/cut/"}[choices.IntN(3)]
		if s.code("image", "add", image, s.web.URL+kind+image+".iso") == 0 {
			s.count(&s.counts.Added)
		} else {
			s.count(&s.counts.NotAdded) // it is there, or on its way, or the line was cut
		}
	default:
		if s.code("image", "rm", image) == 0 {
			s.count(&s.counts.Removed)
		}
	}
}

// cancel cancels the first operation that can be, from that machine on.
func (s *soak) cancel(from int) {
	for _, v := range slices.Concat(s.all[from:], s.all[:from]) {
		for _, d := range v.drives {
			if s.code("cancel", d.name()) == 0 {
				s.count(&s.counts.Cancelled)
				return
			}
		}
	}
}

// medium is how a disc is asked for.
func (s *soak) medium(disc string) string {
	if slices.Contains(soakImages, disc) {
		return "image:" + disc
	}
	return s.lv(disc)
}

// code runs trayctl, however it ends.
func (s *soak) code(args ...string) int {
	cmd := s.command(args...)
	err := cmd.Run()
	if exited := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exited) {
		s.t.Error(err)
		return -1
	}
	return cmd.ProcessState.ExitCode()
}

// change changes one drive's disc and notes what may be in afterwards.
func (s *soak) change(d *soakDrive, verb, disc string, how []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	args := []string{"eject", d.name()}
	if disc != "" {
		args = []string{verb, d.name(), s.medium(disc)}
	}
	args = append(args, how...)
	switch code := s.code(args...); code {
	case 0:
		s.count(&s.counts.Done)
		d.may = []string{disc}
	case 5:
		s.count(&s.counts.Incomplete)
		d.may = []string{disc}
	case 1, 4: // as it was
		s.count(&s.counts.Refused)
		time.Sleep(100 * time.Millisecond) // trayd is down, or its machine is
	case 3:
		s.count(&s.counts.Unknown)
		if !slices.Contains(d.may, disc) {
			d.may = append(d.may, disc)
		}
	default:
		s.t.Errorf("%s: exit code %d", strings.Join(args, " "), code)
	}
}

// guests plays the guests: they hold the door and let it go, open the tray and close it, and
// most of the time do what they are asked to, as Linux does.
func (s *soak) guests(ctx context.Context, choices *rand.Rand) {
	for ctx.Err() == nil {
		v := s.all[choices.IntN(len(s.all))]
		if v.plays(choices.IntN(12)) {
			s.count(&s.counts.GuestEjects)
		}
	}
}

// plays does one thing, and reports whether that has opened the tray.
func (v *soakVM) plays(what int) (opened bool) {
	v.hand.Lock()
	defer v.hand.Unlock()
	switch what {
	case 0, 1:
		v.guest.Lock()
	case 2:
		v.guest.Unlock()
	case 3:
		if !v.obliging {
			opened = v.guest.Eject() == ""
		}
	case 4:
		if !v.obliging { // it would take back what it was asked for
			v.guest.Load()
		}
	default:
		if v.guest.EjectRequested() {
			v.guest.Unlock()
			opened = v.guest.Eject() == ""
		}
	}
	v.ejected = v.ejected || opened && !v.obliging
	return opened
}
