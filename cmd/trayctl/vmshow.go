package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) vmShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show all that is known of a machine, and what keeps it from booting", Args: cobra.ExactArgs(1),
		Example: "  trayctl vm show win1", ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			var vm wire.VMStatus
			if err := c.client.do(cmd.Context(), "GET", vmPath(args[0]), nil, &vm); err != nil {
				return err
			}
			return c.print(vm, func(w io.Writer) { vmTable(w, vm) })
		}),
	}
}

// vmTable prints a machine, a line for each thing that is known.
func vmTable(w io.Writer, vm wire.VMStatus) {
	line := func(what, value string) {
		if value != "" {
			row(w, what, escaped(value))
		}
	}
	line("name", vm.Name)
	line("state", vm.State)
	line("reason", vm.Reason)
	if vm.PID > 0 {
		line("pid", fmt.Sprint(vm.PID))
	}
	line("qemu", vm.QEMU)
	m := vm.Machine
	if m == nil {
		line("run by", "somebody else: trayd is attached to it")
		line("socket", vm.Socket)
		drives(line, vm)
		return
	}
	d := m.Definition
	line("unit", m.Unit)
	line("screen", map[string]string{wire.ScreenBlank: "blank: nothing is drawn", wire.ScreenDrawn: "the guest has drawn something", wire.ScreenNone: "none"}[m.Screen])
	line("memory", d.Memory.String())
	line("cpus", fmt.Sprint(d.CPUs))
	line("flavour", d.Flavour)
	line("machine", d.Machine+", "+d.Firmware)
	line("boot", d.Boot)
	if d.DetachAfterInstall {
		line("", "the disc is taken out after the installation")
	}
	if d.Autostart {
		line("autostart", "yes")
	}
	for _, k := range d.Disks {
		line("disk "+k.Name, diskWords(k, m))
	}
	drives(line, vm)
	for _, n := range d.Networks {
		line("network", strings.TrimSpace(fmt.Sprintf("%s %s %s, %s", n.Type, n.Bridge+n.Tap, n.Model, n.MAC)))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Sockets)) {
		line("socket "+name, m.Sockets[name])
	}
	line("directory", m.Dir)
	line("uuid", d.UUID)
	line("failure", m.Failure)
	for _, n := range m.Notes {
		line("note", n)
	}
}

func diskWords(k wire.Disk, m *wire.MachineStatus) string {
	words := []string{k.Size.String() + " on " + k.Bus}
	for _, st := range m.Disks {
		if st.Name != k.Name {
			continue
		}
		words = append(words, humanBytes(st.Allocated)+" on the host")
		if !st.Written && k.Image == "" {
			words = append(words, "blank")
		}
	}
	switch {
	case k.Linked:
		words = append(words, "linked to "+k.Image)
	case k.Image != "":
		words = append(words, "copied from "+k.Image)
	}
	return strings.Join(words, ", ")
}

func drives(line func(what, value string), vm wire.VMStatus) {
	for _, d := range vm.Drives {
		words := d.State
		if d.Medium != nil {
			words = d.Medium.Name
		}
		words += " on " + d.Bus
		if d.Tray == "open" {
			words += ", tray open"
		}
		line("drive "+d.Name, words)
	}
}
