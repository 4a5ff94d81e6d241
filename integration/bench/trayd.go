package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/wire"
)

// daemon is a running trayd, as it is shipped.
type daemon struct{ *peer.Trayd }

// startTrayd starts trayd on the machines in dir/run.
func (b *bench) startTrayd(dir string) (*daemon, error) {
	d := &daemon{peer.NewTrayd(b.bin, dir, b.dir)}
	d.Extra = b.extra
	if err := d.Start(context.Background()); err != nil {
		return nil, err
	}
	b.atEnd(d.Stop)
	return d, nil
}

// change, insert and eject are each one request over the warm API connection.
func (d *daemon) change(vm, disc string) error { return d.request(vm, wire.Replace, disc) }
func (d *daemon) insert(vm, disc string) error { return d.request(vm, wire.Insert, disc) }
func (d *daemon) eject(vm string) error        { return d.request(vm, wire.Eject, "") }

func (d *daemon) request(vm, verb, disc string) error {
	return d.Persistent()(context.Background(), verb, vm, disc)
}

// machines starts n machines named prefix0, prefix1, … whose sockets lie in dir/run.
// more are further arguments; without any they are stopped.
func (b *bench) machines(dir, prefix string, n int, more ...string) error {
	if len(more) == 0 {
		more = []string{"-S"}
	}
	all := make([]*peer.Machine, n)
	for i := range all {
		m, err := peer.Boot(filepath.Join(dir, "run"), "", fmt.Sprintf("%s%d", prefix, i), more...)
		if err != nil {
			return err
		}
		b.atEnd(m.Kill)
		all[i] = m
	}
	for _, m := range all {
		if err := m.Await(context.Background()); err != nil {
			return err
		}
	}
	return nil
}
