package qemutest

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Guest plays the guest of a machine with a CD drive: of several, it has the first on
// its bus. It goes on after a reset, as a guest that has booted again.
type Guest struct {
	t       testing.TB
	adapter adapter
}

// adapter is the guest's driver for one kind of host adapter. All work on a machine
// that is stopped (-S), too: QEMU does what their registers ask for at once or in
// bottom halves, with no timer, and its block layer reads on.
type adapter interface {
	// start sets the adapter up as a driver does at boot, whoever has had it before.
	start()
	// ready is false when a reset has undone that.
	ready() bool
	// send sends the drive a command and reads up to length bytes of its answer. An
	// error has a sense (SPC-4 4.5.3), nothing else has.
	send(length int, cdb []byte) (data, sense []byte)
}

// Guest connects to the machine, which has room for one guest at a time, and boots: an
// adapter that was added to the machine is there for the drive, so that it comes before
// the chipset's own.
func (v *VM) Guest(t testing.TB) *Guest {
	t.Helper()
	q := v.qtest(t)
	var added, own adapter
	for _, f := range q.pciFunctions() {
		id, class := f.config(pciID), f.config(pciClass)>>8
		switch {
		case id == virtioSCSIID || id == virtioSCSITransitionalID:
			added = &virtioSCSI{pciFunction: f}
		case class == xhciClass:
			added = &usbStorage{pciFunction: f}
		case class == ahciClass:
			own = &ahci{pciFunction: f}
		case class == ideClass:
			own = ide{q}
		}
	}
	if added == nil {
		added = own
	}
	require.NotNil(t, added, "the machine has no adapter that a Guest has a driver for")
	added.start()
	return &Guest{t: t, adapter: added}
}

// SCSI commands (SPC-4 6, SBC-3 5, MMC-6 6).
const (
	requestSense  = 0x03
	startStopUnit = 0x1B
	preventAllow  = 0x1E // PREVENT ALLOW MEDIUM REMOVAL
	readCapacity  = 0x25
	read10        = 0x28
	getEvent      = 0x4A // GET EVENT STATUS NOTIFICATION
)

const senseSize = 18 // of fixed format sense data (SPC-4 4.5.3)

// thenSense is send for the buses on which a driver has to ask for the sense.
func thenSense(packet func(length int, cdb []byte) (data []byte, ok bool), length int, cdb []byte) (data, sense []byte) {
	data, ok := packet(length, cdb)
	if !ok {
		sense, _ = packet(senseSize, []byte{requestSense, 0, 0, 0, senseSize, 0})
	}
	return data, sense
}

// command sends a command as a driver does: after an error, which may be a unit
// attention that the sense has cleared, it tries again. It returns the sense of the
// last error, or "". A new disc costs two tries on IDE (hw/ide/atapi.c, cdrom_changed), and
// the next may be in before they are made; so an attention begins the count anew.
func (g *Guest) command(length int, cdb ...byte) ([]byte, string) {
	g.t.Helper()
	const unitAttention, tries, attentions = 6, 4, 20
	said, attended := "", 0
	for try := 0; try < tries; try++ {
		if !g.adapter.ready() {
			g.adapter.start()
		}
		out, sense := g.adapter.send(length, cdb)
		if sense == nil {
			return out, ""
		}
		require.GreaterOrEqual(g.t, len(sense), senseSize, "a sense cut short")
		key := sense[2] & 0xf
		said = fmt.Sprintf("sense key %#x asc %#x", key, sense[12])
		if key == unitAttention && attended < attentions {
			try, attended = -1, attended+1
		}
	}
	return nil, said
}

// Lock holds the door.
func (g *Guest) Lock() {
	g.t.Helper()
	_, sense := g.command(0, preventAllow, 0, 0, 0, 1, 0)
	require.Empty(g.t, sense, "lock")
}

// Unlock lets the door go.
func (g *Guest) Unlock() {
	g.t.Helper()
	_, sense := g.command(0, preventAllow, 0, 0, 0, 0, 0)
	require.Empty(g.t, sense, "unlock")
}

// Eject opens the tray. It returns the sense of a refusal.
func (g *Guest) Eject() string {
	g.t.Helper()
	_, sense := g.command(0, startStopUnit, 0, 0, 0, 2, 0)
	return sense
}

// Load closes the tray.
func (g *Guest) Load() string {
	g.t.Helper()
	_, sense := g.command(0, startStopUnit, 0, 0, 0, 3, 0)
	return sense
}

// EjectRequested reports whether the host has asked the guest to eject, and takes
// note of it, as Linux does every two seconds (by the media class of events).
func (g *Guest) EjectRequested() bool {
	g.t.Helper()
	out, _ := g.command(8, getEvent, 1, 0, 0, 0x10, 0, 0, 0, 8, 0)
	return len(out) >= 8 && out[4]&0xf == 1
}

// Volume is the volume identifier that the guest reads off the disc, or what
// stopped it ("sense key 0x2 asc 0x3a": no medium).
func (g *Guest) Volume() string {
	g.t.Helper()
	// As a driver does with a new disc. QEMU's scsi-cd checks a read against what it
	// answered last (hw/scsi/scsi-disk.c, max_lba).
	if _, sense := g.command(8, readCapacity, 0, 0, 0, 0, 0, 0, 0, 0, 0); sense != "" {
		return sense
	}
	sector, sense := g.command(2048, read10, 0, 0, 0, 0, 16, 0, 0, 1, 0)
	if sense != "" {
		return sense
	}
	if len(sector) < 72 {
		return "short read"
	}
	// go-diskfs pads with zeroes where ECMA-119 8.4.6 wants blanks.
	return strings.Trim(string(sector[40:72]), " \x00")
}

// Size is the disc's capacity in bytes, as the guest sees it; 0 without a disc.
func (g *Guest) Size() int64 {
	g.t.Helper()
	out, sense := g.command(8, readCapacity, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	if sense != "" || len(out) < 8 {
		return 0
	}
	last, block := binary.BigEndian.Uint32(out), binary.BigEndian.Uint32(out[4:])
	return (int64(last) + 1) * int64(block)
}

// NoMedium is what Volume says of an empty drive or an open tray.
const NoMedium = "sense key 0x2 asc 0x3a"
