package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often Watch looks at the status of verity devices besides hearing of
// them: the kernel drops messages that nobody reads in time. unheard is the same where
// it can't hear.
const (
	lookEvery = 10 * time.Second
	unheard   = time.Second
)

// Watch reports each verity volume of this host that found a block that doesn't match
// its hash: once for each time that it is active, and again after a new Watch. It
// returns when ctx ends, or with the error that keeps it from watching.
//
// The kernel sends a uevent (dm-verity: DM_VERITY_ERR_BLOCK_NR), which arrives within a
// millisecond and says which block. Where netlink can't be used, a look at each second
// finds it too.
func (h *Host) Watch(ctx context.Context, report func(ref Ref, detail string)) error {
	reported := make(map[string]uint64) // device names, and which incarnation
	look := func(hint string, block string) {
		for _, d := range h.ours() {
			if hint != "" && d.number() != hint {
				continue
			}
			seq := d.incarnation()
			if was, done := reported[d.Name]; done && was == seq {
				continue
			}
			if bad, err := corrupted(d.Name); err == nil && bad {
				reported[d.Name] = seq
				detail := "a block doesn't match its hash: the data or its hashes were changed, or the disk fails"
				if block != "" {
					detail = block + " doesn't match its hash: it was changed, or the disk fails"
				}
				report(h.refOf(d), detail)
			}
		}
	}
	sock, err := h.uevents(ctx)
	every := lookEvery
	if err != nil {
		every = unheard
	} else {
		defer sock.Close()
	}
	look("", "")
	events := make(chan map[string]string)
	readers := make(chan struct{})
	go func() {
		defer close(readers)
		if sock == nil {
			return
		}
		buf := make([]byte, 64<<10)
		for {
			n, err := sock.Read(buf)
			if errors.Is(err, unix.ENOBUFS) { // some were lost: look at all
				n, err = 0, nil
			}
			if err != nil {
				return // closed
			}
			event := parseUevent(buf[:n])
			if n > 0 && event["DM_VERITY_ERR_BLOCK_NR"] == "" {
				continue
			}
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		if sock != nil {
			sock.Close()
		}
		<-readers
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			look("", "")
		case e := <-events:
			hint := ""
			if e["MAJOR"] != "" {
				hint = e["MAJOR"] + ":" + e["MINOR"]
			}
			look(hint, badBlock(e["DM_VERITY_ERR_BLOCK_NR"]))
		}
	}
}

// badBlock puts dm-verity's words into ours: "0,17" is block 17 of the data, "1,3" of
// the hashes.
func badBlock(s string) string {
	kind, block, ok := strings.Cut(s, ",")
	switch {
	case !ok:
		return ""
	case kind == "0":
		return "block " + block + " of its data"
	}
	return "block " + block + " of its hashes"
}

// uevents opens the kernel's broadcast as the options say.
func (h *Host) uevents(ctx context.Context) (*os.File, error) {
	h.mu.Lock()
	open := h.options.Uevents
	h.mu.Unlock()
	if open == nil {
		return ListenUevents()
	}
	return open(ctx)
}

// ListenUevents opens the kernel's own broadcast (group 1; udev's is 2). It needs AF_NETLINK
// and no privilege. The file is non-blocking.
func ListenUevents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// A burst of other devices' events shall not push ours out; 1 MiB as udev's is more.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	return os.NewFile(uintptr(fd), "uevents"), nil
}

// parseUevent splits ACTION@PATH\0KEY=VALUE\0…
func parseUevent(b []byte) map[string]string {
	event := make(map[string]string)
	for _, word := range bytes.Split(b, []byte{0}) {
		if key, value, ok := strings.Cut(string(word), "="); ok {
			event[key] = value
		}
	}
	return event
}

// Corrupted reports whether a verity volume has found a block that doesn't match its
// hash since it was activated. It is false for all other volumes.
func (h *Host) Corrupted(_ context.Context, ref Ref) (bool, error) {
	if ref.Kind != DM {
		return false, nil
	}
	v, err := h.dmVolume(ref)
	if err != nil {
		return false, err
	}
	if d, ok, err := v.look(); err != nil || !ok || !d.Live {
		return false, err
	}
	bad, err := corrupted(v.device())
	if err != nil {
		return false, v.failed(err)
	}
	return bad, nil
}

// corrupted reads a device's status: dm-verity's begins with V as long as every read
// was right, and with C from the first that wasn't.
func corrupted(name string) (bool, error) {
	_, targets, _, err := dmInfo(name)
	for _, t := range targets {
		if t.Type == "verity" && strings.HasPrefix(t.Params, "C") {
			return true, err
		}
	}
	return false, err
}

func (d dmDevice) number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// incarnation tells a device from a later one of the same number and name (Linux 5.15).
func (d dmDevice) incarnation() uint64 {
	var n uint64
	if b, err := os.ReadFile("/sys/dev/block/" + d.number() + "/diskseq"); err == nil {
		_, _ = fmt.Sscan(string(b), &n) // 0 for an older kernel
	}
	return n
}
