package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// InstallerLabel is the volume identifier of the disc that Installer makes.
const InstallerLabel = "INSTALLER"

// installerModules are what integration/installer needs: its disk, and the power button.
var installerModules = append([]string{"virtio_blk", "button", "evdev"}, CDModules...)

// Installer makes the disc from which a small system installs itself, with program
// (integration/installer) as its init, or finds it in the kit's cache. It takes 4 s once.
func (k *Kit) Installer(ctx context.Context, program string) (string, error) {
	init, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	kernel, err := os.ReadFile(k.Packed)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(slices.Concat(init, kernel, fmt.Append(nil, installerModules, KernelOptions, grubModules)))
	path := filepath.Join(k.Dir, "installer-"+hex.EncodeToString(sum[:8])+".iso")
	if there(path) {
		return path, nil
	}
	old, err := filepath.Glob(filepath.Join(k.Dir, "installer-*.iso"))
	if err != nil {
		return "", err
	}
	for _, o := range old { // of another program
		err = errors.Join(err, os.Remove(o))
	}
	work, err2 := os.MkdirTemp(k.Dir, ".installer-")
	if err = errors.Join(err, err2); err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	initramfs, system, made := filepath.Join(work, "initramfs"), filepath.Join(work, "system.img"), filepath.Join(work, "installer.iso")
	if err := k.Initramfs(initramfs, program, installerModules); err != nil {
		return "", err
	}
	disc := BootDisc{Label: "SYSTEM", Kernel: k.Packed, Initramfs: initramfs, Append: KernelOptions + " role=system"}
	if err := disc.Write(ctx, system); err != nil {
		return "", err
	}
	disc.Label, disc.Append, disc.Files = InstallerLabel, KernelOptions+" role=installer", map[string]string{"system.img": system}
	if err := disc.Write(ctx, made); err != nil {
		return "", err
	}
	return path, os.Rename(made, path)
}
