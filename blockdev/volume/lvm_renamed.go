package volume

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// Somebody may rename a logical volume while it is used, and give another its name. What this
// Host has activated it knows by its device's uuid, which stays.

// find returns the volume's device if it is there; a kill of lvm2 leaves one that isn't
// active. It is the one that this Host has activated, as long as it is to be released: somebody
// may have renamed it since (lvrename, vgrename), and given another its name. Another device
// that happens to have its name is an error.
func (v *lvmVolume) find() (dmDevice, bool, error) {
	uuid := v.host.DeviceUUID(v.ref)
	if uuid == "" {
		return v.named()
	}
	d, there, err := dmStatusOf("", uuid)
	if err != nil {
		err = v.failed(err.Error(), err)
	}
	return d, there, err
}

// named is find for the volume that has the name now.
func (v *lvmVolume) named() (dmDevice, bool, error) {
	d, there, err := dmStatus(v.device())
	switch {
	case err != nil:
		return d, false, v.failed(err.Error(), err)
	case !there:
		return d, false, nil
	}
	return d, true, v.ours(d)
}

// DeviceUUID is what device-mapper calls the logical volume that this Host has activated by
// that name, and hasn't released yet: it stays when somebody renames the volume. It is "" for
// all others, and what Adopt takes after a restart.
func (h *Host) DeviceUUID(ref Ref) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uuids[ref]
}

// Adopt takes a logical volume for one that this Host has activated: an earlier one did, since
// the host was booted. uuid is its DeviceUUID then; "" takes the one that has the name now, if
// it is active. Other kinds, and what is none, are ignored.
func (h *Host) Adopt(ref Ref, uuid string) {
	if ref.Kind == LVM && uuid == "" {
		if v, err := h.lvmVolume(ref); err == nil {
			if d, there, err := v.named(); err == nil && there && d.Live {
				uuid = d.UUID
			}
		}
	}
	if ref.Kind == LVM && wholeLV.MatchString(uuid) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.uuids[ref] = uuid
	}
}

func (v *lvmVolume) forget() {
	v.host.mu.Lock()
	defer v.host.mu.Unlock()
	delete(v.host.uuids, v.ref)
}

// wholeLV matches the uuid of a logical volume's device: the group's and its own, each
// without its hyphens. Those of its layers have a suffix.
var wholeLV = regexp.MustCompile(`^LVM-[0-9A-Za-z]{64}$`)

// inUse refuses a name that belongs to another volume, or to none, by now, while the one that
// this Host has activated by it is open. One that isn't is released.
func (v *lvmVolume) inUse(ctx context.Context) error {
	if v.host.DeviceUUID(v.ref) == "" {
		return nil
	}
	d, there, err := v.find()
	switch {
	case err != nil:
		return err
	case !there: // somebody else has turned it off
		v.forget()
	case v.other(d) != "" && d.Open > 0:
		return v.renamed(d)
	case v.other(d) != "":
		return v.release(ctx)
	}
	return nil
}

// other is the name of the device's volume, unless it is this one's.
func (v *lvmVolume) other(d dmDevice) string {
	if d.Name == v.device() {
		return ""
	}
	vg, lv := namesOf(d.Name)
	return vg + "/" + lv
}

func (v *lvmVolume) renamed(d dmDevice) error {
	return &Error{
		Ref: v.ref, Reason: NoSuchVolume, Detail: fmt.Sprintf("it was renamed to %s after trayd had activated it", v.other(d)),
		Next: "use its new name; `trayctl volumes` shows whether a drive still has it by the old one, and needs it ejected first",
	}
}

// turnOn runs a command of lvm2 that activates the volume, and adopts the device that this
// made. By the time that the command has ended somebody who waited for its lock may have renamed
// the volume: only the command itself can tell, and its log is the one place where it does (a
// report with the log in it ends lvm2 2.03.16 with SIGSEGV where there is a selection). Asking
// before by lvs would take half as long again.
func (v *lvmVolume) turnOn(ctx context.Context, config, command string, args ...string) (output, error) {
	o, err := v.host.lvm(ctx, command, append([]string{"--config", config + activationLog}, args...)...)
	if uuid := loggedUUID(string(o.stdout), v.device()); uuid != "" {
		v.host.Adopt(v.ref, uuid)
	}
	return o, err
}

// activationLog has lvm2 write to its standard output what it says to device-mapper: those of
// its lowest level, 7, that are of one class; see lvm.conf(5).
const activationLog = ` log{file="/proc/self/fd/1" level=7 debug_classes=["activation"] syslog=0}`

// loggedUUID finds in lvm2's log the uuid of the device that had this name: it asks
// device-mapper about each under the lock of the group, in the same words in lvm2 2.03.11 to
// 2.03.31. "" is none.
func loggedUUID(log, device string) (uuid string) {
	for line := range strings.Lines(log) {
		_, after, found := strings.Cut(line, "Getting device info for "+device+" [")
		if before, _, closed := strings.Cut(after, "]"); found && closed {
			uuid = before
		}
	}
	return uuid
}

// turnOff has lvm2 deactivate the volume of a device, whatever it is called by now.
func (v *lvmVolume) turnOff(ctx context.Context, d dmDevice) (output, error) {
	args := []string{"--config", lvmConfig, "--activate", "n"}
	if !wholeLV.MatchString(d.UUID) {
		return v.host.lvm(ctx, "lvchange", append(args, v.ref.Name)...)
	}
	id := d.UUID[len(d.UUID)-32:]
	hyphens := strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
	vg, _ := namesOf(d.Name)
	return v.host.lvm(ctx, "lvchange", append(args, "--select", fmt.Sprintf("lv_uuid=%q", hyphens), vg)...)
}

// namesOf is the reverse of device: a hyphen that stands alone is between both names, and in
// each they are doubled.
func namesOf(device string) (vg, lv string) {
	single := strings.NewReplacer("--", "-")
	for i := 0; i < len(device); i++ {
		if device[i] != '-' {
			continue
		}
		if i+1 == len(device) || device[i+1] != '-' {
			return single.Replace(device[:i]), single.Replace(device[i+1:])
		}
		i++
	}
	return device, ""
}
