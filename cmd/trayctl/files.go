package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// discFile is a file on a disc, as it is listed.
type discFile struct {
	Name     string    `json:"name"` // its path, without a slash at the beginning
	Type     string    `json:"type"` // "file", "directory", "symlink" or "other"
	Mode     string    `json:"mode"` // as ls prints it
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified,omitzero"`
	Target   string    `json:"target,omitempty"` // of a symbolic link
}

func (c *cli) imageListFilesCommand() *cobra.Command {
	var flat bool
	cmd := &cobra.Command{
		Use: "ls-files FILE|NAME [DIR]", Short: "List the files on a disc",
		Long: "Lists the files on a disc, with those in all directories beneath DIR, as `7z l` and\n`isoinfo -f` do: mode, size in bytes, date in UTC, path. Control characters in names\nare printed as escapes." + whichImage,
		Example: "  trayctl image ls-files debian-12.iso\n" +
			"  trayctl image ls-files debian-12.iso /isolinux --flat",
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: completeFile,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			i, err := c.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer i.Close()
			files, err := i.files()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return c.listFiles(files, discPath(append(args, ".")[1]), flat)
		}),
	}
	cmd.Flags().BoolVar(&flat, "flat", false, "only DIR itself, without the directories in it")
	return cmd
}

// listFiles prints what is beneath a directory. What can't be read of it is said at the end.
func (c *cli) listFiles(files fs.FS, dir string, flat bool) error {
	all := []discFile{}
	out := bufio.NewWriter(c.stdout)
	show := func(f discFile) { all = append(all, f) }
	if c.output != "json" { // as they come: there may be very many
		show = func(f discFile) { printFile(out, f) }
	}
	failed := 0
	var first error
	err := fs.WalkDir(files, dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == dir {
				return err
			}
			if failed++; first == nil {
				first = err
			}
			return nil
		}
		if p == dir && d.IsDir() {
			return nil
		}
		f, err := describe(files, p, d)
		if err != nil {
			return err
		}
		show(f)
		if flat && d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err == nil && c.output == "json" {
		err = c.print(all, nil)
	}
	if err = errors.Join(out.Flush(), err); err != nil {
		return escapedError{err}
	}
	if failed > 0 {
		return escapedError{fmt.Errorf("%d directories can't be read, the first: %w", failed, first)}
	}
	return nil
}

func describe(files fs.FS, p string, d fs.DirEntry) (discFile, error) {
	info, err := d.Info()
	if err != nil {
		return discFile{}, err
	}
	f := discFile{Name: p, Type: "other", Mode: info.Mode().String(), Size: info.Size(), Modified: info.ModTime()}
	switch d.Type() {
	case 0:
		f.Type = "file"
	case fs.ModeDir:
		f.Type = "directory"
	case fs.ModeSymlink:
		f.Type = "symlink"
		f.Target, err = fs.ReadLink(files, p)
	}
	return f, err
}

func printFile(w io.Writer, f discFile) {
	modified, arrow := "-", ""
	if !f.Modified.IsZero() {
		modified = f.Modified.Format("2006-01-02 15:04")
	}
	if f.Type == "symlink" {
		arrow = " -> " + escaped(f.Target)
	}
	fmt.Fprintf(w, "%s %12d  %-16s  %s%s\n", f.Mode, f.Size, modified, escaped(f.Name), arrow)
}

func (c *cli) imageCatCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cat FILE|NAME PATH", Short: "Print a file of a disc",
		Long: "Prints a file of a disc as it is, to stdout. PATH is as `trayctl image ls-files` lists\nit; symbolic links are followed on the disc." + whichImage,
		Example: "  trayctl image cat debian-12.iso /.disk/info\n" +
			"  trayctl image cat debian-12.iso install.amd/vmlinuz > vmlinuz",
		Args: cobra.ExactArgs(2), ValidArgsFunction: completeFile,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			i, err := c.openImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer i.Close()
			files, err := i.files()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			f, err := files.Open(discPath(args[1]))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no file %s on the disc: `trayctl image ls-files %s` lists what there is, in its upper and lower case", args[1], args[0])
			}
			if err != nil {
				return escapedError{err}
			}
			defer f.Close()
			if st, err := f.Stat(); err == nil && st.IsDir() {
				return fmt.Errorf("%s is a directory: `trayctl image ls-files %s %s` lists it", args[1], args[0], args[1])
			}
			if _, err := io.CopyBuffer(onlyWriter{c.stdout}, onlyReader{f}, make([]byte, copyBuffer)); err != nil {
				return escapedError{err}
			}
			return nil
		}),
	}
}

// copyBuffer is how much of a file is read at once, in bytes.
const copyBuffer = 256 << 10

// onlyReader and onlyWriter keep io.CopyBuffer from using buffers of its own.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// discPath makes a path on a disc of an argument, which may begin with a slash or end in one.
func discPath(arg string) string {
	if p := path.Clean("/" + arg)[1:]; p != "" {
		return p
	}
	return "."
}

// escapedError is an error that has names of a disc in it.
type escapedError struct{ error }

func (e escapedError) Error() string { return escaped(e.error.Error()) }
func (e escapedError) Unwrap() error { return e.error }

// escaped makes a name of a disc fit for a terminal: what can't be printed, and the backslash, as in a Go string.
func escaped(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == '\\' || !strconv.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}
