package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trayd/trayd/internal/wire"
)

// maxSums is the largest file of sums or signature that is sent along, in bytes.
const maxSums = 1 << 20

func (c *cli) imageAddCommand() *cobra.Command {
	r := wire.ImageRequest{}
	var detach, bootable bool
	var checksum, signature string
	cmd := &cobra.Command{
		Use: "add NAME FILE|URL|- [MIRROR...]", Short: "Put an image into a pool: from a file, a URL, or stdin",
		Long: "Puts an image into a pool. A URL is downloaded by trayd, which goes on where it broke\n" +
			"off, also after a restart; more URLs are mirrors of the same file. The image is\n" +
			"compared with its checksum and signature, inspected, and can be used only then.\n" +
			"What it is is found out: a disc, for CD drives, or a qcow2 disk image, of which\n" +
			"machines are made. A raw disk image is one only with --format raw.\n" +
			"On a terminal there is a progress bar; otherwise a line of JSON a second, on stderr.",
		Example: "  trayctl image add debian debian-12.iso --pool fast\n" +
			"  trayctl image add debian https://cdimage.example.org/debian-12.iso --checksum file:https://cdimage.example.org/SHA256SUMS\n" +
			"  trayctl image add cloud debian-12-generic.qcow2\n" +
			"  ssh host cat debian-12.iso | trayctl image add debian - --checksum sha256:9da0...",
		Args: cobra.MinimumNArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			r.Name = strings.TrimPrefix(args[0], "image:")
			if cmd.Flags().Changed("bootable") {
				r.Bootable = &bootable
			}
			if err := attach(&r, checksum, signature); err != nil {
				return err
			}
			if isURL(args[1]) {
				r.URLs = args[1:]
				return c.addURL(cmd.Context(), r, detach)
			}
			if len(args) > 2 {
				return usageError{fmt.Errorf("mirrors are of a URL, and %s is a file", args[1])}
			}
			return c.addFile(cmd.Context(), r, args[1])
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.Pool, "pool", "", "the pool that takes it (default: as configured)")
	f.StringVar(&checksum, "checksum", "", "sha256:HEX, sha512:HEX, bare HEX, {SHA-512}HEX, or file:URL-OR-PATH of a file of sums")
	f.StringVar(&signature, "signature", "", "URL or file of a minisign or OpenPGP signature, of the image or of the file of sums")
	f.StringVar(&r.SignatureOf, "signature-of", "", `"image" or "sums", where the names don't tell`)
	f.BoolVar(&r.AllowWeak, "allow-weak-checksum", false, "take an MD5 or SHA-1, if the host does")
	f.StringVar(&r.OSType, "os-type", "", "the operating system, for people and programs")
	f.StringVar(&r.Site, "site", "", "a label of the site that it is for")
	f.BoolVar(&bootable, "bootable", false, "declare that it boots, or with =false that it doesn't")
	f.StringVar(&r.Format, "format", "", "what it has to be: qcow2, raw or iso (default: found out; a raw disk only by this)")
	f.StringVar(&r.Integrity, "integrity", "", `"verity": check its content on every read, by dm-verity`)
	f.BoolVarP(&detach, "detach", "d", false, "don't wait for the download to end")
	return cmd
}

func isURL(s string) bool { return strings.Contains(s, "://") }

// attach reads what the client has of a checksum and a signature.
func attach(r *wire.ImageRequest, checksum, signature string) error {
	r.Checksum = checksum
	if file, ok := strings.CutPrefix(checksum, "file:"); ok && !isURL(file) {
		b, err := readSmall(file)
		if err != nil {
			return fmt.Errorf("the sums: %w", err)
		}
		r.Sums, r.Checksum = string(b), "file:"+filepath.Base(file)
	}
	r.Signature = signature
	if signature != "" && !isURL(signature) {
		b, err := readSmall(signature)
		if err != nil {
			return fmt.Errorf("the signature: %w", err)
		}
		r.Signature, r.SignatureData = "", b
		if r.SignatureOf == "" && strings.HasPrefix(checksum, "file:") {
			// debian.iso.asc is of the image, SHA256SUMS.asc of the sums.
			r.SignatureOf = "image"
			if name := filepath.Base(strings.TrimPrefix(checksum, "file:")); strings.HasPrefix(filepath.Base(signature), strings.TrimSuffix(name, filepath.Ext(name))) {
				r.SignatureOf = "sums"
			}
		}
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSums+1))
	if err == nil && len(b) > maxSums {
		err = fmt.Errorf("%s has more than %d bytes: is it the right file?", path, maxSums)
	}
	return b, err
}

// addURL has trayd download an image, and follows it.
func (c *cli) addURL(ctx context.Context, r wire.ImageRequest, detach bool) error {
	var i wire.Image
	if err := c.client.do(ctx, "POST", "/v1/images", r, &i); err != nil {
		return err
	}
	if detach {
		return c.print(i, func(w io.Writer) {
			fmt.Fprintf(w, "%s: %s; `trayctl image show %s` says how far it is\n", i, i.State, i.Name)
		})
	}
	return c.follow(ctx, i)
}

// addFile sends a file, or stdin, to trayd.
func (c *cli) addFile(ctx context.Context, r wire.ImageRequest, path string) error {
	f, size := os.Stdin, int64(-1)
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		switch {
		case st.IsDir(), !st.Mode().IsRegular() && st.Mode().Type() != os.ModeDevice:
			return fmt.Errorf("%s is not a regular file", path)
		case st.Mode().IsRegular():
			size = st.Size()
		default:
			if size, err = f.Seek(0, io.SeekEnd); err == nil {
				_, err = f.Seek(0, io.SeekStart)
			}
			if err != nil {
				return err
			}
		}
		r.FileName = filepath.Base(path)
	}
	path = imagePath(r.Pool, r.Name)
	if r.Checksum != "" || r.Signature != "" || r.SignatureData != nil || r.OSType != "" || r.Site != "" || r.Bootable != nil || r.Integrity != "" || r.Format != "" {
		var i wire.Image
		if err := c.client.do(ctx, "POST", "/v1/images", r, &i); err != nil {
			return err
		}
		path += "?announced=true"
	}
	p := c.newTransfer()
	sent := &sending{r: f, p: p, image: wire.Image{Name: r.Name, Pool: r.Pool, State: wire.ImageDownloading, Size: max(size, 0), Added: time.Now().UTC()}, began: time.Now()}
	fields := ""
	if size >= 0 {
		fields = fmt.Sprintf("%s: %d\r\n", wire.DescriptorHeader, f.Fd())
	}
	a, err := c.client.sendWith(ctx, "PUT", path, fields, sent, size)
	p.end()
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := c.client.read(ctx, a)
	if err != nil {
		return err
	}
	var i wire.Image
	if err := json.Unmarshal(b, &i); err != nil {
		return err
	}
	return c.added(i)
}

func (c *cli) added(i wire.Image) error {
	return c.print(i, func(w io.Writer) {
		fmt.Fprintf(w, "%s: added, %d bytes, sha256 %s\n", i, i.Size, i.SHA256)
		switch {
		case i.Signer != "":
			fmt.Fprintf(w, "signed by %s\n", escaped(i.Signer))
		case i.Checksum == "":
			fmt.Fprintln(w, "it was compared with nothing: give --checksum to know that it is the publisher's")
		}
		if i.Bootable != nil && *i.Bootable && i.Boot != nil && *i.Boot == (wire.ImageBoot{}) {
			fmt.Fprintln(w, "it was declared bootable, and nothing bootable was found in it")
		}
	})
}

// sending shows how much of a file is sent.
type sending struct {
	r     io.Reader
	p     *transfer
	image wire.Image
	began time.Time
	n     int64
}

func (s *sending) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.n += int64(n)
	rate := int64(float64(s.n) / max(time.Since(s.began).Seconds(), 0.001))
	s.image.Progress = &wire.ImageProgress{Bytes: s.n, Total: s.image.Size, Rate: rate}
	if left := s.image.Size - s.n; left > 0 && rate > 0 {
		s.image.Progress.Left = left / rate
	}
	s.p.show(s.image)
	return n, err
}

// followEvery is how often a download is asked for.
const followEvery = 250 * time.Millisecond

// follow shows a download until it ends. An interrupt ends the following, not the download.
func (c *cli) follow(ctx context.Context, i wire.Image) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := c.newTransfer()
	defer p.end()
	for {
		p.show(i)
		switch i.State {
		case wire.ImageReady:
			p.end()
			return c.added(i)
		case wire.ImageFailed:
			return &wire.Problem{Code: string(i.Failure.Code), Detail: fmt.Sprintf("%s: %s", i, i.Failure.Cause), Next: i.Failure.Remedy}
		}
		var now wire.Image
		err := c.client.do(ctx, "GET", imagePath(i.Pool, i.Name)+"?wait="+followEvery.String(), nil, &now)
		if errors.Is(err, context.Canceled) {
			p.end()
			return fmt.Errorf("the download goes on in trayd: `trayctl image show %s` shows it, `trayctl image cancel %s` stops it", i.Name, i.Name)
		}
		if err != nil {
			return err
		}
		i = now
	}
}

// transfer shows on stderr how far the bytes of an image are: a bar on a terminal, else a
// line of JSON when the state changes, and every second.
type transfer struct {
	w     io.Writer
	width int // of the terminal; 0: none
	last  time.Time
	state wire.ImageState
	shown bool
}

func (c *cli) newTransfer() *transfer {
	t := &transfer{w: c.stderr}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			t.width = w
		}
	}
	return t
}

func (t *transfer) show(i wire.Image) {
	every := time.Second
	if t.width > 0 {
		every = followEvery / 2
	}
	if i.State == t.state && time.Since(t.last) < every {
		return
	}
	t.last, t.state = time.Now(), i.State
	if t.width == 0 {
		_ = json.NewEncoder(t.w).Encode(i)
		return
	}
	line := i.Name + "  " + progressLine(i)
	if p := i.Progress; p != nil && p.Total > 0 {
		if room := t.width - len([]rune(line)) - 6; room >= 10 {
			full := int(int64(min(room, 40)) * p.Bytes / p.Total)
			line += "  [" + strings.Repeat("=", full) + strings.Repeat(" ", min(room, 40)-full) + "]"
		}
	}
	if runes := []rune(line); len(runes) >= t.width {
		line = string(runes[:t.width-1])
	}
	fmt.Fprintf(t.w, "\r\x1b[K%s", line)
	t.shown = true
}

// end clears the bar.
func (t *transfer) end() {
	if t.shown {
		fmt.Fprint(t.w, "\r\x1b[K")
		t.shown = false
	}
}

// progressLine is how far an image is, in words.
func progressLine(i wire.Image) string {
	p := i.Progress
	if p == nil {
		return string(i.State)
	}
	if p.Waiting != "" {
		return fmt.Sprintf("%s, waiting to try again (attempt %d): %s", humanBytes(p.Bytes), p.Attempt, p.Waiting)
	}
	s := humanBytes(p.Bytes)
	if p.Total > 0 {
		s = fmt.Sprintf("%3d %%  %s of %s", p.Bytes*100/p.Total, s, humanBytes(p.Total))
	}
	if p.Rate > 0 {
		s += "  " + humanBytes(p.Rate) + "/s"
	}
	if p.Left > 0 {
		s += "  " + (time.Duration(p.Left) * time.Second).String() + " left"
	}
	return s
}
