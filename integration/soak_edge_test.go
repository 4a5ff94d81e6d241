//go:build edge

package integration_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// How a soak is asked for (`make soak`). The defaults are for CI.
var (
	soakTime = flag.Duration("soak", 15*time.Second, "how long TestSoak goes on")
	soakVMs  = flag.Int("soak-vms", 4, "how many machines it has")
	soakSeed = flag.Uint64("soak-seed", 0, "what its choices begin with; 0 is at random")
)

// soakDiscs are the volumes that all machines share.
var soakDiscs = []string{"S1", "S2", "S3", "S4", "S5"}

// soakVM is a machine of a soak and what is known of its drive.
type soakVM struct {
	name string
	vm   *qemutest.VM
	side *qmp.Conn

	mu sync.Mutex // guards below; one client at a time changes a drive
	// may are the discs that may be in: one that a change was confirmed for, and more
	// when nobody knows what became of one. "" is none.
	may []string
}

// TestSoak has several clients change random discs of many machines that share volumes,
// while trayd and machines are killed. After each round everything is at rest, and QEMU,
// device-mapper and the records say the same of every drive: the disc that was last
// confirmed, on an active volume, and not one more.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("the same choices again: make soak SOAK=%s VMS=%d SEED=%d", *soakTime, *soakVMs, seed)

	r := newVolumeRigNamed(t, "soak-", soakDiscs...)
	var all []*soakVM
	for i := range *soakVMs {
		v := &soakVM{name: fmt.Sprintf("vm%d", i), may: []string{""}}
		v.boot(r)
		all = append(all, v)
	}
	choices := rand.New(rand.NewPCG(seed, 0))
	var counts soakCounts
	begin := time.Now()
	for round := 0; time.Since(begin) < *soakTime; round++ {
		r.start("")
		r.up()
		counts.round(r, all, rand.New(rand.NewPCG(seed, choices.Uint64())))
		r.rest(all)
		t.Logf("%s: %+v", time.Since(begin).Round(time.Second), counts.tally)
		r.stop()
		r.log.Reset() // only the last round's is of interest
	}
	require.NotZero(t, counts.Done)

	r.start("")
	r.up()
	for _, v := range all {
		r.must("eject", v.name)
	}
	r.active()
	r.ok()
}

// boot starts the machine, again after it was killed.
func (v *soakVM) boot(r *volumeRig) {
	left, err := filepath.Glob(filepath.Join(r.dir, "run", v.name+".*"))
	require.NoError(r.t, err)
	for _, path := range append(left, filepath.Join(r.dir, v.name+".side")) {
		_ = os.Remove(path) // the sockets of the one before
	}
	v.vm, v.side = r.running(v.name, qemutest.IDE.With("")...)
}

// soakCounts are what happened.
type soakCounts struct {
	mu sync.Mutex // guards below
	tally
}

type tally struct{ Rounds, Done, Refused, Unknown, Incomplete, TraydKilled, MachinesKilled int }

func (c *soakCounts) add(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

const (
	soakClients = 4
	soakChanges = 5 // of each client in a round
)

// round has the clients at work, and kills meanwhile.
func (c *soakCounts) round(r *volumeRig, all []*soakVM, choices *rand.Rand) {
	c.add(&c.Rounds)
	var clients sync.WaitGroup
	for range soakClients {
		mine := rand.New(rand.NewPCG(choices.Uint64(), 0)) // no client's choices depend on the others' pace
		clients.Go(func() {
			for range soakChanges {
				v, disc := all[mine.IntN(len(all))], append([]string{""}, soakDiscs...)[mine.IntN(len(soakDiscs)+1)]
				c.change(r, v, disc, mine.IntN(3) == 0)
			}
		})
	}
	killTrayd, killVM, pause := choices.IntN(2) == 0, choices.IntN(3) == 0, time.Duration(choices.IntN(4000))*time.Millisecond
	victim := all[choices.IntN(len(all))]
	time.Sleep(pause)
	if killTrayd {
		c.add(&c.TraydKilled)
		r.kill()
		r.start("")
	}
	if killVM { // in whatever is going on
		c.add(&c.MachinesKilled)
		victim.vm.Kill()
		victim.mu.Lock()
		victim.may = []string{""}
		victim.boot(r)
		victim.mu.Unlock()
	}
	clients.Wait()
}

// change changes one machine's disc and notes what may be in afterwards.
func (c *soakCounts) change(r *volumeRig, v *soakVM, disc string, force bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	args := []string{"eject", v.name}
	if disc != "" {
		args = []string{"change", v.name, r.lv(disc)}
	}
	if force {
		args = append(args, "--force")
	}
	cmd := r.command(args...)
	err := cmd.Run()
	if exited := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exited) {
		r.t.Error(err)
		return
	}
	switch code := cmd.ProcessState.ExitCode(); code {
	case 0:
		c.add(&c.Done)
		v.may = []string{disc}
	case 5:
		c.add(&c.Incomplete)
		v.may = []string{disc}
	case 1, 4: // as it was
		c.add(&c.Refused)
		time.Sleep(100 * time.Millisecond) // trayd is down, or its machine is
	case 3:
		c.add(&c.Unknown)
		if !slices.Contains(v.may, disc) {
			v.may = append(v.may, disc)
		}
	default:
		r.t.Errorf("%v: exit code %d", args, code)
	}
}

// rest waits until nothing is under way, and then compares what everybody says.
func (r *volumeRig) rest(all []*soakVM) {
	t := r.t
	t.Helper()
	r.up()
	require.Eventually(t, func() bool {
		var vms []agent.VMStatus
		if r.get("/v1/vms", &vms) != nil || len(vms) != len(all) {
			return false
		}
		for _, rec := range r.records() {
			if rec.Change != nil || rec.Releasing != nil {
				return false
			}
		}
		for _, v := range vms {
			if !v.Answered || slices.ContainsFunc(v.Drives, func(d agent.DriveStatus) bool {
				return d.Operation != nil || d.Tray != "closed" || len(d.Releasing) > 0 || d.State != agent.StateEmpty && d.State != agent.StateLoaded
			}) {
				return false
			}
		}
		return true
	}, time.Minute, poll, "no rest")
	records := r.records()
	used := make(map[string]bool)
	for _, v := range all {
		d := r.look(v.name + "/cd0")
		in, nodes := "", []string(nil)
		if d.Medium != nil {
			require.True(t, d.Medium.Ours, "%s: %+v", v.name, d.Medium)
			in = d.Medium.VolumeID
			require.Equal(t, r.lv(in), d.Medium.Name)
			used[in] = true
			rec := records[v.name+"/cd0"]
			require.NotNil(t, rec.Loaded, v.name)
			require.Equal(t, d.Medium.Node, rec.Loaded.Node)
			require.Nil(t, rec.Change)
			nodes = []string{rec.Loaded.Node}
		}
		require.Contains(t, v.may, in, "%s: a disc that nobody confirmed", v.name)
		v.may = []string{in}

		ours, err := blockdev.Nodes(t.Context(), v.side, "trayd-")
		require.NoError(t, err)
		require.ElementsMatch(t, nodes, ours, "nodes of %s", v.name)
		loans, err := blockdev.Lent(t.Context(), v.side, "trayd-")
		require.NoError(t, err)
		require.Empty(t, loans, v.name)
		var devices []string // what the kernel says of the disc that QEMU has open
		for _, path := range slices.Compact(v.vm.OpenFiles(t, "/dev/dm-")) {
			devices = append(devices, strings.TrimSpace(read(t, "/sys/class/block/"+strings.TrimPrefix(path, "/dev/")+"/dm/name")))
		}
		var want []string
		if in != "" {
			want = []string{r.device(in)}
		}
		require.ElementsMatch(t, want, devices, "devices that %s has open", v.name)
	}
	for name, rec := range records {
		if rec.Loaded != nil {
			require.True(t, used[rec.Loaded.Medium.VolumeID], "the record of %s", name)
		}
	}
	var names []string
	for name := range used {
		names = append(names, name)
	}
	r.active(names...)
	r.ok()
}
