package agent

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
)

// Run is what is durable about a machine of trayd's own that runs: with it a start of trayd
// knows of a machine that has ended while nobody looked.
type run struct {
	Process Process   `json:"process"`
	Since   time.Time `json:"since"`
}

const runPrefix = "machine/"

func (m *machines) noteRun(name string, p Process) error {
	return m.a.journal.Put(runPrefix+name, run{p, time.Now().UTC()})
}

// neverRan takes back noteRun of a process that has ended: who sees its end may have done so
// before it was noted.
func (m *machines) neverRan(name string, p Process) {
	var r run
	ok, err := m.a.journal.Get(runPrefix+name, &r)
	if err == nil && ok && r.Process == p {
		err = m.a.journal.Delete(runPrefix + name)
	}
	if err != nil {
		m.a.log.Warn("the record of a machine that has ended can't be removed", "vm", name, "error", err)
	}
}

// begin puts the machines in order when trayd starts, before anybody looks for them: what
// deaths have left of some goes, and those that ended unseen are seen to. A look would take
// those for machines that end now, without a word.
func (m *machines) begin() {
	o := m.options()
	if o.Runner == nil {
		return
	}
	if err := o.Store.Tidy(); err != nil {
		m.a.log.Warn("what is left of machines that were being made or removed can't be removed", "error", err)
	}
	m.seeUnseen()
}

// carryOn starts what goes on beside all else: sockets of nobody's go, and after a boot of the
// host those machines start that are meant to.
func (m *machines) carryOn() {
	if m.options().Runner == nil {
		return
	}
	m.a.startUnlessStopping(m.tidySockets)
	m.a.startUnlessStopping(m.autostart)
	m.a.startUnlessStopping(m.boundLogs)
}

// boundEvery is between looks at the machines' logs: what a guest can say on its serial
// console meanwhile is some tens of MiB.
const boundEvery = 10 * time.Second

// boundLogs keeps the machines' logs from filling the disk.
func (m *machines) boundLogs() {
	tick := time.NewTicker(boundEvery)
	defer tick.Stop()
	for {
		names, _ := m.store().Names() // told of elsewhere
		for _, name := range names {
			if err := m.store().BoundLogs(name); err != nil {
				m.a.log.Warn("a machine's log can't be kept short", "vm", name, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-m.a.ctx.Done():
			return
		}
	}
}

// tidySockets removes the sockets of machines that have ended while nobody looked.
func (m *machines) tidySockets() {
	dirs, _ := os.ReadDir(m.options().RunDir) // none yet, maybe
	for _, d := range dirs {
		if machine.CheckName(d.Name()) == nil {
			m.tidy(d.Name())
		}
	}
}

// tidy reports whether they run, or can't be told yet from those that do.
func (m *machines) tidy(name string) (running bool) {
	err := m.options().Runner.Tidy(m.a.ctx, name)
	if errors.Is(err, launch.ErrRunning) {
		return true
	}
	if err != nil && m.a.ctx.Err() == nil {
		m.a.log.Warn("the sockets of a machine that has ended can't be removed", "vm", name, "error", err)
	}
	return false
}

// A process is a zombie, and has ended, before the last of its threads has closed what it had:
// until then its machine's lock is held.
const (
	tidyLimit = 20 * time.Second // on a host under load
	tidyPoll  = 200 * time.Millisecond
)

// again reports whether a machine that has ended runs again, or is about to.
func (m *machines) again(name string) bool {
	if m.doing(name) != "" {
		return true
	}
	v, err := m.a.lookUpVM(name)
	if err != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.process.alive(m.a.boot)
}

// tidyEnded removes the sockets of a machine that has ended just now, unless it runs again.
func (m *machines) tidyEnded(name string) {
	for end := time.Now().Add(m.tidyLimit); m.tidy(name); {
		if time.Now().After(end) {
			if !m.again(name) {
				m.a.log.Warn("the sockets of a machine that has ended stay: its lock is still held", "vm", name, "after", m.tidyLimit)
			}
			return
		}
		select {
		case <-time.After(tidyPoll):
		case <-m.a.ctx.Done():
			return
		}
	}
}

// seeUnseen sees to the machines that have ended while trayd didn't run. Of the others it is
// known from now on which process they are, so that their end is seen before anybody has
// been connected to them.
func (m *machines) seeUnseen() {
	if m.options().Runner == nil {
		return
	}
	ended := make(map[string]Process)
	m.a.journal.Range(func(key string, value json.RawMessage) bool {
		name, ok := strings.CutPrefix(key, runPrefix)
		var r run
		switch {
		case !ok || json.Unmarshal(value, &r) != nil:
		case !r.Process.alive(m.a.boot):
			ended[name] = r.Process
		default:
			v := m.a.vm(name)
			v.mu.Lock()
			v.process = r.Process
			v.mu.Unlock()
		}
		return true
	})
	for name, p := range ended {
		m.ended(name, p, endUnseen)
	}
}

const autostartKey = "machines/autostarted"

// autostart starts the machines that are meant to, once after each boot of the host: a
// machine that its owner has stopped stays stopped when trayd is started anew.
func (m *machines) autostart() {
	var boot string
	if ok, err := m.a.journal.Get(autostartKey, &boot); err != nil || ok && boot == m.a.boot {
		return
	}
	names, err := m.store().Names()
	if err != nil {
		m.a.log.Warn("the machines can't be listed", "error", err)
		return
	}
	var work sync.WaitGroup
	for _, name := range names {
		d, err := m.store().Load(name)
		if err != nil {
			m.a.log.Error("a machine's definition is refused; it is not started", "vm", name, "error", err)
			continue
		}
		if !d.Autostart {
			continue
		}
		work.Go(func() {
			if _, err := m.a.StartVM(m.a.ctx, name, Caller{Name: "autostart"}); err != nil {
				m.a.publish(Event{Type: EventVMFailed, VM: name, Detail: "autostart: " + err.Error()})
			}
		})
	}
	work.Wait()
	if m.a.ctx.Err() == nil {
		if err := m.a.journal.Put(autostartKey, m.a.boot); err != nil {
			m.a.log.Warn("that the machines were started can't be written to the state file: they are started again when trayd is", "error", err)
		}
	}
}
