package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/trayd/trayd/blockdev"
)

// Records are the durable records, as the journal has them, by machine and drive.
func (a *Agent) Records() []Record {
	records := []Record{}
	a.journal.Range(func(key string, value json.RawMessage) bool {
		var rec Record
		if strings.HasPrefix(key, recordPrefix) && json.Unmarshal(value, &rec) == nil {
			records = append(records, rec)
		}
		return true
	})
	return records
}

// Alive takes every lock of the agent once, and returns. Each is held for moments only,
// so an Alive that doesn't return means that the agent hangs.
func (a *Agent) Alive() {
	for _, v := range a.all() {
		for _, d := range v.allDrives() {
			d.idle()
		}
	}
	a.bus.subscribe(0).Close()
}

// Check compares every record with what QEMU and the kernel say, changing nothing.
// Drives with an operation under way are left out: they are between two states.
func (a *Agent) Check(ctx context.Context) []Finding {
	findings := []Finding{}
	if err := a.journal.Err(); err != nil {
		findings = append(findings, Finding{Problem: "the state file takes no more changes: " + err.Error(), Next: "free space or replace the disk, then restart trayd"})
	}
	seen := make(map[string]bool)
	for _, v := range a.list() {
		seen[v.name] = true
		findings = append(findings, v.check(ctx)...)
	}
	findings = append(findings, a.checkVolumes(ctx)...)
	a.journal.Range(func(key string, value json.RawMessage) bool {
		var rec Record
		switch {
		case !strings.HasPrefix(key, recordPrefix):
		case json.Unmarshal(value, &rec) != nil:
			findings = append(findings, Finding{Problem: "the record " + key + " can't be read", Next: "was it written by a newer trayd? see `trayd state show`"})
		case !seen[rec.VM] && !rec.idle():
			findings = append(findings, Finding{VM: rec.VM, Drive: rec.Drive, Problem: "the record speaks of a machine that has ended", Next: "trayd removes it as soon as the state file can be written"})
		}
		return true
	})
	return findings
}

func (v *vm) check(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s, release, err := v.acquire(ctx)
	if err != nil {
		return []Finding{{VM: v.name, Problem: err.Error(), Next: "until it answers, nothing is known of its drives"}}
	}
	defer release()
	states, err := s.observeAll(ctx)
	if err != nil {
		return []Finding{{VM: v.name, Problem: "QEMU doesn't answer: " + err.Error(), Next: "until it answers, nothing is known of its drives"}}
	}
	var findings []Finding
	expected := make(map[string]bool)
	for _, d := range v.allDrives() {
		st, there := states[d]
		d.mu.Lock()
		rec, busy := d.rec, d.op != nil
		d.mu.Unlock()
		if st.Medium != nil {
			expected[st.Medium.Node] = true
		}
		if busy {
			if rec.Change != nil {
				expected[rec.Change.Node] = true
			}
			continue
		}
		if problem := disagreement(rec, st, there, s.process); problem != "" {
			findings = append(findings, Finding{VM: v.name, Drive: d.name, Problem: problem, Next: "trayd settles it at its next look; see `trayctl events`"})
		}
	}
	return append(findings, s.leaks(ctx, expected)...)
}

// disagreement says what the record claims and QEMU doesn't show.
func disagreement(rec Record, st blockdev.State, there bool, p Process) string {
	switch {
	case rec.idle():
		return ""
	case !there:
		return "the record speaks of a drive that the machine doesn't have"
	case rec.Process != p:
		return fmt.Sprintf("the record speaks of another QEMU (pid %d)", rec.Process.PID)
	case rec.Change != nil:
		return fmt.Sprintf("operation %s is not settled", rec.Change.ID)
	case rec.Loaded != nil && st.Node() != rec.Loaded.Node:
		return fmt.Sprintf("the record says that %s is in; QEMU shows %q", rec.Loaded.Medium.Name, st.Node())
	case rec.Loaded != nil && rec.Loaded.Medium.Inode != 0:
		if held, known := holdsOpen(p.PID, &rec.Loaded.Medium); known && !held {
			return fmt.Sprintf("the record says that %s is in; the kernel says that QEMU (pid %d) doesn't hold that file open", rec.Loaded.Medium.Name, p.PID)
		}
	}
	return ""
}

// leaks finds nodes and descriptors that carry our mark and that nobody uses.
func (s *session) leaks(ctx context.Context, expected map[string]bool) []Finding {
	var findings []Finding
	before := s.vm.nodesInUse(nil) // a change may end, or begin, while QEMU is asked
	if nodes, err := blockdev.Nodes(ctx, s.conn, s.vm.a.mark); err == nil {
		after := s.vm.nodesInUse(nil)
		for _, n := range nodes {
			if !expected[n] && !before[n] && !after[n] && !s.vm.holds(n) {
				findings = append(findings, Finding{VM: s.vm.name, Problem: "node " + n + " is in no drive", Next: "trayd deletes it as soon as nothing else in QEMU uses it (an export, a block job)"})
			}
		}
	}
	run, err := s.conn.QueryStatus(ctx)
	if err != nil || !run.Running {
		return findings // a paused QEMU up to 8.2 keeps descriptors until it runs
	}
	loans, err := s.unclaimedLoans(ctx, nil)
	if err != nil {
		return findings
	}
	for _, l := range loans {
		findings = append(findings, Finding{VM: s.vm.name, Problem: fmt.Sprintf("descriptor set %d (%s) is lent to nobody", l.FDSet, l.Node), Next: "trayd takes it back when the machine is resumed or trayd restarts"})
	}
	return findings
}
