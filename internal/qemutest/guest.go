package qemutest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The ports of PIIX's secondary IDE channel, on which Drive IDE and Legacy hang.
const (
	data     = 0x170
	errorReg = data + 1
	countLow = data + 4
	countHi  = data + 5
	device   = data + 6
	status   = data + 7
	master   = 0xA0
	packet   = 0xA0 // the PACKET command
	busy     = 0x80
	dataReq  = 0x08
	failed   = 0x01
)

// Guest plays the guest of an IDE CD drive (master of the secondary channel).
type Guest struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

// Guest connects to the machine's qtest socket, which serves one client.
func (v *VM) Guest(t testing.TB) *Guest {
	t.Helper()
	var c net.Conn
	require.Eventually(t, func() (ok bool) {
		var err error
		c, err = net.Dial("unix", v.QTest)
		return err == nil // the socket exists a moment before QEMU listens on it
	}, 5*time.Second, 5*time.Millisecond, "QEMU does not listen on its qtest socket")
	g := &Guest{t: t, conn: c, r: bufio.NewReader(c)}
	t.Cleanup(func() { c.Close() })
	return g
}

// io sends one line of the qtest protocol and returns the answer's number, if any.
func (g *Guest) io(format string, args ...any) int {
	g.t.Helper()
	require.NoError(g.t, g.conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := fmt.Fprintf(g.conn, format+"\n", args...)
	require.NoError(g.t, err)
	for {
		line, err := g.r.ReadString('\n')
		require.NoError(g.t, err, "qtest")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "IRQ" {
			continue
		}
		require.Equal(g.t, "OK", words[0], "qtest answered %q", line)
		if len(words) < 2 {
			return 0
		}
		n, err := strconv.ParseInt(strings.TrimPrefix(words[1], "0x"), 16, 64)
		require.NoError(g.t, err)
		return int(n)
	}
}

// packet sends one ATAPI packet by programmed I/O. It returns the error register (0:
// done) and up to length bytes of data.
func (g *Guest) packet(length int, cdb ...byte) (int, []byte) {
	g.t.Helper()
	g.io("outb %#x %#x", device, master)
	g.io("outb %#x 0", errorReg) // features: PIO
	g.io("outb %#x %#x", countLow, length&0xff)
	g.io("outb %#x %#x", countHi, length>>8)
	g.io("outb %#x %#x", status, packet)
	full := make([]byte, 12)
	copy(full, cdb)
	for i := 0; i < 12; i += 2 {
		g.io("outw %#x %#x", data, binary.LittleEndian.Uint16(full[i:]))
	}
	st := 0
	for range 2000 {
		if st = g.io("inb %#x", status); st&busy == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	var out []byte
	if length > 0 && st&dataReq != 0 {
		for range length / 2 {
			out = binary.LittleEndian.AppendUint16(out, uint16(g.io("inw %#x", data)))
		}
	}
	if st&failed == 0 {
		return 0, out
	}
	return g.io("inb %#x", errorReg), out
}

// command sends a packet as a driver does: after an error it asks for the sense,
// which clears a unit attention, and tries again. It returns the sense of the last
// error, or "".
func (g *Guest) command(length int, cdb ...byte) ([]byte, string) {
	g.t.Helper()
	sense := ""
	for range 4 {
		failure, out := g.packet(length, cdb...)
		if failure == 0 {
			return out, ""
		}
		_, s := g.packet(18, 0x03, 0, 0, 0, 18) // REQUEST SENSE
		if len(s) > 12 {
			sense = fmt.Sprintf("sense key %#x asc %#x", s[2]&0xf, s[12])
		}
	}
	return nil, sense
}

// Lock holds the door (PREVENT MEDIUM REMOVAL).
func (g *Guest) Lock() {
	g.t.Helper()
	_, sense := g.command(0, 0x1E, 0, 0, 0, 1)
	require.Empty(g.t, sense, "lock")
}

// Unlock lets the door go.
func (g *Guest) Unlock() {
	g.t.Helper()
	_, sense := g.command(0, 0x1E, 0, 0, 0, 0)
	require.Empty(g.t, sense, "unlock")
}

// Eject opens the tray (START STOP UNIT). It returns the sense of a refusal.
func (g *Guest) Eject() string {
	g.t.Helper()
	_, sense := g.command(0, 0x1B, 0, 0, 0, 2)
	return sense
}

// Load closes the tray.
func (g *Guest) Load() string {
	g.t.Helper()
	_, sense := g.command(0, 0x1B, 0, 0, 0, 3)
	return sense
}

// EjectRequested reports whether the host has asked the guest to eject, and takes
// note of it, as Linux does every two seconds (GET EVENT STATUS NOTIFICATION, media
// class).
func (g *Guest) EjectRequested() bool {
	g.t.Helper()
	out, _ := g.command(8, 0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)
	return len(out) >= 8 && out[4]&0xf == 1
}

// Volume is the volume identifier that the guest reads off the disc, or what
// stopped it ("sense key 0x2 asc 0x3a": no medium).
func (g *Guest) Volume() string {
	g.t.Helper()
	sector, sense := g.command(2048, 0x28, 0, 0, 0, 0, 16, 0, 0, 1)
	if sense != "" {
		return sense
	}
	if len(sector) < 72 {
		return "short read"
	}
	// go-diskfs pads with zeroes where ECMA-119 8.4.6 wants blanks.
	return strings.Trim(string(sector[40:72]), " \x00")
}

// NoMedium is what Volume says of an empty drive or an open tray.
const NoMedium = "sense key 0x2 asc 0x3a"
