package agent

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/iso"
	"github.com/trayd/trayd/state"
)

// Attach is how the agent holds a machine's monitor.
type Attach string

// The ways: keep the connection, or connect for an operation and a periodic look
// and leave the monitor to others in between.
const (
	Persistent Attach = "persistent"
	OnDemand   Attach = "on-demand"
)

// Options are the agent's settings. All but Log and FailPoint may change by
// Reload.
type Options struct {
	Monitors   []string // globs of monitor sockets
	MediaRoots []string // directories that discs may come from
	Attach     Attach
	Look       time.Duration // between periodic checks of a machine
	Command    time.Duration // limit for QEMU's answer to one command
	Wait       time.Duration // default limit for a guest that holds the door
	GuestEject GuestEject
	Strategy   string // "auto", or one of blockdev's changers by name

	Volumes volume.Options // what the configuration says of this host's storage
	Library library.Options

	Machines MachineOptions // of trayd's own; without a Runner there are none

	Log *slog.Logger
	// FailPoint, when set, is called by name at each point at which the death of
	// the agent is tested. It is nil in production.
	FailPoint func(name string)
	// Storage replaces the host's own volumes in tests of what a kernel doesn't do on
	// demand; nil in production.
	Storage Storage
}

// Agent looks after the discs of a host's machines. Its methods are safe for
// concurrent use.
type Agent struct {
	changes atomic.Uint64 // see Changes
	options atomic.Pointer[Options]
	log     *slog.Logger
	journal *state.Journal
	bus     *bus
	boot    string
	// mark is the prefix of all node names of this agent; it is kept in the
	// journal, so that two agents never take each other's nodes for their own.
	mark     string
	features *featureCache
	volumes  *volumes
	images   *library.Library
	machines *machines
	prober   iso.Prober
	// diskUsers are the machines whose definitions speak of what lies at a place.
	diskUsers func(library.Place) []library.User
	// askedWindow is defaultAskedWindow; shorter in tests.
	askedWindow time.Duration
	// pollDoor is defaultPollDoor; longer in tests.
	pollDoor time.Duration

	ctx    context.Context // ends with Run
	cancel context.CancelFunc
	work   sync.WaitGroup // every goroutine that the agent started
	rescan chan struct{}
	// begun is closed when ready has been called: until then only that is done
	// which ready promises.
	begun chan struct{}

	mu       sync.Mutex // guards below
	vms      map[string]*vm
	ops      map[string]Task // running, and the last keptOperations ended
	opsOrder []string
	stopping bool
}

// keptOperations is how many ended operations can still be asked for by id.
const keptOperations = 256

const markKey = "agent/mark"

// New returns an agent on an open journal. Run starts it.
func New(journal *state.Journal, o Options) (*Agent, error) {
	a := &Agent{
		log: o.Log, journal: journal, bus: newBus(time.Now()), boot: bootID(),
		rescan: make(chan struct{}, 1), begun: make(chan struct{}), features: newFeatureCache(), askedWindow: defaultAskedWindow, pollDoor: defaultPollDoor,
		vms: make(map[string]*vm), ops: make(map[string]Task),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.options.Store(&o)
	var id string
	if ok, err := journal.Get(markKey, &id); err != nil {
		return nil, err
	} else if !ok {
		id = randomName(5)
		if err := journal.Put(markKey, id); err != nil {
			return nil, fmt.Errorf("write the agent's mark to the state file: %w", err)
		}
	}
	a.mark = "trayd-" + id + "-"
	a.machines = newMachines(a)
	a.diskUsers = a.machines.usersOf
	storage := o.Storage
	if storage == nil {
		storage = volume.NewHost(id, o.Volumes)
	}
	a.volumes = newVolumes(storage)
	var err error
	if a.images, err = library.New(journal, storage, a.usersOf, o.Library, o.Log, a.failPoint); err != nil {
		return nil, err
	}
	storage.Configure(a.withImages(o.Volumes))
	return a, nil
}

func (a *Agent) opts() *Options { return a.options.Load() }

// Reload takes new settings. Running operations keep theirs.
func (a *Agent) Reload(o Options) {
	old := a.opts()
	o.Log, o.FailPoint, o.Storage = old.Log, old.FailPoint, old.Storage
	a.volumes.storage.Configure(a.withImages(o.Volumes))
	if err := a.images.Configure(o.Library); err != nil {
		a.log.Error("the library goes on with its old settings", "error", err)
	}
	a.options.Store(&o)
	for _, v := range a.all() {
		v.kickNow() // to hold its monitor as is wanted now
	}
	a.scanSoon()
}

// withImages adds the volumes of images that carry their hash tree.
func (a *Agent) withImages(o volume.Options) volume.Options {
	o.Also = a.images.Definition
	return o
}

// Run attaches to the machines and looks after them until ctx ends. ready is
// called once every machine that was there at the start has been attached to and
// settled, or has shown that it can't be now. Stopping changes nothing in any
// machine: an operation that waits for a guest is rolled back, what can't be
// rolled back in time is settled by the next start.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	defer a.stop()
	w, err := newWatcher(a)
	if err != nil {
		return err
	}
	defer w.close()
	a.adoptRecords()
	a.retryReleases()
	a.startUnlessStopping(a.remount)
	a.images.Start(a.ctx, a.imageEnded)
	a.start(func() {
		<-a.ctx.Done()
		a.images.Drain()
	})
	a.startUnlessStopping(a.resumeImages)
	a.startUnlessStopping(a.watchVolumes)
	a.machines.begin()
	first := w.scan()
	a.machines.carryOn()
	a.start(func() {
		over := time.NewTimer(firstRound)
		defer over.Stop()
		for _, v := range first {
			select {
			case <-v.tried:
				continue
			case <-over.C:
				a.log.Warn("not every machine answered in time; trayd goes on trying", "waited", firstRound)
			case <-a.ctx.Done():
				return
			}
			break
		}
		ready()
		close(a.begun)
	})
	w.run(ctx)
	return nil
}

// firstRound is how long ready waits for machines that don't answer.
const firstRound = 5 * time.Second

// start runs f in a goroutine that stop waits for.
func (a *Agent) start(f func()) {
	a.work.Add(1)
	go func() {
		defer a.work.Done()
		f()
	}()
}

// startUnlessStopping is start for callers that stop doesn't wait for: timers.
func (a *Agent) startUnlessStopping(f func()) (started bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stopping {
		a.start(f)
	}
	return !a.stopping
}

// stopGrace is how long running operations may take to end when the agent stops.
const stopGrace = 3 * time.Second

func (a *Agent) stop() {
	a.mu.Lock()
	a.stopping = true
	var running []*Operation
	for _, t := range a.ops {
		if o, ok := t.(*Operation); ok && !o.ended() { // jobs end with the context
			running = append(running, o)
		}
	}
	a.mu.Unlock()
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for _, o := range running {
		o.stopWaiting("the agent was stopped")
	}
	for _, o := range running {
		select {
		case <-o.done:
		case <-grace.Done():
		}
	}
	a.cancel()
	a.work.Wait()
}

// adoptRecords makes a machine of every record, so that what it owns is let go
// when the machine has ended while nobody looked. A record that owns nothing, of a
// machine that has ended, goes at once.
func (a *Agent) adoptRecords() {
	var over []string
	a.journal.Range(func(key string, value json.RawMessage) bool {
		if !strings.HasPrefix(key, recordPrefix) {
			return true
		}
		var rec Record
		if err := json.Unmarshal(value, &rec); err != nil {
			a.log.Error("a record of the state file can't be read; it is left alone", "key", key, "error", err)
			return true
		}
		if rec.empty() && !rec.Process.alive(a.boot) {
			over = append(over, key)
			return true
		}
		v := a.vm(rec.VM)
		v.drive(rec.Drive).setRecord(rec)
		v.process = rec.Process
		a.adoptVolumes(rec)
		return true
	})
	for _, key := range over {
		if err := a.journal.Delete(key); err != nil {
			a.log.Warn("the record of an ended machine can't be removed", "key", key, "error", err)
		}
	}
}

// vm returns the machine of that name, made if needed.
func (a *Agent) vm(name string) *vm {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.vms[name]
	if v == nil {
		v = newVM(a, name)
		a.vms[name] = v
	}
	return v
}

func (a *Agent) lookUpVM(name string) (*vm, error) {
	a.mu.Lock()
	v := a.vms[name]
	a.mu.Unlock()
	if v != nil {
		return v, nil
	}
	var names []string
	for _, v := range a.list() {
		names = append(names, v.name)
	}
	next := "no machine is there at all: does its monitor socket match monitors (" + list(a.opts().Monitors) + ") in trayd.toml?"
	if len(names) > 0 {
		next = "machines: " + list(names)
	}
	return nil, &Error{Code: NoSuchVM, VM: name, Detail: "no VM " + name, Next: next}
}

// all is every machine that there is or was, by name.
func (a *Agent) all() []*vm {
	a.mu.Lock()
	defer a.mu.Unlock()
	vms := make([]*vm, 0, len(a.vms))
	for _, v := range a.vms {
		vms = append(vms, v)
	}
	sort.Slice(vms, func(i, j int) bool { return vms[i].name < vms[j].name })
	return vms
}

// forget lets go of a machine of which nothing is left: it has ended, or is not to be
// looked after any more, and owns nothing.
func (a *Agent) forget(v *vm) {
	own := a.machines.own(v.name) // its end has to be told
	a.mu.Lock()
	defer a.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if a.vms[v.name] != v || v.launched || v.session != nil || !v.ended && (v.path != "" || own && v.process != Process{}) {
		return
	}
	for _, d := range v.drives {
		d.mu.Lock()
		busy := d.op != nil || !d.rec.empty()
		d.mu.Unlock()
		if busy {
			return
		}
	}
	v.gone = true
	delete(a.vms, v.name)
}

// list is every machine that is not known to have ended, by name.
func (a *Agent) list() []*vm {
	return slices.DeleteFunc(a.all(), (*vm).hidden)
}

// Subscribe follows events, beginning with those after the given id; 0 begins with what
// comes next. The caller closes it.
func (a *Agent) Subscribe(after uint64) *Subscriber { return a.bus.subscribe(after) }

// Changes counts what trayd has done or heard of that may show in a machine's status. What
// QEMU doesn't tell (a guest that locks the door, another client on another monitor) isn't in.
func (a *Agent) Changes() uint64 { return a.changes.Load() }

func (a *Agent) publish(e Event) {
	a.changes.Add(1)
	a.bus.publish(e)
	if a.auditEvent(e) {
		return
	}
	level := slog.LevelInfo
	switch e.Type {
	case EventStarted, EventLoaded, EventEjected, EventFailed, EventUnchanged: // the audit line says it
		level = slog.LevelDebug
	}
	a.log.Log(a.ctx, level, e.Type, "vm", e.VM, "drive", e.Drive, "operation", e.Operation, "detail", e.Detail)
}

// write makes a record durable; a record that says nothing any more is removed.
func (a *Agent) write(rec Record, reserved bool) error {
	key := recordKey(rec.VM, rec.Drive)
	switch {
	case rec.empty() && rec.Last == nil:
		return a.journal.Delete(key)
	case reserved:
		return a.journal.PutReserved(key, rec)
	}
	return a.journal.Put(key, rec)
}

func (a *Agent) failPoint(name string) {
	if f := a.opts().FailPoint; f != nil {
		f(name)
	}
}

// scanSoon has the watcher look for machines again.
func (a *Agent) scanSoon() {
	select {
	case a.rescan <- struct{}{}:
	default:
	}
}

var nameEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// randomName is n random characters of nameEncoding, five bits each.
func randomName(n int) string {
	b := make([]byte, (n*5+7)/8)
	rand.Read(b) // never fails (crypto/rand)
	return nameEncoding.EncodeToString(b)[:n]
}
