package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

// machineFlags are those of a new machine and of a change.
type machineFlags struct {
	memory, flavour, machine, firmware, boot string
	cpus                                     int
	disks, cdroms, networks, bootOrder       []string
	detach, vnc, serial, guestAgent          bool
	autostart                                bool
}

func (f *machineFlags) add(cmd *cobra.Command, disk, cdrom string) {
	fl := cmd.Flags()
	fl.StringVar(&f.flavour, "flavour", "", "a named size of trayd.toml")
	fl.StringVar(&f.memory, "memory", "", "such as 2G (default 1G)")
	fl.IntVar(&f.cpus, "cpus", 0, "how many processors (default 1)")
	fl.StringVar(&f.machine, "machine", "", "q35 or pc (default q35)")
	fl.StringVar(&f.firmware, "firmware", "", "bios or uefi (default bios)")
	fl.StringVar(&f.boot, "boot", "", "disk, cdrom, or cdrom-once: from the disc until a disk has been installed on")
	fl.StringSliceVar(&f.bootOrder, "boot-order", nil, "disks and drives by name, what is booted first first")
	fl.StringArrayVar(&f.disks, disk, nil, "a blank disk: SIZE, or BUS:SIZE on virtio, sata, ide or scsi; may be repeated")
	fl.StringArrayVar(&f.cdroms, cdrom, nil, "a CD drive: MEDIUM or empty, or BUS:MEDIUM on sata, ide, scsi or usb; may be repeated")
	fl.StringArrayVar(&f.networks, "network", nil, "none, user, bridge=NAME or tap=NAME, with ,model=virtio|e1000|e1000e|rtl8139 and ,mac=; may be repeated (default user)")
	fl.BoolVar(&f.detach, "detach-after-install", false, "take the disc out when the installation has ended")
	fl.BoolVar(&f.vnc, "vnc", true, "a screen")
	fl.BoolVar(&f.serial, "serial", true, "a serial console, and its log")
	fl.BoolVar(&f.guestAgent, "guest-agent", true, "the channel of QEMU's guest agent")
	fl.BoolVar(&f.autostart, "autostart", false, "start it whenever the host has booted")
}

// drive is a CD drive from its flag: MEDIUM, empty, BUS:MEDIUM or BUS:empty. What begins with
// a kind of medium (image:, lvm:, …) is a medium.
func drive(text string) wire.CDROM {
	var c wire.CDROM
	if bus, rest, ok := strings.Cut(text, ":"); ok {
		switch bus {
		case wire.BusSATA, wire.BusIDE, wire.BusSCSI, wire.BusUSB:
			c.Bus, text = bus, rest
		}
	}
	if text != "empty" {
		c.Medium = text
	}
	return c
}

// disk is a disk from its flag: SIZE or BUS:SIZE.
func disk(text string) (wire.Disk, error) {
	var k wire.Disk
	if bus, rest, ok := strings.Cut(text, ":"); ok {
		k.Bus, text = bus, rest
	}
	var err error
	k.Size, err = wire.ParseSize(text)
	if err == nil && k.Size == 0 {
		err = fmt.Errorf("a disk of no size: write --disk 20G")
	}
	return k, err
}

func network(text string) (wire.Network, error) {
	var n wire.Network
	for _, part := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case wire.NetworkNone, wire.NetworkUser:
			n.Type = key
		case wire.NetworkBridge:
			n.Type, n.Bridge = key, value
		case wire.NetworkTap:
			n.Type, n.Tap = key, value
		case "model":
			n.Model = value
		case "mac":
			n.MAC = value
		default:
			return n, fmt.Errorf("--network %s: %q is none of none, user, bridge=NAME, tap=NAME, model=, mac=", text, part)
		}
	}
	return n, nil
}

func all[T any](texts []string, parse func(string) (T, error)) ([]T, error) {
	var list []T
	for _, text := range texts {
		v, err := parse(text)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (c *cli) vmCreateCommand() *cobra.Command {
	var (
		f                machineFlags
		iso, image       string
		drivers, keys    []string
		userData         string
		linked, optional bool
		r                wire.MachineRequest
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a machine: from a disc, with a blank disk, or from a disk image", Args: cobra.ExactArgs(1),
		Long: `Makes a machine. With --iso it boots from that disc first, and from its disk once the guest
has installed itself there: when it ejects the disc, or resets or powers off after it wrote to
the disk. With --image its disk is a copy of a disk image, or keeps only what differs from
that (--linked). What isn't said is such that it just boots.`,
		Example: `  trayctl vm create win1 --iso image:installer --driver-iso image:virtio-win --disk 60G --memory 4G --cpus 2 --start
  trayctl vm create web1 --image image:golden --linked --start
  trayctl vm create cloud1 --image image:debian-cloud --ssh-key ~/.ssh/id_ed25519.pub --network bridge=br0 --start
  trayctl vm create live --iso /srv/iso/live.iso --firmware uefi --memory 2G --start`,
		RunE: func(cmd *cobra.Command, args []string) error {
			d := &r.Definition
			var err error
			d.Name = args[0]
			if err = f.define(d); err != nil {
				return err
			}
			r.BootOrder = f.bootOrder
			if image != "" {
				first := wire.Disk{Image: image, Linked: linked}
				if len(d.Disks) > 0 { // the first --disk is how large it becomes
					first.Size, first.Bus = d.Disks[0].Size, d.Disks[0].Bus
					d.Disks = d.Disks[1:]
				}
				d.Disks = append([]wire.Disk{first}, d.Disks...)
			} else if linked {
				return fmt.Errorf("--linked needs the --image that the disk is to stand on")
			} else if f.flavour != "" && len(d.Disks) == 0 {
				d.Disks = []wire.Disk{{}} // of the flavour's size
			}
			var discs []wire.CDROM
			for _, medium := range append(nonEmpty(iso), drivers...) {
				cd := drive(medium)
				cd.Optional = optional
				discs = append(discs, cd)
			}
			d.CDROMs = append(discs, d.CDROMs...)
			if r.UserData, err = fileText(userData); err != nil {
				return err
			}
			for _, file := range keys {
				text, err := fileText(file)
				if err != nil {
					return err
				}
				r.SSHKeys = append(r.SSHKeys, strings.Split(strings.TrimSpace(text), "\n")...)
			}
			return ran(func(cmd *cobra.Command, _ []string) error { return c.create(cmd, r) })(cmd, args)
		},
	}
	f.add(cmd, "disk", "cdrom")
	fl := cmd.Flags()
	fl.StringVar(&iso, "iso", "", "the disc to boot from: a path, image:NAME, lvm:VG/LV, …")
	fl.StringArrayVar(&drivers, "driver-iso", nil, "a second disc, such as one with drivers; may be repeated")
	fl.StringVar(&image, "image", "", "the disk image that its disk is made from: image:NAME")
	fl.BoolVar(&linked, "linked", false, "keep only what differs from the image, which can't be removed then")
	fl.BoolVar(&optional, "optional", false, "start without a disc of --iso and --driver-iso that can't be had")
	fl.StringVar(&userData, "user-data", "", "a file for cloud-init, on a disc that goes after the first boot")
	fl.StringArrayVar(&keys, "ssh-key", nil, "a file of public keys for cloud-init's default user; may be repeated")
	fl.BoolVar(&r.Start, "start", false, "start it at once")
	return cmd
}

func (c *cli) create(cmd *cobra.Command, r wire.MachineRequest) error {
	var made wire.MachineCreated
	if err := c.client.do(cmd.Context(), "POST", "/v1/vms", r, &made); err != nil {
		return err
	}
	c.warn(made.Warnings)
	return c.print(made.VM, func(w io.Writer) {
		state := "made; start it: trayctl vm start " + made.VM.Name
		if r.Start {
			state = fmt.Sprintf("made, running (pid %d)", made.VM.PID)
		}
		fmt.Fprintf(w, "%s: %s\n", made.VM.Name, state)
	})
}

// define fills in a definition.
func (f *machineFlags) define(d *wire.Definition) (err error) {
	d.Flavour, d.CPUs, d.Machine, d.Firmware, d.Boot = f.flavour, f.cpus, f.machine, f.firmware, f.boot
	d.DetachAfterInstall, d.Autostart, d.VNC, d.Serial, d.GuestAgent = f.detach, f.autostart, f.vnc, f.serial, f.guestAgent
	if f.memory != "" {
		if d.Memory, err = wire.ParseSize(f.memory); err != nil {
			return fmt.Errorf("--memory: %w", err)
		}
	}
	if d.Disks, err = all(f.disks, disk); err != nil {
		return fmt.Errorf("--disk: %w", err)
	}
	if d.Networks, err = all(f.networks, network); err != nil {
		return err
	}
	for _, text := range f.cdroms {
		d.CDROMs = append(d.CDROMs, drive(text))
	}
	return nil
}

func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// fileText reads a file of trayctl's user; "-" is standard input.
func fileText(path string) (string, error) {
	switch path {
	case "":
		return "", nil
	case "-":
		b, err := io.ReadAll(os.Stdin)
		return string(b), err
	}
	b, err := os.ReadFile(path)
	return string(b), err
}

func (c *cli) vmSetCommand() *cobra.Command {
	var (
		f                           machineFlags
		removeDisks, removeDrives   []string
		resize                      []string
		change                      wire.MachineChange
		addDisksFlag, addDrivesFlag = "add-disk", "add-cdrom"
	)
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change the definition of a machine that is stopped", Args: cobra.ExactArgs(1),
		Long:              "Changes the definition of a machine that is stopped; only what is said changes. Discs are\nchanged by insert, change and eject, while it runs or not.",
		Example:           "  trayctl vm set win1 --memory 8G --cpus 4\n  trayctl vm set win1 --boot cdrom\n  trayctl vm set win1 --add-disk sata:100G --resize-disk disk0=40G",
		ValidArgsFunction: c.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.change(cmd, &change); err != nil {
				return err
			}
			change.RemoveDisks, change.RemoveCDROMs = removeDisks, removeDrives
			for _, text := range resize {
				name, size, _ := strings.Cut(text, "=")
				n, err := wire.ParseSize(size)
				if err != nil {
					return fmt.Errorf("--resize-disk NAME=SIZE: %w", err)
				}
				change.ResizeDisks = append(change.ResizeDisks, wire.Disk{Name: name, Size: n})
			}
			if cmd.Flags().NFlag() == 0 {
				return fmt.Errorf("say what to change, such as --memory 4G")
			}
			return ran(func(cmd *cobra.Command, args []string) error {
				var vm wire.VMStatus
				if err := c.client.do(cmd.Context(), "PATCH", vmPath(args[0]), change, &vm); err != nil {
					return err
				}
				return c.print(vm, func(w io.Writer) { fmt.Fprintf(w, "%s: changed\n", vm.Name) })
			})(cmd, args)
		},
	}
	f.add(cmd, addDisksFlag, addDrivesFlag)
	fl := cmd.Flags()
	fl.StringArrayVar(&removeDisks, "remove-disk", nil, "a disk by its name, with what is on it; may be repeated")
	fl.StringArrayVar(&removeDrives, "remove-cdrom", nil, "a CD drive by its name; may be repeated")
	fl.StringArrayVar(&resize, "resize-disk", nil, "NAME=SIZE, larger than it is; may be repeated")
	return cmd
}

// change says what of the flags was given.
func (f *machineFlags) change(cmd *cobra.Command, c *wire.MachineChange) (err error) {
	given := cmd.Flags().Changed
	for _, s := range []struct {
		flag  string
		value *string
		to    **string
	}{
		{"flavour", &f.flavour, &c.Flavour}, {"machine", &f.machine, &c.Machine}, {"firmware", &f.firmware, &c.Firmware}, {"boot", &f.boot, &c.Boot},
	} {
		if given(s.flag) {
			*s.to = s.value
		}
	}
	for _, b := range []struct {
		flag  string
		value *bool
		to    **bool
	}{
		{"detach-after-install", &f.detach, &c.DetachAfterInstall}, {"autostart", &f.autostart, &c.Autostart},
		{"vnc", &f.vnc, &c.VNC}, {"serial", &f.serial, &c.Serial}, {"guest-agent", &f.guestAgent, &c.GuestAgent},
	} {
		if given(b.flag) {
			*b.to = b.value
		}
	}
	if given("cpus") {
		c.CPUs = &f.cpus
	}
	if given("memory") {
		size, err := wire.ParseSize(f.memory)
		if err != nil {
			return fmt.Errorf("--memory: %w", err)
		}
		c.Memory = &size
	}
	if c.AddDisks, err = all(f.disks, disk); err != nil {
		return fmt.Errorf("--add-disk: %w", err)
	}
	if c.Networks, err = all(f.networks, network); err != nil {
		return err
	}
	for _, text := range f.cdroms {
		c.AddCDROMs = append(c.AddCDROMs, drive(text))
	}
	c.BootOrder = f.bootOrder
	return nil
}
