package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/iso"
)

// image is what the commands that look into one need of it.
type image interface {
	inspect() (iso.Report, error)
	files() (fs.FS, error)
	io.Closer
}

// openImage opens what an argument names. With a slash it is a file, as it is when there is one of that name here; nobody
// but the kernel is asked for those. All else, and always image:NAME, is an image of the library.
func (c *cli) openImage(ctx context.Context, arg string) (image, error) {
	if name, ok := strings.CutPrefix(arg, "image:"); ok {
		return c.libraryImage(ctx, name)
	}
	if _, err := os.Lstat(arg); err != nil && !strings.Contains(arg, "/") {
		return c.libraryImage(ctx, arg)
	}
	return openFileImage(arg)
}

// fileImage is an image in a file or on a block device of this host.
type fileImage struct {
	*os.File
	size int64 // bytes
}

func openFileImage(path string) (*fileImage, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	// Looked at before it is opened: opening a pipe would wait for somebody to write.
	if mode := st.Mode(); !mode.IsRegular() && (mode.Type() != fs.ModeDevice) {
		return nil, fmt.Errorf("%s is neither a regular file nor a block device", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // stat has none for devices
	if err != nil {
		f.Close()
		return nil, err
	}
	return &fileImage{f, size}, nil
}

func (f *fileImage) inspect() (iso.Report, error) { return iso.Inspect(f, f.size) }
func (f *fileImage) files() (fs.FS, error)        { return iso.Files(f, f.size) }

func (c *cli) imageInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE|NAME", Short: "Say what an image is, what it boots, and all that is wrong with it",
		Long: "Says what an image is, whether it is complete, what it boots, and all that is wrong\nwith it. Exit code 1 is for anything but a sound disc." + whichImage,
		Example: "  trayctl image inspect debian-12.iso\n" +
			"  trayctl image inspect ./download.iso -o json | jq .boot",
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeFile,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			i, err := c.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer i.Close()
			r, err := i.inspect()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := c.print(r, func(w io.Writer) { reportTable(w, &r) }); err != nil {
				return err
			}
			if err := r.Err(); err != nil {
				return fmt.Errorf("%s: %w: %s", args[0], err, remedy(err))
			}
			return nil
		}),
	}
}

// whichImage is for the commands' help.
const whichImage = "\n\nFILE is a path with a \"/\" or a file that is here, and needs no running agent. All else\nis the NAME of an image in a pool."

func completeFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// remedy is what to do about an image that is no sound disc.
func remedy(err error) string {
	var not *iso.NotDiscError
	var short *iso.TruncatedError
	switch {
	case errors.As(err, &not):
		return "look for the disc's image itself, a .iso file"
	case errors.As(err, &short):
		return "download or copy it again"
	}
	return "compare its checksum with the publisher's, and get it again"
}

// reportTable prints a report for people.
func reportTable(w io.Writer, r *iso.Report) {
	line := func(what, value string) {
		if value != "" {
			row(w, what, value)
		}
	}
	line("format", r.Found)
	if !r.IsDisc() {
		line("hint", r.Hint)
		line("size", fmt.Sprintf("%d bytes", r.Size))
		return
	}
	line("volume id", r.VolumeID)
	size := fmt.Sprintf("%d bytes", r.Size)
	switch {
	case r.Truncated:
		missing := r.DeclaredSize - r.Size
		size += fmt.Sprintf(": TRUNCATED, %d bytes (%.1f %%) of %d are missing", missing, 100*float64(missing)/float64(r.DeclaredSize), r.DeclaredSize)
	case r.Size > r.DeclaredSize:
		size += fmt.Sprintf(", of which the volume declares %d", r.DeclaredSize)
	}
	line("size", size)
	line("bootable", bootable(r.Boot))
	for _, e := range r.Boot.Entries {
		line("  entry", bootEntry(e))
	}
	line("hybrid", hybrid(r))
	if r.Sessions > 1 {
		line("sessions", fmt.Sprint(r.Sessions))
	}
	line("partitions", strings.Join(r.UDFPartitions, ", "))
	line("created", date(r.Created))
	line("modified", date(r.Modified))
	line("publisher", r.Publisher)
	line("preparer", r.Preparer)
	line("application", r.Application)
	if len(r.Defects) == 0 {
		line("defects", "none")
	}
	for _, d := range r.Defects {
		text := fmt.Sprintf("byte %d: %s", d.Offset, d.Defect)
		if d.Fatal {
			text += " (fatal)"
		}
		line("defect", text)
	}
}

// bootable says what of the known firmware boots from the disc, and what doesn't.
func bootable(b iso.Boot) string {
	var does, not []string
	for _, f := range []struct {
		name string
		ok   bool
	}{{"BIOS", b.BIOS}, {"UEFI x64", b.UEFIx64}, {"UEFI arm64", b.UEFIarm64}} {
		if f.ok {
			does = append(does, f.name)
		} else {
			not = append(not, f.name)
		}
	}
	switch {
	case len(does) == 0:
		return "no"
	case len(not) == 0:
		return strings.Join(does, ", ")
	}
	return fmt.Sprintf("%s (not %s)", strings.Join(does, ", "), strings.Join(not, ", "))
}

func bootEntry(e iso.BootEntry) string {
	text := e.Platform
	switch e.Media {
	case "none":
	case "hard-disk":
		text += ", hard disk"
	default:
		text += ", " + e.Media + " floppy"
	}
	text += fmt.Sprintf(", %d bytes at %d", e.Size, e.Offset)
	if len(e.Holds) > 0 {
		text += ", with " + strings.Join(e.Holds, ", ")
	}
	if !e.Bootable {
		text += ", marked as not bootable"
	}
	return text
}

func hybrid(r *iso.Report) string {
	switch {
	case r.Hybrid:
		return fmt.Sprintf("yes: boots from a USB stick too (%s)", r.PartitionTable)
	case r.PartitionTable != "none":
		return fmt.Sprintf("no, though it has a partition table (%s)", r.PartitionTable)
	}
	return "no"
}

func date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}
