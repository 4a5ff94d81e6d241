package agent

import (
	"context"

	"github.com/trayd/trayd/internal/wire"
)

// Summary asks every machine, and the kernel, and sums it up.
func (a *Agent) Summary(ctx context.Context) Summary {
	s := Summary{Drives: make(map[string]int), Images: make(map[string]int), Operations: []*OperationStatus{}}
	s.VMs.Attached, s.VMs.All = a.Attached()
	var failed []Finding
	for _, v := range a.VMs(ctx) {
		if v.State == wire.VMFailed {
			failed = append(failed, Finding{VM: v.Name, Problem: v.Reason, Next: v.Next})
		}
		if v.Own && v.PID == 0 { // its drives are a definition's
			continue
		}
		for _, d := range v.Drives {
			s.Drives[d.State]++
			if d.Operation != nil {
				s.Operations = append(s.Operations, d.Operation)
			}
		}
	}
	s.Volumes = a.Volumes(ctx)
	for _, i := range a.images.Images() {
		s.Images[string(i.State)]++
	}
	s.Problems = append(a.Check(ctx), failed...)
	for _, p := range a.images.Problems() {
		s.Problems = append(s.Problems, Finding{Problem: p.Detail, Next: p.Next})
	}
	return s
}

// Attached counts the machines whose monitors the agent holds (on demand: that it got
// hold of the last time), and all that VMs shows. It asks nobody, so it costs nothing.
func (a *Agent) Attached() (attached, all int) {
	vms := a.list()
	for _, v := range vms {
		if v.reachable() {
			attached++
		}
	}
	return attached, len(vms)
}
