package volume

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"
)

// toolMark is the variable by which the tools of a Host are known: its value is the
// Host's mark.
const toolMark = "TRAYD_TOOL="

// alone waits until no tool runs any more that an earlier process of this mark has
// started. A process that is killed leaves the lvm2 behind that it was waiting for, and
// that turns on a volume after everybody has seen it inactive. Once there are none there
// can't be any again.
func (h *Host) alone(ctx context.Context, ref Ref) error {
	if h.isAlone.Load() {
		return nil
	}
	for h.strays() {
		select {
		case <-ctx.Done():
			return &Error{
				Ref: ref, Reason: Failed, Err: ctx.Err(), Detail: "an lvm2 that was started before the last restart still runs",
				Next: "see what it waits for: `ps -eo pid,stat,wchan,args | grep lv`",
			}
		case <-time.After(pollEvery):
		}
	}
	h.isAlone.Store(true)
	return nil
}

// strays reports whether there is a process that carries this Host's mark.
func (h *Host) strays() bool {
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // those that can be seen
	for _, name := range names {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		env, err := os.ReadFile("/proc/" + name + "/environ")
		if err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+toolMark+h.mark+"\x00")) {
			return true
		}
	}
	return false
}
