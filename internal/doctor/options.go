package doctor

import (
	"context"
	"time"

	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/wire"
)

// Agent is what the doctor asks of the agent.
type Agent interface {
	VMs(ctx context.Context) []wire.VMStatus
	VM(ctx context.Context, name string) (wire.VMStatus, error)
	Operations(running bool) []*wire.OperationStatus
	Volumes(ctx context.Context) []wire.VolumeStatus
	Check(ctx context.Context) []wire.Finding
	Images() []wire.Image
}

// Options are what a Doctor looks at.
type Options struct {
	Agent  Agent
	Config func() *config.Config
	// Certificate is the end of the certificate for TLS; zero where there is none.
	Certificate func() time.Time
	Tokens      func() []wire.Token
}

// New returns a doctor for this host.
func New(o Options) *Doctor {
	d := &Doctor{o: o, busy: make(map[string]*look)}
	d.probes = []probe{
		{"qemu", d.qemu}, {"monitors", d.monitors}, {"machines", d.machines}, {"media", d.media}, {"devices", d.devices},
		{"space", d.space}, {"clock", d.clock}, {"sandbox", d.sandbox}, {"state", d.state}, {"operations", d.operations},
		{"images", d.images}, {"volumes", d.volumes}, {"access", d.access},
	}
	return d
}
