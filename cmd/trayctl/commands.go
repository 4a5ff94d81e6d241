package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

const defaultSocket = "/run/trayd/api.sock"

// cli is one run of the command.
type cli struct {
	stdout, stderr io.Writer
	host           host
	output         string // table or json
	client         *client
}

// target is a drive as named on the command line.
type target struct{ vm, drive string }

func parseTarget(arg string) (target, error) {
	vm, drive, named := strings.Cut(arg, "/")
	if vm == "" || named && drive == "" {
		return target{}, fmt.Errorf("%q names no drive: use VM or VM/DRIVE", arg)
	}
	return target{vm, drive}, nil
}

func (t target) String() string {
	if t.drive == "" {
		return t.vm
	}
	return t.vm + "/" + t.drive
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "trayctl",
		Short: "Put discs into the CD drives of running QEMU machines, and take them out",
		Long: `trayctl puts ISO discs into the CD drives of running QEMU machines and takes them
out again, through trayd. A change happens, or the old disc stays in.

DRIVE may be left out when the machine has one CD drive.`,
		Example: `  trayctl drives
  trayctl insert vm1 /srv/iso/debian.iso
  trayctl change vm1/cd0 /srv/iso/drivers.iso --wait 30s --then-force
  trayctl eject vm1`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("no output format %q: use table or json", c.output)
			}
			if cmd.Flags().Changed("socket") {
				c.host.url = "" // of the environment
			}
			c.client = &client{&c.host}
			return c.host.prepare()
		},
	}
	c.host.flags(root)
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table or json")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		c.statusCommand(), c.doctorCommand(), c.vmsCommand(), c.drivesCommand(), c.volumesCommand(), c.imageCommand(), c.vmCommand(),
		c.changeCommand(wire.Insert, "Put a disc into an empty drive",
			"Puts a disc into an empty drive. A drive that has a disc is left alone; the error says which.",
			"  trayctl insert vm1 /srv/iso/debian.iso\n  trayctl insert vm1/cd0 debian.iso"),
		c.changeCommand(wire.Replace, "Replace the disc in a drive, or put one into an empty drive",
			"Replaces the disc in a drive, or puts one into an empty drive. When anything fails the old disc stays in.\nAn empty MEDIUM (\"\") ejects.",
			"  trayctl change vm1 /srv/iso/drivers.iso\n  trayctl change vm1 drivers.iso --wait 30s --then-force"),
		c.changeCommand(wire.Eject, "Take the disc out of a drive",
			"Takes the disc out of a drive and closes the tray. An empty drive is a success.",
			"  trayctl eject vm1\n  trayctl eject vm1/cd0 --force"),
		c.cancelCommand(), c.forceCommand(), c.operationsCommand(), c.uiCommand(), c.tokenCommand(), c.eventsCommand(), c.stateCommand(), c.completionCommand(), c.versionCommand(),
	)
	root.SetHelpCommand(helpCommand())
	return root
}

// ran marks the errors of a command that ran, so that all others are usage errors.
func ran(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		var usage usageError
		if err == nil || errors.As(err, &usage) {
			return err
		}
		return ranError{err}
	}
}

// usageError is wrong usage that only the command itself can see.
type usageError struct{ error }

func (c *cli) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel VM[/DRIVE]",
		Short:             "Stop waiting for the guest; the old disc stays in",
		Example:           "  trayctl cancel vm1/cd0",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeDrive,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			t, err := parseTarget(args[0])
			if err != nil {
				return usageError{err}
			}
			var op wire.OperationStatus
			if err := c.client.do(cmd.Context(), "POST", drivePath(t)+"/cancel", nil, &op); err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) {
				fmt.Fprintf(w, "%s/%s: %s %s ended: %s\n", op.VM, op.Drive, op.Verb, op.Medium, ending(op))
			})
		}),
	}
}

func ending(op wire.OperationStatus) string {
	if op.Error != "" {
		return op.Error
	}
	return string(op.Result)
}

func (c *cli) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script for a shell",
		Example: `  trayctl completion bash > /etc/bash_completion.d/trayctl
  trayctl completion zsh  > "${fpath[1]}/_trayctl"
  trayctl completion fish > ~/.config/fish/completions/trayctl.fish`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "zsh":
				return cmd.Root().GenZshCompletion(c.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(c.stdout, true)
			}
			return cmd.Root().GenBashCompletionV2(c.stdout, true)
		}),
	}
}

// helpCommand replaces cobra's, which takes a command that doesn't exist for a success.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command",
		Example: "  trayctl help change\n  trayctl help state check",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return commandNames(about), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				if about == nil || !about.HasAvailableSubCommands() {
					about = cmd.Root()
				}
				return fmt.Errorf("no command %q: %s has %s", strings.Join(args, " "), about.CommandPath(), strings.Join(commandNames(about), ", "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func commandNames(of *cobra.Command) []string {
	var names []string
	for _, sub := range of.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of trayctl",
		Example: "  trayctl version",
		Args:    cobra.NoArgs,
		RunE: ran(func(*cobra.Command, []string) error {
			v := map[string]string{"version": version}
			return c.print(v, func(w io.Writer) { fmt.Fprintln(w, "trayctl", version) })
		}),
	}
}

// completeDrive completes VM[/DRIVE] with what the agent has, and then file names.
func (c *cli) completeDrive(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var vms []wire.VMStatus
	if c.complete(cmd.Context(), "/v1/vms", &vms) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range vms {
		if len(v.Drives) == 1 {
			names = append(names, v.Name)
		}
		for _, d := range v.Drives {
			names = append(names, v.Name+"/"+d.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// complete asks for what a shell completes with: before a command runs, so that what it
// prepares isn't there yet.
func (c *cli) complete(ctx context.Context, path string, out any) error {
	if err := c.host.prepare(); err != nil {
		return err
	}
	return (&client{&c.host}).do(ctx, "GET", path, nil, out)
}

// must is for what only a programming error makes fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
