package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image COMMAND", DisableFlagsInUseLine: true, Short: "The image library: add, list, check and remove images, and look into them",
		Long:    "Keeps images in the pools of trayd's configuration, and looks into images. A disc is\nput into a drive by its name, once it is ready: `trayctl change vm1 image:debian`.",
		Example: "  trayctl image add debian https://cdimage.example.org/debian-12.iso --checksum file:https://cdimage.example.org/SHA256SUMS\n  trayctl image ls\n  trayctl image rm debian",
	}
	cmd.AddCommand(
		c.imageAddCommand(), c.imageCaptureCommand(), c.imageListCommand(), c.imageShowCommand(), c.imageRemoveCommand(),
		c.imageChangeCommand("retry", "Begin a failed download again, where it was", "going on"),
		c.imageChangeCommand("cancel", "Stop a download; a retry goes on where it was", "cancelled"),
		c.imageChangeCommand("pin", "Keep an image from being removed to make room", "pinned"),
		c.imageChangeCommand("unpin", "Let an image be removed to make room", "unpinned"),
		c.imageChangeCommand("verify", "Read an image again, and compare it with what was added", "as it was added"),
		c.imageCollectCommand(),
		c.imageInspectCommand(), c.imageListFilesCommand(), c.imageCatCommand(),
	)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		use := strings.Join(commandNames(cmd), ", ")
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for \"trayctl image\": use %s", args[0], use)
		}
		return errors.New("trayctl image: use " + use)
	}
	return cmd
}

// imagePath is the API's path of an image: NAME, or POOL/NAME, with or without image:.
func imagePath(pool, name string) string {
	name = strings.TrimPrefix(name, "image:")
	if p, rest, ok := strings.Cut(name, "/"); ok && pool == "" {
		pool, name = p, rest
	}
	if pool == "" {
		pool = wire.AnyPool
	}
	return "/v1/pools/" + url.PathEscape(pool) + "/images/" + url.PathEscape(name)
}

// poolFlag is --pool of the commands about one image.
func poolFlag(cmd *cobra.Command, pool *string) {
	cmd.Flags().StringVar(pool, "pool", "", "the pool that has it (default: whichever does)")
}

func (c *cli) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the images of the pools", Example: "  trayctl image ls -o json", Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var images []wire.Image
			if err := c.client.do(cmd.Context(), "GET", "/v1/images", nil, &images); err != nil {
				return err
			}
			return c.print(images, func(w io.Writer) {
				row(w, "IMAGE", "POOL", "STATE", "KIND", "VOLUME ID", "SIZE", "BOOTS", "ADDED", "SHA256")
				for _, i := range images {
					row(w, i.Name, i.Pool, stateOf(i), cmp.Or(string(i.Kind), "-"), escaped(i.VolumeID), sizeOf(i.Size), bootsOf(i), i.Added.Local().Format("2006-01-02 15:04"), i.SHA256[:min(12, len(i.SHA256))])
				}
			})
		}),
	}
}

// stateOf is an image's state in a word or three.
func stateOf(i wire.Image) string {
	s := string(i.State)
	if p := i.Progress; p != nil && p.Total > 0 {
		s += fmt.Sprintf(" %d %%", p.Bytes*100/p.Total)
	}
	if i.Pinned {
		s += " (pinned)"
	}
	return s
}

func sizeOf(bytes int64) string {
	if bytes <= 0 {
		return "-"
	}
	return humanBytes(bytes)
}

// humanBytes is a size as people read it.
func humanBytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, prefix := float64(n)/unit, 0
	for f >= unit && prefix < 4 {
		f, prefix = f/unit, prefix+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[prefix])
}

// bootsOf is what boots from an image.
func bootsOf(i wire.Image) string {
	b := i.Boot
	if b == nil {
		return "-"
	}
	var on []string
	for _, f := range []struct {
		name string
		does bool
	}{{"BIOS", b.BIOS}, {"x64", b.UEFIx64}, {"arm64", b.UEFIarm64}} {
		if f.does {
			on = append(on, f.name)
		}
	}
	if len(on) == 0 {
		return "no"
	}
	return strings.Join(on, ",")
}

func (c *cli) imageShowCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show all that is known of an image", Args: cobra.ExactArgs(1), Example: "  trayctl image show debian",
		ValidArgsFunction: c.completeImage,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			var i wire.Image
			if err := c.client.do(cmd.Context(), "GET", imagePath(pool, args[0]), nil, &i); err != nil {
				return err
			}
			return c.print(i, func(w io.Writer) { imageTable(w, i) })
		}),
	}
	poolFlag(cmd, &pool)
	return cmd
}

// imageTable prints an image, a line for each thing that is known.
func imageTable(w io.Writer, i wire.Image) {
	line := func(what, value string) {
		if value != "" {
			row(w, what, escaped(value))
		}
	}
	line("image", i.String())
	line("state", stateOf(i))
	if p := i.Progress; p != nil {
		line("progress", progressLine(i))
		line("waiting", p.Waiting)
	}
	if f := i.Failure; f != nil {
		line("cause", f.Cause)
		line("remedy", f.Remedy)
		line("since", when(f.At))
		if f.Kept > 0 {
			line("kept", humanBytes(f.Kept))
		}
	}
	line("kind", string(i.Kind))
	line("format", i.Format)
	line("volume id", i.VolumeID)
	if i.Size > 0 {
		line("size", fmt.Sprintf("%s (%d bytes)", humanBytes(i.Size), i.Size))
	}
	if i.VirtualSize > 0 {
		line("virtual size", fmt.Sprintf("%s (%d bytes)", humanBytes(i.VirtualSize), i.VirtualSize))
	}
	if i.Boot != nil {
		line("boots", bootsOf(i))
	}
	if i.Bootable != nil {
		line("declared", map[bool]string{true: "bootable", false: "not bootable"}[*i.Bootable])
	}
	line("os type", i.OSType)
	line("site", i.Site)
	line("source", i.Source)
	line("sha256", i.SHA256)
	line("checksum", i.Checksum)
	line("signer", i.Signer)
	line("integrity", i.Integrity)
	line("root hash", i.RootHash)
	line("place", i.Place)
	line("added", when(i.Added))
	line("used", when(i.Used))
	line("in use by", strings.Join(i.Users, ", "))
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func (c *cli) imageRemoveCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Remove an image that nobody uses, or what is left of a failed one", Args: cobra.ExactArgs(1),
		Example: "  trayctl image rm debian --pool fast", ValidArgsFunction: c.completeImage,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if err := c.client.do(cmd.Context(), "DELETE", imagePath(pool, args[0]), nil, nil); err != nil {
				return err
			}
			name := strings.TrimPrefix(args[0], "image:")
			if pool != "" {
				name = pool + "/" + name
			}
			return c.print(map[string]string{"removed": name}, func(w io.Writer) { fmt.Fprintf(w, "image:%s: removed\n", name) })
		}),
	}
	poolFlag(cmd, &pool)
	return cmd
}

// imageChangeCommand is a command that does one thing to one image.
func (c *cli) imageChangeCommand(verb, short, done string) *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1), Example: "  trayctl image " + verb + " debian", ValidArgsFunction: c.completeImage,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			var i wire.Image
			if err := c.client.do(cmd.Context(), "POST", imagePath(pool, args[0])+"/"+verb, nil, &i); err != nil {
				return err
			}
			if verb == "retry" {
				return c.follow(cmd.Context(), i)
			}
			return c.print(i, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", i, done) })
		}),
	}
	poolFlag(cmd, &pool)
	return cmd
}

func (c *cli) imageCollectCommand() *cobra.Command {
	var dry bool
	var unused time.Duration
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove what is of no use: failed downloads, and images unused for long", Args: cobra.NoArgs,
		Long:    "Removes what failed downloads have left and staged copies whose pool is gone; with\n--unused also images that no drive has had for so long, unless they are pinned.",
		Example: "  trayctl image gc --dry-run\n  trayctl image gc --unused 720h",
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if dry {
				q.Set("dry_run", "true")
			}
			if unused > 0 {
				q.Set("unused", unused.String())
			}
			var all []wire.ImageRemoval
			if err := c.client.do(cmd.Context(), "POST", "/v1/images/gc?"+q.Encode(), nil, &all); err != nil {
				return err
			}
			return c.print(all, func(w io.Writer) {
				if len(all) == 0 {
					fmt.Fprintln(w, "nothing to remove")
					return
				}
				row(w, "REMOVED", "SIZE", "WHY")
				for _, r := range all {
					why := r.Why
					if r.Error != "" {
						why += "; it stays: " + r.Error
					}
					row(w, r.What, sizeOf(r.Bytes), why)
				}
			})
		}),
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	cmd.Flags().DurationVar(&unused, "unused", 0, "also images that no drive has had for so long, such as 720h")
	return cmd
}

// completeImage completes the name of an image of the library.
func (c *cli) completeImage(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var images []wire.Image
	if c.complete(cmd.Context(), "/v1/images", &images) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
