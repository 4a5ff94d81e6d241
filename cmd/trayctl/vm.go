package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) vmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vm COMMAND", DisableFlagsInUseLine: true, Short: "Machines that trayd itself runs: make, start, stop, look at them",
		Long: "Makes machines, boots them from a disc or from an image, starts and stops them, and shows\ntheir screens. Machines that somebody else runs are listed, too, and their screens shown.",
		Example: `  trayctl vm create win1 --iso image:installer --driver-iso image:virtio-win --disk 60G --memory 4G --cpus 2 --start
  trayctl vm screenshot win1 -o win1.png
  trayctl vm stop win1`,
	}
	list := c.vmsCommand()
	list.Use, list.Example = "ls", "  trayctl vm ls"
	cmd.AddCommand(
		list, c.vmShowCommand(), c.vmCreateCommand(), c.vmSetCommand(), c.vmStartCommand(), c.vmStopCommand(),
		c.vmVerbCommand("kill", "End a machine at once, as a power failure does", "ended"),
		c.vmVerbCommand("reset", "Press a machine's reset button", "reset"),
		c.vmRemoveCommand(), c.vmAutostartCommand(),
		c.vmScreenshotCommand(), c.vmConsoleCommand(), c.vmLogCommand(),
	)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		use := strings.Join(commandNames(cmd), ", ")
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for \"trayctl vm\": use %s", args[0], use)
		}
		return errors.New("trayctl vm: use " + use)
	}
	return cmd
}

func vmPath(name string, rest ...string) string {
	return strings.Join(append([]string{"/v1/vms/" + url.PathEscape(name)}, rest...), "/")
}

// warn prints what a machine has to do without.
func (c *cli) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(&visible{c.stderr}, "trayctl: warning: %s\n", w)
	}
}

func (c *cli) vmStartCommand() *cobra.Command {
	return &cobra.Command{
		Use: "start NAME", Short: "Start a machine, its discs in its drives", Args: cobra.ExactArgs(1), Example: "  trayctl vm start web1",
		Long:              "Starts a machine. Its discs are found, and their volumes activated, before anything is\nstarted; one that can't be had stops the start, unless it is optional.",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			var began wire.MachineStarted
			if err := c.client.do(cmd.Context(), "POST", vmPath(args[0], "start"), nil, &began); err != nil {
				return err
			}
			c.warn(began.Warnings)
			return c.print(began, func(w io.Writer) { fmt.Fprintf(w, "%s: running (pid %d)\n", began.VM, began.PID) })
		}),
	}
}

func (c *cli) vmStopCommand() *cobra.Command {
	var body wire.StopRequest
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "stop NAME", Short: "Ask a machine's guest to power off, and wait until it has", Args: cobra.ExactArgs(1),
		Long:              "Presses the power button (ACPI), and waits until the machine has ended. A guest that doesn't\npower off in time is left alone, unless --then-force ends it.",
		Example:           "  trayctl vm stop web1\n  trayctl vm stop web1 --wait 2m --then-force",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("wait") {
				body.Wait = wait.String()
			}
			var res wire.StopResult
			if err := c.client.do(cmd.Context(), "POST", vmPath(args[0], "stop"), body, &res); err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) {
				how := "stopped"
				if res.Forced {
					how = "ended, as its guest didn't power off in time"
				}
				fmt.Fprintf(w, "%s: %s\n", res.VM, how)
			})
		}),
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for the guest, such as 2m (default: machines.stop_wait)")
	cmd.Flags().BoolVar(&body.ThenForce, "then-force", false, "end the machine when its guest hasn't powered off by then")
	return cmd
}

// vmVerbCommand is a command that does one thing to one machine at once.
func (c *cli) vmVerbCommand(verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1), Example: "  trayctl vm " + verb + " web1", ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			var vm wire.VMStatus
			if err := c.client.do(cmd.Context(), "POST", vmPath(args[0], verb), nil, &vm); err != nil {
				return err
			}
			return c.print(vm, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", vm.Name, done) })
		}),
	}
}

func (c *cli) vmRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Remove a machine that is stopped, with its disks", Args: cobra.ExactArgs(1), Example: "  trayctl vm rm web1",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			path := vmPath(args[0])
			if force {
				path += "?force=true"
			}
			if err := c.client.do(cmd.Context(), "DELETE", path, nil, nil); err != nil {
				return err
			}
			return c.print(map[string]string{"removed": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "%s: removed, with its disks\n", args[0]) })
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "end it first if it runs")
	return cmd
}

func (c *cli) vmAutostartCommand() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "autostart NAME", Short: "Start a machine whenever the host has booted", Args: cobra.ExactArgs(1),
		Example: "  trayctl vm autostart web1\n  trayctl vm autostart web1 --off", ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			on := !off
			var vm wire.VMStatus
			if err := c.client.do(cmd.Context(), "PATCH", vmPath(args[0]), wire.MachineChange{Autostart: &on}, &vm); err != nil {
				return err
			}
			return c.print(vm, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s\n", vm.Name, map[bool]string{true: "is started when the host has booted", false: "isn't started when the host has booted"}[on])
			})
		}),
	}
	cmd.Flags().BoolVar(&off, "off", false, "don't")
	return cmd
}

func (c *cli) vmScreenshotCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "screenshot NAME", Short: "Take a picture (PNG) of a machine's screen", Args: cobra.ExactArgs(1),
		Example: "  trayctl vm screenshot win1 -o win1.png\n  trayctl vm screenshot win1 -o - > win1.png", ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if to == "" {
				to = args[0] + ".png"
			}
			var picture bytes.Buffer
			if err := c.fetch(cmd.Context(), vmPath(args[0], "screenshot"), &picture); err != nil {
				return err
			}
			if to == "-" {
				_, err := c.stdout.Write(picture.Bytes())
				return err
			}
			if err := os.WriteFile(to, picture.Bytes(), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(c.stderr, "%s\n", to)
			return nil
		}),
	}
	// In place of the -o that all commands have: a picture is neither a table nor JSON.
	cmd.Flags().StringVarP(&to, "output", "o", "", "the file; - is standard output (default NAME.png)")
	return cmd
}

func (c *cli) vmLogCommand() *cobra.Command {
	return &cobra.Command{
		Use: "log NAME", Short: "Show what a machine has said on its serial console", Args: cobra.ExactArgs(1), Example: "  trayctl vm log web1",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			return c.fetch(cmd.Context(), vmPath(args[0], "log"), &visible{c.stdout})
		}),
	}
}

// fetch copies an answer that isn't JSON.
func (c *cli) fetch(ctx context.Context, path string, to io.Writer) error {
	a, err := c.client.send(ctx, "GET", path, nil, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	n, err := io.Copy(to, a)
	if err == nil && a.length >= 0 && n != a.length {
		err = c.client.brokeOff(io.ErrUnexpectedEOF)
	}
	return err
}

// visible leaves out what a guest, or a QEMU that one has taken over and whose words are
// shown, could play with a terminal by: all control characters but tabs and line ends.
type visible struct{ w io.Writer }

func (v *visible) Write(b []byte) (int, error) {
	clean := bytes.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f || 0x80 <= r && r < 0xa0 {
			return -1
		}
		return r
	}, b)
	_, err := v.w.Write(clean)
	return len(b), err
}

// completeVM completes the name of a machine.
func (c *cli) completeVM(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var vms []wire.VMStatus
	if c.complete(cmd.Context(), "/v1/vms", &vms) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range vms {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
