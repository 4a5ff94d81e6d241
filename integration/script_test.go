//go:build integration

package integration_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestScripts runs the sessions in testdata: what an operator types and sees. Beside
// testscript's own commands they know
//
//	vm NAME KIND [DISC]     start a machine with a drive of that kind; "running" is an
//	                        IDE drive in a machine that isn't paused
//	disc NAME               make discs/NAME.iso
//	large NAME MIB          make discs/NAME.iso, with that much more behind its volume
//	serve DIR               a web server on loopback with the files of DIR; $WWW is its URL
//	trayd start|stop|kill   the agent
//	trayctl CODE ARGS...    run trayctl; it must exit with CODE
//	guest NAME WORD...      play the guest: lock, unlock, eject, load, reads VOLUME
//	qemu NAME freeze|thaw|kill
//	soon CODE TEXT ARGS...  trayctl until it exits with CODE and says TEXT, for at most 10 s
//	begin ARGS...           start trayctl, and don't wait for it
//	signal INT|TERM         send a signal to what begin started
//	ended CODE              wait for what begin started; it must exit with CODE
//	logged TEXT             TEXT is in trayd's log, once it is stopped
//	secret TEXT             TEXT is neither in the state file nor in trayd's log
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s := &session{t: t, vms: map[string]*qemutest.VM{}, guests: map[string]*qemutest.Guest{}}
			env.Values[sessionKey{}] = s
			s.open(env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"vm": cmdVM, "disc": cmdDisc, "large": cmdLarge, "serve": cmdServe, "logged": cmdLogged, "secret": cmdSecret, "trayd": cmdTrayd, "trayctl": cmdTrayctl, "soon": cmdSoon,
			"guest": cmdGuest, "qemu": cmdQEMU, "begin": cmdBegin, "signal": cmdSignal, "ended": cmdEnded,
		},
		RequireExplicitExec: true,
	})
}

type sessionKey struct{}

// session is one script's host.
type session struct {
	t      *testing.T
	r      *rig
	vms    map[string]*qemutest.VM
	guests map[string]*qemutest.Guest
	begun  *background // nil when nothing was begun
}

// background is a trayctl that nobody waits for yet.
type background struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	done           chan struct{} // closed when it has ended
}

// open makes the script's host, and a name of constant length for it in the output.
func (s *session) open(env *testscript.Env) {
	dir, err := os.MkdirTemp("", "trayd-")
	require.NoError(s.t, err)
	require.NoError(s.t, os.Chmod(dir, 0o755)) // machines' sockets are another user's
	s.r = &rig{t: s.t, dir: dir, limit: commandLimit}
	for _, sub := range []string{"run", "discs"} {
		require.NoError(s.t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	env.Setenv("DISCS", s.r.discs())
	env.Setenv("HOST", dir)
	env.Setenv("STATE", s.r.stateFile())
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	env.Setenv("TRAYD_SOCKET", s.r.socket())
	env.Defer(func() {
		if s.begun != nil {
			_ = s.begun.cmd.Process.Kill() // it may have ended
			<-s.begun.done
		}
		s.r.kill()
		s.r.killMachines()
		for _, vm := range s.vms {
			vm.Kill()
		}
		_ = os.RemoveAll(dir) // a leftover in /tmp is no failure of the script
	})
}

func of(ts *testscript.TestScript) *session { return ts.Value(sessionKey{}).(*session) }

func check(ts *testscript.TestScript, ok bool, format string, args ...any) {
	if !ok {
		ts.Fatalf(format, args...)
	}
}

func cmdVM(ts *testscript.TestScript, _ bool, args []string) {
	check(ts, len(args) >= 2, "usage: vm NAME KIND [DISC]")
	s := of(ts)
	disc := ""
	if len(args) > 2 {
		disc = args[2]
	}
	if args[1] == "two-drives" {
		s.vms[args[0]] = s.r.vm(args[0], "-M", "q35", "-device", "ide-cd,id=cd0,bus=ide.0", "-device", "ide-cd,id=cd1,bus=ide.1")
		return
	}
	if args[1] == "running" {
		s.vms[args[0]], _ = s.r.running(args[0], qemutest.IDE.With("")...)
		return
	}
	if args[1] == "virtio" {
		s.vms[args[0]] = s.r.vm(args[0], "-M", "q35", "-drive", "if=virtio,media=cdrom,readonly=on,format=raw,file="+disc)
		return
	}
	for _, kind := range qemutest.Drives {
		if kind.Name == args[1] {
			s.vms[args[0]] = s.r.vm(args[0], kind.With(disc)...)
			return
		}
	}
	ts.Fatalf("no kind of drive %q", args[1])
}

func cmdDisc(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		_, err := qemutest.WriteDisc(of(ts).r.discs(), name)
		ts.Check(err)
	}
}

func cmdLarge(ts *testscript.TestScript, _ bool, args []string) {
	check(ts, len(args) == 2, "usage: large NAME MIB")
	mib, err := strconv.Atoi(args[1])
	ts.Check(err)
	_, err = writeLargeDisc(of(ts).r.discs(), args[0], mib<<20)
	ts.Check(err)
}

func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	check(ts, len(args) == 1, "usage: serve DIR")
	s := openSource(ts.MkAbs(args[0]))
	ts.Defer(s.close)
	ts.Setenv("WWW", s.URL)
}

func cmdLogged(ts *testscript.TestScript, _ bool, args []string) {
	r := of(ts).r
	check(ts, len(args) == 1 && r.daemon == nil, "usage: logged TEXT, when trayd is stopped")
	check(ts, bytes.Contains(r.log.Bytes(), []byte(args[0])), "%q is not in the log: %s", args[0], &r.log)
}

// cmdSecret wants trayd to be stopped: its log is written by another process.
func cmdSecret(ts *testscript.TestScript, _ bool, args []string) {
	r := of(ts).r
	check(ts, len(args) == 1 && r.daemon == nil, "usage: secret TEXT, when trayd is stopped")
	journal, err := os.ReadFile(r.stateFile())
	ts.Check(err)
	check(ts, !bytes.Contains(journal, []byte(args[0])), "%q is in the state file", args[0])
	check(ts, !bytes.Contains(r.log.Bytes(), []byte(args[0])), "%q is in the log", args[0])
}

func cmdTrayd(ts *testscript.TestScript, _ bool, args []string) {
	check(ts, len(args) == 1 || len(args) == 2 && args[0] == "start", "usage: trayd start [FILE]|stop|kill")
	r := of(ts).r
	switch args[0] {
	case "start":
		r.extra = ts.Getenv("TRAY")
		if len(args) == 2 { // more tables of the configuration
			r.extra += "\n" + os.Expand(ts.ReadFile(args[1]), ts.Getenv)
		}
		r.start("")
		r.ready()
	case "stop":
		r.stop()
	case "kill":
		r.kill()
	}
}

// cmdTrayctl runs trayctl; stdout and stderr are then there for stdout, stderr and cmp.
func cmdTrayctl(ts *testscript.TestScript, _ bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := of(ts).r.trayctlIn(ts.MkAbs("."), args[1:]...)
	fmt.Fprint(ts.Stdout(), got.stdout)
	fmt.Fprint(ts.Stderr(), got.stderr)
	check(ts, got.code == code, "exit code %d, not %d", got.code, code)
}

func cmdSoon(ts *testscript.TestScript, not bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	want, args := args[1], args[2:] // a text that the answer must hold, or, with !, must not
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got := of(ts).r.trayctl(args...)
		if got.code == code && strings.Contains(got.stdout+got.stderr, want) != not {
			fmt.Fprint(ts.Stdout(), got.stdout)
			fmt.Fprint(ts.Stderr(), got.stderr)
			return
		}
		check(ts, time.Now().Before(end), "exit code %d, not %d with %q: %s%s", got.code, code, want, got.stdout, got.stderr)
	}
}

func cmdBegin(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	b := &background{cmd: s.r.command(args...), done: make(chan struct{})}
	b.cmd.Dir = ts.MkAbs(".")
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	ts.Check(b.cmd.Start())
	go func() {
		defer close(b.done)
		_ = b.cmd.Wait() // cmdEnded looks at its exit code
	}()
	s.begun = b
}

func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM}
	ts.Check(of(ts).begun.cmd.Process.Signal(signals[args[0]]))
	time.Sleep(200 * time.Millisecond) // a second one, sent at once, would be the same to the kernel
}

func cmdEnded(ts *testscript.TestScript, _ bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	b := of(ts).begun
	select {
	case <-b.done:
	case <-time.After(15 * time.Second):
		ts.Fatalf("trayctl does not end")
	}
	fmt.Fprint(ts.Stdout(), b.stdout.String())
	fmt.Fprint(ts.Stderr(), b.stderr.String())
	got := b.cmd.ProcessState.ExitCode()
	check(ts, got == code, "exit code %d, not %d: %s", got, code, b.stderr.String())
}

func cmdGuest(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	g := s.guests[args[0]]
	if g == nil {
		g = s.vms[args[0]].Guest(s.t)
		s.guests[args[0]] = g
	}
	switch args[1] {
	case "lock":
		g.Volume() // a change of discs is a unit attention
		g.Lock()
	case "unlock":
		g.Unlock()
	case "eject":
		check(ts, g.Eject() == "", "the guest can't eject")
	case "load":
		check(ts, g.Load() == "", "the guest can't load")
	case "reads":
		want := strings.Join(args[2:], " ")
		if want == "nothing" {
			want = qemutest.NoMedium
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got := g.Volume()
			if got == want {
				return
			}
			check(ts, time.Now().Before(end), "the guest reads %q, not %q", got, want)
		}
	default:
		ts.Fatalf("a guest can't %s", args[1])
	}
}

func cmdQEMU(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	vm := s.vms[args[0]]
	switch args[1] {
	case "freeze":
		vm.Freeze(s.t)
	case "thaw":
		vm.Thaw(s.t)
	case "kill":
		vm.Kill()
	}
}
