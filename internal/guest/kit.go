// Package guest boots a real Linux guest that looks into its CD drives and says what
// it sees: Debian's own kernel, and a small static init (integration/guestinit) as
// its only program. From start to the first line takes 3 s under software emulation.
//
// The kernel comes from Debian's package archive by the host's own apt, is unpacked
// beside everything else into a cache, and nothing is installed. It is Debian's
// generic kernel: the cloud kernel has no AHCI.
package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Kit is what a guest is made of, in a cache directory.
type Kit struct {
	Dir    string // of the cache
	Kernel string // an unpacked ELF kernel, which QEMU starts by PVH
	Packed string // the same kernel as Debian packs it, which boot loaders start
	mods   string // the modules of that kernel, without the folder of its release
}

// Prepare makes a kit in dir, or finds the one that is there. It needs Debian's apt,
// dpkg-deb and the network once; out is shown what is being done, and apt's own words
// on how far it is. How long that takes is the mirror's affair: give ctx minutes.
func Prepare(ctx context.Context, dir string, out io.Writer) (*Kit, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	k := &Kit{Dir: dir, Kernel: filepath.Join(dir, "vmlinux"), Packed: filepath.Join(dir, "vmlinuz"), mods: filepath.Join(dir, "modules")}
	if there(k.Packed) && there(k.Kernel) {
		return k, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(dir, ".kernel-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	fmt.Fprintln(out, "fetching Debian's kernel package (70 MB, once) ...")
	if err := fetchKernel(ctx, work, out); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(work, "root/boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("the kernel package holds %d kernels", len(images))
	}
	image, err := os.ReadFile(images[0])
	if err != nil {
		return nil, err
	}
	kernel, err := unpack(image)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(k.mods); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(work, "root/*/modules/*"))
	if err != nil || len(found) == 0 {
		found, err = filepath.Glob(filepath.Join(work, "root/usr/*/modules/*"))
	}
	if err != nil || len(found) != 1 {
		return nil, errors.New("the kernel package holds no modules")
	}
	if err := os.Rename(found[0], k.mods); err != nil {
		return nil, err
	}
	// The kernel last: it is what says that the kit is whole.
	for _, f := range []struct {
		path    string
		content []byte
	}{{k.Packed, image}, {k.Kernel, kernel}} {
		if err := os.WriteFile(f.path+".new", f.content, 0o644); err != nil {
			return nil, err
		}
		if err := os.Rename(f.path+".new", f.path); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Modules is the folder with the kernel's modules, and its release (uname -r), which is
// that folder's name on an installed system.
func (k *Kit) Modules() (dir, release string, err error) {
	kernel, err := os.ReadFile(k.Kernel)
	if err != nil {
		return "", "", err
	}
	const banner = "Linux version "
	_, rest, ok := bytes.Cut(kernel, []byte(banner))
	if !ok {
		return "", "", fmt.Errorf("%s has no %q in it: remove %s, it is made anew", k.Kernel, banner, k.Dir)
	}
	name, _, _ := bytes.Cut(rest[:min(100, len(rest))], []byte(" "))
	return k.mods, string(name), nil
}

// fetchKernel downloads and unpacks the package that linux-image-amd64 stands for.
func fetchKernel(ctx context.Context, work string, out io.Writer) error {
	name, err := kernelPackage(ctx, out)
	if err != nil {
		return err
	}
	if err := run(ctx, work, out, "apt-get", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages", name, len(debs))
	}
	fmt.Fprintln(out, "unpacking it ...")
	return run(ctx, work, out, "dpkg-deb", "-x", debs[0], "root")
}

func kernelPackage(ctx context.Context, out io.Writer) (string, error) {
	for _, update := range []bool{false, true} {
		if update { // a bare machine has no package lists
			if err := updateLists(ctx, out); err != nil {
				return "", err
			}
		}
		depends, err := exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-amd64").Output()
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(depends)) {
			if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok {
				return name, nil
			}
		}
	}
	return "", errors.New("apt knows no package linux-image-amd64: this needs Debian on amd64 and a reachable mirror")
}

// updateLists fetches apt's package lists, which only root may.
func updateLists(ctx context.Context, out io.Writer) error {
	update := []string{"apt-get", "update"}
	if os.Geteuid() != 0 {
		update = append([]string{"sudo"}, update...)
	}
	fmt.Fprintf(out, "this machine has no package lists: %s\n", strings.Join(update, " "))
	return run(ctx, "", out, update[0], update[1:]...)
}

// run runs a command whose words go to out; on a terminal apt shows its progress.
func run(ctx context.Context, dir string, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout = dir, os.Stdin, out // sudo may ask
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}

// unpack takes the ELF kernel out of a bzImage. Under software emulation this saves
// the 4-5 s that the kernel would spend unpacking itself. The offsets are those of
// the x86 boot protocol: setup_sects at 0x1F1, payload_offset and payload_length at
// 0x248.
func unpack(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("the kernel is no bzImage")
	}
	sectors := int64(image[0x1F1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[0x248:]))
	end := start + int64(binary.LittleEndian.Uint32(image[0x24C:]))
	if end > int64(len(image)) || start+4 > end {
		return nil, errors.New("the kernel's payload lies outside its image")
	}
	// The last four bytes are the unpacked size, behind the compressed stream.
	return decompress(image[start : end-4])
}

// decompress unpacks what Debian's kernels and modules are packed with.
func decompress(b []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		// By the command: the kernel's payload goes through xz's x86 filter, which
		// the pure Go implementations that are kept well don't have.
		cmd := exec.Command("xz", "-dc")
		cmd.Stdin = bytes.NewReader(b)
		return cmd.Output()
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		r, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	case bytes.HasPrefix(b, []byte(elf.ELFMAG)):
		return b, nil
	}
	return nil, fmt.Errorf("unknown compression % x", b[:min(6, len(b))])
}
