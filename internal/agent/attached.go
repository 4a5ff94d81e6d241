package agent

// Attached counts the machines whose monitors the agent holds (on demand: that it got
// hold of the last time), and all that VMs shows. It asks nobody, so it costs nothing.
func (a *Agent) Attached() (attached, all int) {
	vms := a.list()
	onDemand := a.opts().Attach == OnDemand
	for _, v := range vms {
		v.mu.Lock()
		if v.session != nil || onDemand && v.launched && v.why == nil {
			attached++
		}
		v.mu.Unlock()
	}
	return attached, len(vms)
}
