package fault

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trayd/trayd/internal/qemutest"
)

// The volume groups: of the discs that can be read, and of that which can't.
const (
	group   = "fault"
	failed  = "faultfailing"
	wrapped = "faultdisk" // the disk that fails, in device-mapper
)

// volumes are discs on logical volumes, inactive until somebody uses them.
type volumes struct {
	content string // a file with the content of FRESH
}

// newVolumes makes them on two empty disks, of which the second fails.
func newVolumes(ctx context.Context, dir string, disks [2]string) (*volumes, error) {
	v := &volumes{}
	if err := v.make(ctx, dir, disks); err != nil {
		v.close()
		return nil, fmt.Errorf("discs on logical volumes: %w", err)
	}
	return v, nil
}

func (v *volumes) make(ctx context.Context, dir string, disks [2]string) error {
	if err := commands(ctx, []string{"vgcreate", "-q", "-y", group, disks[0]}); err != nil {
		return err
	}
	for _, name := range []string{old, fresh} {
		disc, err := qemutest.WriteDisc(dir, name)
		if err != nil {
			return err
		}
		v.content = disc // the last is FRESH
		if err := write(ctx, group+"/"+name, disc); err != nil {
			return err
		}
	}
	return v.fail(ctx, disks[1])
}

// fail makes a disc on a disk whose content can't be read from now on: only what lvm2
// itself has written at its begin. The disk is seen through device-mapper, and from behind
// its begin, so that lvm2 doesn't find it twice.
func (v *volumes) fail(ctx context.Context, disk string) error {
	const (
		skipped = 4096      // sectors of 512 bytes
		head    = 2048      // lvm2's
		size    = 64 << 11  // of the whole
		extents = head >> 1 // KiB, where lvm2 begins with the extents
	)
	linear := fmt.Sprintf("0 %d linear %s %d", size, disk, skipped)
	broken := fmt.Sprintf("0 %d linear %s %d\n%d %d error", head, disk, skipped, head, size-head)
	if err := commands(ctx,
		[]string{"dmsetup", "create", wrapped, "--table", linear},
		[]string{"pvcreate", "-q", "-y", "--dataalignment", fmt.Sprintf("%dk", extents), "/dev/mapper/" + wrapped},
		[]string{"vgcreate", "-q", "-y", failed, "/dev/mapper/" + wrapped},
	); err != nil {
		return err
	}
	if err := write(ctx, failed+"/"+fresh, v.content); err != nil {
		return err
	}
	return commands(ctx,
		[]string{"dmsetup", "suspend", wrapped},
		[]string{"dmsetup", "load", wrapped, "--table", broken},
		[]string{"dmsetup", "resume", wrapped})
}

// write makes a logical volume with a disc, and leaves it inactive.
func write(ctx context.Context, volume, disc string) error {
	vg, lv, _ := strings.Cut(volume, "/")
	if err := commands(ctx, []string{"lvcreate", "-q", "-y", "-Wn", "-L", "4m", "-n", lv, vg}); err != nil {
		return err
	}
	content, err := os.ReadFile(disc)
	if err != nil {
		return err
	}
	device, err := os.OpenFile(filepath.Join("/dev", volume), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = device.Write(content)
	if err == nil {
		err = device.Sync()
	}
	if e := device.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return commands(ctx, []string{"lvchange", "-q", "-an", volume})
}

func commands(ctx context.Context, all ...[]string) error {
	for _, args := range all {
		if _, err := command(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (v *volumes) disc(volume string) string { return "lvm:" + group + "/" + volume }
func (v *volumes) missing() string           { return v.disc("MISSING") }
func (v *volumes) unreadable() string        { return "lvm:" + failed + "/" + fresh }

const gone = group + "/GONE"

func (v *volumes) spare(ctx context.Context) (string, error) {
	if _, err := command(ctx, "lvs", gone); err == nil {
		return v.disc("GONE"), nil
	}
	return v.disc("GONE"), write(ctx, gone, v.content)
}

// away, back and remove don't care about what is so already.
func (v *volumes) away()   { _, _ = command(context.Background(), "lvrename", "-q", gone, group+"/AWAY") }
func (v *volumes) back()   { _, _ = command(context.Background(), "lvrename", "-q", group+"/AWAY", gone) }
func (v *volumes) remove() { _, _ = command(context.Background(), "lvremove", "-q", "-y", gone) }

// is counts all that device-mapper has: nothing else of it is there.
func (*volumes) is(link string) bool {
	return strings.HasPrefix(link, "/dev/dm-") || strings.HasPrefix(link, "/dev/mapper/") && link != "/dev/mapper/control"
}

func (*volumes) left(ctx context.Context, d drive) (string, error) {
	devices, err := command(ctx, "dmsetup", "ls")
	if err != nil {
		return "", err
	}
	var active []string
	for line := range strings.Lines(devices) {
		name, _, ok := strings.Cut(line, "\t")
		// "No devices found" has no tab; a hyphen ends the group's name.
		if ok && (strings.HasPrefix(name, group+"-") || strings.HasPrefix(name, failed+"-")) {
			active = append(active, name)
		}
	}
	return unexplained(active, d), nil
}

// unexplained is "" if just the volume of the disc that is in is active.
func unexplained(active []string, d drive) string {
	switch {
	case !d.inserted && len(active) == 0:
		return ""
	case d.inserted && len(active) == 1 && (d.volume == none || slices.Contains(contents[active[0]], d.volume)):
		return "" // a guest can't read what is in an open tray
	}
	return "active: " + cmp.Or(strings.Join(active, ", "), "no volume")
}

// contents are what a guest may read off each volume, by its device's name.
var contents = map[string][]string{
	group + "-" + old:    {old},
	group + "-" + fresh:  {fresh},
	group + "-GONE":      {fresh},
	group + "-AWAY":      {fresh},
	failed + "-" + fresh: {unread},
}

func (v *volumes) close() {
	for _, args := range [][]string{
		{"vgchange", "-q", "-an", group, failed}, {"vgremove", "-q", "-y", "-f", group, failed}, {"dmsetup", "remove", "--retry", wrapped},
	} {
		_, _ = command(context.Background(), args[0], args[1:]...) // what was made, and isn't used any more
	}
}
