package main

import (
	"context"
	"path/filepath"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
)

// machineDirs are where machines lie.
func machineDirs(c *config.Config) launch.Dirs {
	return launch.Dirs{State: filepath.Join(c.StateDir, "machines"), Run: c.Machines.RunDir}
}

// machineOptions are the part of the configuration that is about machines of trayd's own.
func machineOptions(c *config.Config, runner launch.Runner) agent.MachineOptions {
	dirs := machineDirs(c)
	return agent.MachineOptions{
		Store: machine.Store{Dir: dirs.State}, RunDir: dirs.Run,
		QEMU: c.Machines.QEMU, QemuImg: c.Machines.QemuImg, Accel: c.Machines.Accel,
		Flavours: c.Flavours, StopWait: c.Machines.StopWait, Runner: runner,
	}
}

// newRunner says how machines are run. path is the configuration's.
func newRunner(c *config.Config, path string) launch.Runner {
	if abs, err := filepath.Abs(path); err == nil { // processes begin elsewhere
		path = abs
	}
	return launch.Choose(context.Background(), launch.Options{Run: c.Machines.Run, Dirs: machineDirs(c), Config: path})
}
