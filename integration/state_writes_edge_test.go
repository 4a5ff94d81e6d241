//go:build edge

package integration_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/state"
)

// TestStateFileAtEveryWrite loses the power after each write that a disk got while trayd
// worked, and in the middle of each: dm-log-writes notes them in their order, and the disk
// is put together anew from every beginning of the list. What trayctl had answered by
// then is in the state file of each, and the state file is whole.
func TestStateFileAtEveryWrite(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	log := r.loggedDisk()
	r.machine("vm", qemutest.IDE.With("")...)
	r.start("")
	r.up()
	one, two := r.lv("ONE"), r.lv("TWO")
	said := []string{""} // what is in the drive, by the answer
	log.mark(0)
	for _, step := range [][]string{{"insert", "vm", one}, {"change", "vm", two}, {"eject", "vm"}} {
		r.must(step...)
		medium := ""
		if len(step) > 2 {
			medium = step[2]
		}
		said = append(said, medium)
		log.mark(len(said) - 1)
		if len(said) == 2 { // a start writes the file anew
			r.stop()
			r.start("")
			r.up()
		}
	}
	r.stop()
	disk, writes := log.taken()

	answered, states := -1, 0
	for i, w := range writes {
		if w.mark >= 0 {
			answered = w.mark
		}
		var torn []byte
		if answered >= 0 && !w.metadata && len(w.data) > 512 { // a sector is written whole or not at all
			torn = bytes.Clone(disk)
			copy(torn[w.offset:], w.data[:512])
		}
		copy(disk[w.offset:], w.data)
		if answered < 0 || w.mark < 0 && len(w.data) == 0 {
			continue
		}
		may := said[answered:min(answered+2, len(said))]
		if w.mark >= 0 {
			may = said[answered : answered+1] // nothing has begun since
		}
		for _, lost := range [][]byte{torn, disk} {
			if lost != nil {
				states++
				require.Contains(t, may, log.loadedOn(lost), "write %d of %d, answered %d", i, len(writes), answered)
			}
		}
	}
	require.Equal(t, len(said)-1, answered)
	require.Greater(t, states, 30)
	t.Logf("%d disks after loss of power", states)
}

// writeLog is a disk beneath the state file, and what is noted of it.
type writeLog struct {
	r           *volumeRig
	disk, notes string // files
	before      []byte // the disk with its empty file system
	spare       string // a device for the disks after a loss of power
}

const (
	logged     = "logged" // in device-mapper
	answerMark = "answer" // begins our marks
)

// loggedDisk mounts a disk whose writes are noted where the state file is.
func (r *volumeRig) loggedDisk() *writeLog {
	t := r.t
	dir := t.TempDir()
	l := &writeLog{r: r, disk: filepath.Join(dir, "disk"), notes: filepath.Join(dir, "notes")}
	spare := filepath.Join(dir, "spare")
	for file, size := range map[string]int64{l.disk: 4 << 20, spare: 4 << 20, l.notes: 64 << 20} {
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, size))
	}
	tool(t, "mkfs.ext4", "-q", "-b", "1024", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", l.disk)
	var err error
	l.before, err = os.ReadFile(l.disk)
	require.NoError(t, err)
	loop := func(file string) string {
		device := tool(t, "losetup", "--find", "--show", file)
		t.Cleanup(func() { tool(t, "losetup", "--detach", device) })
		return device
	}
	tool(t, "modprobe", "dm-log-writes")
	disk, notes := loop(l.disk), loop(l.notes)
	l.spare = loop(spare)
	tool(t, "dmsetup", "create", logged, "--table", fmt.Sprintf("0 %d log-writes %s %s", len(l.before)/512, disk, notes))
	t.Cleanup(func() { r.kill(); l.close() })
	require.NoError(t, os.Mkdir(filepath.Join(r.dir, "state"), 0o700))
	tool(t, "mount", "/dev/mapper/"+logged, filepath.Join(r.dir, "state"))
	return l
}

// mark notes that trayctl has given its answer of that number.
func (l *writeLog) mark(n int) {
	tool(l.r.t, "dmsetup", "message", logged, "0", "mark", answerMark+strconv.Itoa(n))
}

func (l *writeLog) close() {
	if l.disk != "" {
		l.disk = ""
		tool(l.r.t, "umount", filepath.Join(l.r.dir, "state"))
		tool(l.r.t, "dmsetup", "remove", "--retry", logged)
	}
}

// diskWrite is one write that the disk got.
type diskWrite struct {
	offset   int64
	data     []byte
	metadata bool // the file system's own
	mark     int  // or the number of an answer; -1 for a write
}

// taken ends it, and returns the disk as it was and what was written to it.
func (l *writeLog) taken() (disk []byte, writes []diskWrite) {
	t := l.r.t
	l.close()
	notes, err := os.ReadFile(l.notes)
	require.NoError(t, err)
	// As drivers/md/dm-log-writes.c has it: a superblock, then for each entry a sector
	// and the data, which a discard hasn't.
	const (
		magic                               = 0x6a736677736872
		discard, isMark, metadata           = 4, 8, 16
		entriesAt, sectorSizeAt, headerSize = 16, 24, 32
	)
	order := binary.LittleEndian
	require.EqualValues(t, magic, order.Uint64(notes))
	sector := int64(order.Uint32(notes[sectorSizeAt:]))
	at := sector
	for range order.Uint64(notes[entriesAt:]) {
		e := notes[at:]
		first, sectors, flags, length := order.Uint64(e), order.Uint64(e[8:]), order.Uint64(e[16:]), order.Uint64(e[24:])
		at += sector
		w := diskWrite{offset: int64(first) * sector, metadata: flags&metadata != 0, mark: -1}
		switch {
		case flags&isMark != 0:
			if n, ok := strings.CutPrefix(string(e[headerSize:headerSize+length]), answerMark); ok { // its end has a mark, too
				w.mark, err = strconv.Atoi(n)
				require.NoError(t, err)
			}
		case flags&discard == 0:
			w.data = notes[at : at+int64(sectors)*sector]
			at += int64(len(w.data))
		}
		writes = append(writes, w)
	}
	return l.before, writes
}

// loadedOn is what a state file on such a disk says is in the drive.
func (l *writeLog) loadedOn(disk []byte) string {
	r, t := l.r, l.r.t
	t.Helper()
	dir := filepath.Join(r.dir, "after")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	device, err := os.OpenFile(l.spare, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = device.Write(disk)
	require.NoError(t, errors.Join(err, device.Close()))
	require.NoError(t, unix.Mount(l.spare, dir, "ext4", 0, "")) // mount(8) takes longer than all else
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	j, err := state.Open(filepath.Join(dir, "state.journal"), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, j.Close()) }()
	loaded := ""
	j.Range(func(key string, value json.RawMessage) bool {
		if strings.HasPrefix(key, "drive/") {
			var rec agent.Record
			require.NoError(t, json.Unmarshal(value, &rec))
			if rec.Loaded != nil {
				loaded = rec.Loaded.Medium.Name
			}
		}
		return true
	})
	return loaded
}
