package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image add|ls|rm|inspect|ls-files|cat", DisableFlagsInUseLine: true, Short: "Keep images in pools, and look into them",
		Long:    "Keeps images in the pools that trayd's configuration defines. An image is put into a\ndrive by its name: `trayctl change vm1 image:debian`.\n\nLooks into images too, in files and without an agent: inspect, ls-files, cat.",
		Example: "  trayctl image add debian debian-12.iso --pool fast\n  trayctl image ls\n  trayctl image rm debian --pool fast\n  trayctl image inspect debian-12.iso",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for \"trayctl image\": use add, ls, rm, inspect, ls-files or cat", args[0])
			}
			return errors.New("trayctl image: use add, ls, rm, inspect, ls-files or cat")
		},
	}
	cmd.AddCommand(c.imageAddCommand(), c.imageListCommand(), c.imageRemoveCommand(),
		c.imageInspectCommand(), c.imageListFilesCommand(), c.imageCatCommand())
	return cmd
}

func imagePath(pool, name string) string {
	return "/v1/pools/" + url.PathEscape(pool) + "/images/" + url.PathEscape(name)
}

func (c *cli) imageAddCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: "add NAME FILE", Short: "Put a file into a pool as an image",
		Long:    "Puts a file into a pool: a directory, or a volume group, where it becomes a logical\nvolume. It is written, read back and compared, and known by its name only then.",
		Example: "  trayctl image add debian debian-12.iso --pool fast",
		Args:    cobra.ExactArgs(2),
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return err
			}
			if !st.Mode().IsRegular() {
				return fmt.Errorf("%s is not a regular file", args[1])
			}
			a, err := c.client.send(cmd.Context(), "PUT", imagePath(pool, args[0]), f, st.Size())
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := c.client.read(cmd.Context(), a)
			if err != nil {
				return err
			}
			var i wire.Image
			if err := json.Unmarshal(b, &i); err != nil {
				return err
			}
			return c.print(i, func(w io.Writer) {
				fmt.Fprintf(w, "%s: added, %d bytes, sha256 %s\n", i, i.Size, i.SHA256)
			})
		}),
	}
	cmd.Flags().StringVar(&pool, "pool", "", "the pool that takes it")
	must(cmd.MarkFlagRequired("pool"))
	return cmd
}

func (c *cli) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the images that were added to pools", Example: "  trayctl image ls -o json", Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var images []wire.Image
			if err := c.client.do(cmd.Context(), "GET", "/v1/images", nil, &images); err != nil {
				return err
			}
			return c.print(images, func(w io.Writer) {
				row(w, "IMAGE", "POOL", "VOLUME ID", "SIZE", "ADDED", "SHA256")
				for _, i := range images {
					row(w, i.Name, i.Pool, i.VolumeID, fmt.Sprint(i.Size), i.Added.Local().Format("2006-01-02 15:04"), i.SHA256[:min(12, len(i.SHA256))])
				}
			})
		}),
	}
}

func (c *cli) imageRemoveCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Remove an image that no drive uses", Args: cobra.ExactArgs(1),
		Example: "  trayctl image rm debian --pool fast",
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			name := strings.TrimPrefix(args[0], "image:")
			if err := c.client.do(cmd.Context(), "DELETE", imagePath(pool, name), nil, nil); err != nil {
				return err
			}
			return c.print(map[string]string{"removed": name}, func(w io.Writer) { fmt.Fprintf(w, "image:%s/%s: removed\n", pool, name) })
		}),
	}
	cmd.Flags().StringVar(&pool, "pool", "", "the pool that has it")
	must(cmd.MarkFlagRequired("pool"))
	return cmd
}
