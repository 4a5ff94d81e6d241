package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// CDModules are the modules that a guest needs to see a CD on SATA, IDE, SCSI or USB.
var CDModules = []string{"ahci", "ata_piix", "virtio_pci", "virtio_scsi", "xhci_pci", "usb_storage", "sr_mod", "isofs", "udf"}

// Initramfs writes an initramfs at path: the program as /init, the modules and all
// that they depend on, and /modules, which names them in loading order.
func (k *Kit) Initramfs(path, program string, modules []string) error {
	index, err := k.index()
	if err != nil {
		return err
	}
	var order []string
	loaded := make(map[string][]byte)
	for _, m := range modules {
		if err := resolve(m, index, loaded, &order); err != nil {
			return err
		}
	}
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755), cpio.Directory("mnt", 0o755),
		cpio.StaticFile("init", string(init), 0o755),
		cpio.StaticFile("modules", strings.Join(order, "\n"), 0o644),
		cpio.Directory("lib", 0o755),
	}
	for _, name := range order {
		records = append(records, cpio.StaticFile("lib/"+name+".ko", string(loaded[name]), 0o644))
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cpio.Newc.Writer(f)
	if err := cpio.WriteRecords(w, records); err != nil {
		return err
	}
	return errors.Join(cpio.WriteTrailer(w), f.Close())
}

// index finds every module file by its name, with '-' as '_', as the kernel has it.
func (k *Kit) index() (map[string]string, error) {
	index := make(map[string]string)
	err := filepath.WalkDir(k.mods, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			name, _, _ := strings.Cut(d.Name(), ".ko")
			index[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	return index, err
}

// resolve reads a module and, first, those that it depends on. What isn't there as a
// module is built into the kernel.
func resolve(name string, index map[string]string, loaded map[string][]byte, order *[]string) error {
	name = strings.ReplaceAll(name, "-", "_")
	path, ok := index[name]
	if _, done := loaded[name]; done || !ok {
		return nil
	}
	packed, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// A Debian module carries a signature behind its ELF image; the ELF reader and
	// the kernel both look at the beginning only.
	ko, err := decompress(packed)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	loaded[name] = ko
	depends, err := dependencies(ko)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, d := range depends {
		if err := resolve(d, index, loaded, order); err != nil {
			return err
		}
	}
	*order = append(*order, name)
	return nil
}

// dependencies reads "depends=" of a module's .modinfo section.
func dependencies(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
