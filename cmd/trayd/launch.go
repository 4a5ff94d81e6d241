package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/systemd"
)

func (c *cli) launchCommand() *cobra.Command {
	var inherit, stop bool
	cmd := &cobra.Command{
		Use:   "launch NAME",
		Short: "Become a machine's QEMU, as trayd-vm@NAME.service does",
		Long: `Become the QEMU of a machine that is defined, in this very process: open what the
machine has, give up every privilege, and execute QEMU. It is what trayd-vm@NAME.service
runs, and trayd where there is no systemd. By hand it shows at once why a machine doesn't
start.`,
		Example: `  systemctl start trayd-vm@web-1      start a machine
  trayd launch web-1                  run it in this terminal`,
		Args: cobra.ExactArgs(1),
		RunE: ran(func(args []string) error {
			if stop {
				return c.powerOff(args[0])
			}
			return c.launch(args[0], inherit)
		}),
	}
	cmd.Flags().BoolVar(&stop, "stop", false, "ask the guest of process $MAINPID to power off, and wait until it has")
	cmd.Flags().BoolVar(&inherit, "inherit", false, "the lock and where to report to are descriptors 3 and 4, as trayd has it")
	cmd.MarkFlagsMutuallyExclusive("stop", "inherit")
	return cmd
}

// launcher is who wants to know how a launch goes.
type launcher interface {
	Ready()
	Report(failed error)
}

// launch doesn't return when all goes well.
func (c *cli) launch(name string, inherit bool) error {
	var to launcher
	var lock *launch.Lock
	if inherit {
		in, err := launch.Inherit()
		if err != nil {
			return err
		}
		to, lock = in, in.Lock
	} else {
		n, err := systemd.NewNotifier()
		if err != nil {
			return err
		}
		to = unit{n}
	}
	err := c.become(name, lock, to)
	to.Report(err)
	return err
}

// become takes the lock, unless trayd has, and turns into QEMU.
func (c *cli) become(name string, lock *launch.Lock, to launcher) error {
	config, err := config.Load(c.config)
	if err != nil {
		return err
	}
	dirs := machineDirs(config)
	if lock == nil {
		if lock, err = launch.TakeLock(dirs, name); err != nil {
			return err
		}
	}
	if err := lock.Hold(dirs, name); err != nil {
		return err
	}
	command, err := machineCommand(config, dirs, name)
	if err != nil {
		return err
	}
	command.Lock, command.Ready = lock, to.Ready
	return launch.Exec(*command, config.Machines.User)
}

// machineCommand is the QEMU of a machine.
func machineCommand(c *config.Config, dirs launch.Dirs, name string) (*launch.Command, error) {
	store := machine.Store{Dir: dirs.State}
	d, err := store.Load(name)
	if err != nil {
		return nil, err
	}
	h, err := machine.FindHost(c.Machines.QEMU, c.Machines.Accel)
	if err != nil {
		return nil, err
	}
	return machine.Build(d, h, store.Path(name), filepath.Join(dirs.Run, name))
}

// unit is the unit that systemd runs this in, if it does.
type unit struct{ n *systemd.Notifier }

// Ready takes back what was said before: what stands there is why a launch failed.
func (u unit) Ready() { _ = u.n.Ready("") }

// Report is for `systemctl status`, and for trayd, which shows it.
func (u unit) Report(failed error) { _ = u.n.Status(failed.Error()) }

// powerOff ends when the machine has, or when systemd has lost its patience.
func (c *cli) powerOff(name string) error {
	pid, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		return nil // it has ended by itself
	}
	config, err := config.Load(c.config)
	if err == nil {
		err = launch.PowerOff(context.Background(), filepath.Join(config.Machines.RunDir, name), pid)
	}
	if err != nil {
		// systemd ends it now, and that is no failure.
		fmt.Fprintf(c.stderr, "machine %s is ended without its guest's doing: %v\n", name, err)
	}
	return nil
}
