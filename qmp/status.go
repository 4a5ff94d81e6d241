package qmp

import "context"

// A Status is what a virtual machine as a whole is doing.
type Status struct {
	Running bool   `json:"running"` // whether its processors run
	Status  string `json:"status"`  // QEMU's RunState, such as running, paused, prelaunch, inmigrate, postmigrate
}

// QueryStatus asks for the machine's status. Errors are those of [Conn.Execute].
func (c *Conn) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	if err := c.Execute(ctx, "query-status", nil, &s); err != nil {
		return Status{}, err
	}
	return s, nil
}
