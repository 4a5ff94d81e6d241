package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/config"
)

// cli is one run of the command.
type cli struct {
	stdout, stderr io.Writer
	config         string // path of the configuration
	output         string // table or json
}

func (c *cli) command() *cobra.Command {
	var print, check bool
	root := &cobra.Command{
		Use:   "trayd",
		Short: "Change discs in the CD drives of running QEMU machines",
		Long: `trayd is the agent that changes discs in the CD drives of this host's running QEMU
machines. Without a command it runs until SIGTERM; SIGHUP makes it read its
configuration anew. trayctl asks it to change discs.`,
		Example: `  trayd                                 run, as trayd.service does
  trayd --config ./trayd.toml           run with another configuration
  trayd --check-config                  say whether the configuration is right
  trayd --print-config > /etc/trayd/trayd.toml
  trayd state check                     say whether the state file is intact`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: ran(func([]string) error {
			switch {
			case print:
				_, err := io.WriteString(c.stdout, config.Reference())
				return err
			case check:
				return c.checkConfig()
			}
			return serve(c.config, c.stderr)
		}),
	}
	root.PersistentFlags().StringVar(&c.config, "config", config.DefaultPath, "the configuration; only the default one may be missing")
	root.Flags().BoolVar(&print, "print-config", false, "print a configuration with every key, its default and what it means")
	root.Flags().BoolVar(&check, "check-config", false, "say whether the configuration is right, without running")
	root.MarkFlagsMutuallyExclusive("print-config", "check-config")
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(c.stateCommand(), c.launchCommand(), c.networkCommand(), &cobra.Command{
		Use:     "version",
		Short:   "Print the version of trayd",
		Example: "  trayd version",
		Args:    cobra.NoArgs,
		RunE: ran(func([]string) error {
			_, err := fmt.Fprintln(c.stdout, "trayd", version)
			return err
		}),
	})
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Show the help of a command", Example: "  trayd help state repair",
		RunE: func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("no command %q", strings.Join(args, " "))
			}
			return about.Help()
		}})
	return root
}

// ran marks the errors of a command that ran, so that all others are usage errors.
func ran(f func(args []string) error) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		if err := f(args); err != nil {
			return ranError{err}
		}
		return nil
	}
}

func (c *cli) checkConfig() error {
	if _, err := config.Load(c.config); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.stdout, c.config+": right")
	return err
}
