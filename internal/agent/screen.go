package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"os"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

// Screenshot is a picture (PNG) of a machine's screen, whoever runs the machine.
func (a *Agent) Screenshot(ctx context.Context, name string) ([]byte, error) {
	if a.machines.isStopped(name) {
		return nil, &Error{Code: VMNotRunning, VM: name, Detail: "VM " + name + " doesn't run", Next: "`trayctl vm start " + name + "`"}
	}
	v, err := a.lookUpVM(name)
	if err != nil {
		return nil, err
	}
	s, release, err := v.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	img, err := s.screen(ctx)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	// The screen's text compresses well at any level; speed is what somebody waits for.
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// screen has QEMU draw the screen into a file in memory, by a descriptor: QEMU needs no
// place to write to.
func (s *session) screen(ctx context.Context) (*image.NRGBA, error) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	fd, err := unix.MemfdCreate("screen", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "screen")
	defer f.Close()
	// QEMU takes a descriptor of an fdset only in the very mode that it wants to open in.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	lent, err := blockdev.Lend(ctx, s.conn, w, s.vm.a.mark+randomName(10))
	if err != nil {
		return nil, s.noScreen(err)
	}
	err = s.conn.Execute(ctx, "screendump", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", lent.FDSet)}, nil)
	if e := blockdev.TakeBack(context.WithoutCancel(ctx), s.conn, lent.FDSet); err == nil && e != nil && s.conn.Err() != nil {
		err = e
	}
	if err != nil {
		return nil, s.noScreen(err)
	}
	return machine.ParsePPM(f)
}

func (s *session) noScreen(err error) error {
	e := &Error{Code: NoScreen, VM: s.vm.name, Err: err, Detail: fmt.Sprintf("VM %s has no screen to be seen: %v", s.vm.name, err), Next: "has it a display? `trayctl vm console --serial` may show more"}
	if errors.Is(err, qmp.ErrUnanswered) {
		e.Code, e.Detail, e.Next = Unreachable, "QEMU of VM "+s.vm.name+" doesn't answer", "is it stopped, or its storage stalled?"
	}
	return e
}

// screenState says whether a guest has drawn anything.
func (s *session) screenState(ctx context.Context) string {
	img, err := s.screen(ctx)
	switch {
	case err != nil:
		return wire.ScreenNone
	case machine.Blank(img):
		return wire.ScreenBlank
	}
	return wire.ScreenDrawn
}
