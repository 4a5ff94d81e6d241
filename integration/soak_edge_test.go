//go:build edge

package integration_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// How a soak is asked for (`make soak`). The defaults are for CI.
var (
	soakTime = flag.Duration("soak", 2*time.Minute, "how long TestSoak goes on")
	soakVMs  = flag.Int("soak-vms", 6, "how many machines it has; 0: as many as fit")
	soakSeed = flag.Uint64("soak-seed", 0, "what its choices begin with; 0 is at random")
	soakFrom = flag.Int("soak-round", 1, "the round to begin with")
	soakHost = flag.Int("soak-memory", 0, "what the host has, in MiB: to be said again")
)

const (
	soakClients = 4
	soakDeeds   = 6                // of each client in a round
	soakNeeds   = 48 << 20         // bytes of memory that a machine takes
	soakLeaves  = 512 << 20        // bytes that are left to the host
	soakRest    = 90 * time.Second // for everything to come to rest
)

// The discs that all machines share: on logical volumes, and as images of the library, which
// are downloaded and removed again all the time. Each is named as its volume identifier.
var (
	soakVolumes = []string{"S1", "S2", "S3", "S4", "S5"}
	soakImages  = []string{"I1", "I2", "I3"}
)

// soak is a host with machines at which everything goes wrong at once.
type soak struct {
	*volumeRig
	web    *source // of the images
	all    []*soakVM
	mu     sync.Mutex // guards tally
	counts tally
}

// tally is what has happened.
type tally struct {
	Rounds, Done, Refused, Unknown, Incomplete, Cancelled    int // changes of discs
	Added, NotAdded, Removed                                 int // images
	GuestEjects, TraydKilled, MachinesKilled, LinesCut, Full int
	Frozen, Held                                             int // machines; volumes, by somebody else
}

func (s *soak) count(n *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

// TestSoak has several clients change random discs of many machines that share volumes and
// images, whose guests hold doors and eject by themselves, while trayd, machines and downloads
// are killed, machines stop answering, others hold volumes, and the disk with the state file and
// the images is full now and then. When trayd was killed there is nothing in QEMU and no active
// volume that it hadn't written down: see checkKilled. After each round everything comes to rest,
// and QEMU, the kernel and the state file say the same of every drive: see check.
func TestSoak(t *testing.T) {
	if *soakTime <= 0 || *soakVMs < 0 || *soakFrom < 1 {
		t.Fatalf("a soak needs some time (-soak 10m), no fewer than 0 machines (-soak-vms), and begins with a round from 1 on (-soak-round)")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	s := newSoak(t)
	again := func() string {
		on := ""
		if *soakHost != 0 {
			on = fmt.Sprintf(" MEMORY=%d", *soakHost)
		}
		if suite, err := os.ReadFile("/opt/qemu/suite"); err == nil { // as qemu-of --into has left it
			on += " QEMU=" + strings.TrimSpace(string(suite))
		}
		return fmt.Sprintf("the same choices from here on: make soak SOAK=%s VMS=%d SEED=%d ROUND=%d%s", *soakTime, len(s.all), seed, max(s.counts.Rounds, *soakFrom), on)
	}
	t.Log(again())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(again())
		}
	})
	choices := rand.New(rand.NewPCG(seed, 0))
	for s.counts.Rounds = 0; s.counts.Rounds < *soakFrom-1; s.counts.Rounds++ {
		choices.Uint64() // a round's
	}
	begin := time.Now()
	for time.Since(begin) < *soakTime {
		s.start("")
		s.up()
		s.round(rand.New(rand.NewPCG(seed, choices.Uint64())))
		s.rest()
		s.check()
		t.Logf("%s: %+v", time.Since(begin).Round(time.Second), s.counts)
		s.log.Reset() // only the last round's is of interest
	}
	require.NotZero(t, s.counts.Done)
	if c := s.counts; c.Rounds-*soakFrom >= 3 {
		for _, n := range []int{c.GuestEjects, c.TraydKilled, c.MachinesKilled, c.LinesCut, c.Full, c.Frozen, c.Held} {
			require.NotZero(t, n, "something never went wrong: %+v", c)
		}
		if c.Rounds-*soakFrom >= 10 { // one deed in 21, of which about every second finds something
			require.NotZero(t, c.Cancelled)
		}
	}

	s.start("")
	s.up()
	for _, v := range s.all {
		for _, d := range v.drives {
			require.Eventually(t, func() bool { return s.code("eject", d.name()) == 0 }, soakRest, poll, d.name()) // a host under load
		}
	}
	s.active()
	s.ok()
}

func newSoak(t *testing.T) *soak {
	s := &soak{volumeRig: newVolumeRigNamed(t, "soak-", soakVolumes...)}
	stateDir := filepath.Join(s.dir, "state")
	require.NoError(t, os.Mkdir(stateDir, 0o700))
	tool(t, "mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "soak", stateDir) // small enough to be filled
	t.Cleanup(func() { s.kill(); tool(t, "umount", stateDir) })
	from := filepath.Join(s.dir, "web")
	require.NoError(t, os.Mkdir(from, 0o755))
	for _, name := range soakImages {
		largeDisc(t, from, name, 2<<20)
	}
	s.web = newSource(t, from)
	s.extra = "wait = \"1s\"\n[library]\nattempts = 2\nprivate_targets = [\"127.0.0.0/8\"]\n"
	n, fit := *soakVMs, max(2, int((available(t)-soakLeaves)/soakNeeds))
	if n == 0 {
		n = fit
	}
	require.LessOrEqual(t, n, fit, "more machines than the edge host has memory for: MEMORY= gives it more")
	for i := range n {
		drives := []string{"cd0", "cd1"}[:1+i%3/2] // every third has two
		v := newSoakVM(fmt.Sprintf("vm%d", i), i%2 == 0, drives...)
		v.boot(s)
		s.all = append(s.all, v)
	}
	return s
}

// available is how many bytes of memory the host has left.
func available(t testing.TB) int64 {
	for line := range strings.Lines(read(t, "/proc/meminfo")) {
		if f := strings.Fields(line); f[0] == "MemAvailable:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			require.NoError(t, err)
			return n << 10
		}
	}
	require.FailNow(t, "no MemAvailable")
	return 0
}

// round has the clients and the guests at work, and things go wrong meanwhile. Nobody's
// choices depend on the others' pace.
func (s *soak) round(choices *rand.Rand) {
	s.count(&s.counts.Rounds)
	mine := func() *rand.Rand { return rand.New(rand.NewPCG(choices.Uint64(), 0)) }
	var clients, guests sync.WaitGroup
	for range soakClients {
		choices := mine()
		clients.Go(func() {
			for range soakDeeds {
				s.deed(choices)
			}
		})
	}
	ctx, end := context.WithCancel(s.t.Context())
	defer end()
	play := mine()
	guests.Go(func() { s.guests(ctx, play) })
	s.mishaps(choices)
	clients.Wait()
	end()
	guests.Wait()
}

// mishaps are what goes wrong in a round.
func (s *soak) mishaps(choices *rand.Rand) {
	pause := func() { time.Sleep(time.Duration(choices.IntN(2500)) * time.Millisecond) }
	turn := s.counts.Rounds % 4 // so that a few rounds have all of them
	full, cut := turn == 1 || choices.IntN(4) == 0, turn == 2 || choices.IntN(2) == 0
	killTrayd, killVM := turn == 3 || choices.IntN(2) == 0, turn == 0 || choices.IntN(3) == 0
	freeze, held := turn == 2 || choices.IntN(3) == 0, turn == 3 || choices.IntN(2) == 0
	victim, choice := s.all[choices.IntN(len(s.all))], choices.IntN(len(soakVolumes))
	pause() // in the first round until some discs are in
	if held {
		defer s.heldByOthers(soakVolumes[choice:], soakVolumes[:choice])()
	}
	if freeze {
		s.count(&s.counts.Frozen)
		victim.vm.Freeze(s.t)
		pause()
		victim.vm.Thaw(s.t)
	}
	if full {
		s.count(&s.counts.Full)
		s.fillDisk(time.Duration(choices.IntN(2000)) * time.Millisecond)
	}
	if cut {
		s.count(&s.counts.LinesCut)
		s.web.CloseClientConnections()
	}
	pause()
	if killTrayd {
		s.count(&s.counts.TraydKilled)
		s.kill()
		s.checkKilled()
		s.start("")
	}
	if killVM { // in whatever is going on
		s.count(&s.counts.MachinesKilled)
		victim.die(s)
	}
}

// heldByOthers has the first of the volumes that is active open until end.
func (s *soak) heldByOthers(volumes ...[]string) (end func()) {
	for _, volume := range slices.Concat(volumes...) {
		name, err := exec.Command("dmsetup", "info", "--columns", "--noheadings", "--options", "blkdevname", s.device(volume)).Output()
		if err != nil {
			continue
		}
		f, err := os.Open("/dev/" + strings.TrimSpace(string(name)))
		if err != nil { // it has just been released
			continue
		}
		s.count(&s.counts.Held)
		return func() { f.Close() }
	}
	return func() {}
}

// fillDisk leaves no room for the state file and the images for that long.
func (s *soak) fillDisk(long time.Duration) {
	path := filepath.Join(s.dir, "state", "full")
	f, err := os.Create(path)
	require.NoError(s.t, err)
	defer f.Close()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for chunk := make([]byte, 64<<10); err == nil; { // and what others have given back meanwhile
			_, err = f.Write(chunk)
		}
		err = nil
	}
	require.NoError(s.t, os.Remove(path))
}
