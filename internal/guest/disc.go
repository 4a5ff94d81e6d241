package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BootDisc is a disc that boots Linux on BIOS and on UEFI, from a CD drive as well as
// from a disk that its image was written to.
type BootDisc struct {
	Label     string
	Kernel    string // a packed one
	Initramfs string
	Append    string            // the kernel's command line
	Files     map[string]string // more files: the name on the disc, and the file
}

// grubModules is all that GRUB needs to find its disc and start a kernel from it: its own
// configuration on such discs loads the readers of all partition tables.
const grubModules = "normal iso9660 search search_fs_uuid linux test echo part_msdos part_gpt part_acorn part_amiga part_apple " +
	"part_bsd part_dfly part_dvh part_plan part_sun part_sunpc"

// Write makes the disc's image at path. It needs grub-mkrescue with GRUB's files for BIOS
// and UEFI, xorriso and mtools.
func (d *BootDisc) Write(ctx context.Context, path string) error {
	work, err := os.MkdirTemp(filepath.Dir(path), ".disc-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	grub := filepath.Join(work, "boot", "grub")
	if err := os.MkdirAll(grub, 0o755); err != nil {
		return err
	}
	menu := fmt.Sprintf("linux /boot/linux %s\ninitrd /boot/initramfs\nboot\n", d.Append)
	if err := os.WriteFile(filepath.Join(grub, "grub.cfg"), []byte(menu), 0o644); err != nil {
		return err
	}
	files := map[string]string{"boot/linux": d.Kernel, "boot/initramfs": d.Initramfs}
	for name, file := range d.Files {
		files[name] = file
	}
	for name, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), content, 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "grub-mkrescue", "-o", path, "--install-modules="+grubModules, "--fonts=", "--themes=", "--locales=",
		work, "--", "-volid", d.Label)
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &words, &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("grub-mkrescue: %w\n%s", err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}
