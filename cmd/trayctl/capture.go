package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) imageCaptureCommand() *cobra.Command {
	var (
		r    wire.CaptureRequest
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use: "capture VM", Short: "Make a disk image of a stopped machine's disk", Args: cobra.ExactArgs(1),
		Long: "Copies a disk of a machine into the library, as a golden image that other machines are made\nfrom. The machine has to be stopped, and stays as it is. The image stands alone, also where\nthe disk was linked.",
		Example: "  trayctl image capture win1 --name golden\n  trayctl image capture win1 --name golden --compress --shutdown\n" +
			"  trayctl vm create web1 --image image:golden --linked --start",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("wait") {
				r.Wait = wait.String()
			}
			var i wire.Image
			if err := c.client.do(cmd.Context(), "POST", vmPath(args[0], "capture"), r, &i); err != nil {
				return err
			}
			return c.follow(cmd.Context(), i)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&r.Name, "name", "", "the image's name")
	_ = cmd.MarkFlagRequired("name") // it was defined just now
	fl.StringVar(&r.Pool, "pool", "", "the pool (default: that of library.pool)")
	fl.StringVar(&r.Disk, "disk", "", "the disk (default: the first)")
	fl.BoolVar(&r.Compress, "compress", false, "compress it with zstd: smaller, and slower to make")
	fl.BoolVar(&r.Shutdown, "shutdown", false, "power a running machine off first")
	fl.DurationVar(&wait, "wait", 0, "how long its guest may take for that, such as 2m (default: machines.stop_wait)")
	return cmd
}
