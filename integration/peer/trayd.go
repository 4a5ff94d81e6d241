package peer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Trayd is a trayd as it is shipped, on the machines whose monitors lie in Dir/run.
type Trayd struct {
	Bin   string // the directory of trayd and trayctl
	Dir   string // state, sockets and log; a short path
	Roots string // the directory that discs lie beneath
	// Tray and Extra are more of the configuration: lines of [tray], and whole sections.
	Tray, Extra string
	// Ready is how long the last start took, to READY=1.
	Ready time.Duration
	// Client keeps its connections to the API.
	Client *http.Client

	fleet
	cmd *exec.Cmd
}

// NewTrayd is a contender; it is started with Start or Boot.
func NewTrayd(bin, dir, roots string) *Trayd {
	return &Trayd{Bin: bin, Dir: dir, Roots: roots, fleet: newFleet(dir)}
}

// Name implements Contender.
func (*Trayd) Name() string { return "trayd" }

// Socket is the API's.
func (t *Trayd) Socket() string { return filepath.Join(t.Dir, "api.sock") }

// startLimit is how long a daemon may take to be ready.
const startLimit = 30 * time.Second

// Start starts trayd and waits for READY=1, as systemd does.
func (t *Trayd) Start(context.Context) error {
	config := filepath.Join(t.Dir, "trayd.toml")
	text := fmt.Sprintf("state_dir = %q\nmonitors = [%q]\nmedia_roots = [%q]\n[api]\nsocket = %q\n[tray]\n%s\n%s",
		filepath.Join(t.Dir, "state"), filepath.Join(t.Dir, "run/*.qmp"), t.Roots, t.Socket(), t.Tray, t.Extra)
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	notify := filepath.Join(t.Dir, "notify")
	_ = os.Remove(notify) // of an earlier start
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer l.Close()
	log, err := os.Create(t.log())
	if err != nil {
		return err
	}
	defer log.Close()
	t.cmd = exec.Command(filepath.Join(t.Bin, "trayd"), "--config", config)
	t.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	t.cmd.Stdout, t.cmd.Stderr = log, log
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := t.cmd.Start(); err != nil {
		return err
	}
	if err := t.awaitReady(l); err != nil {
		return err
	}
	t.Ready = time.Since(began)
	t.Client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 200, // as many clients as a measurement has, and some
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", t.Socket())
		},
	}}
	return nil
}

func (t *Trayd) log() string { return filepath.Join(t.Dir, "trayd.log") }

func (t *Trayd) awaitReady(l *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		if err := l.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
			return err
		}
		n, err := l.Read(buf)
		if err != nil {
			text, _ := os.ReadFile(t.log()) // the first error says enough
			return fmt.Errorf("trayd is not ready: %w: %s", err, text)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return nil
		}
	}
}

// PID implements Contender.
func (t *Trayd) PID() int {
	if t.cmd == nil {
		return 0
	}
	return t.cmd.Process.Pid
}

// Stop stops trayd as systemd does.
func (t *Trayd) Stop() { t.end(syscall.SIGTERM) }

// Kill implements Contender.
func (t *Trayd) Kill() { t.end(syscall.SIGKILL) }

func (t *Trayd) end(how syscall.Signal) {
	if t.cmd == nil || t.cmd.ProcessState != nil {
		return
	}
	_ = t.cmd.Process.Signal(how) // it may have ended
	_ = t.cmd.Wait()
	if t.Client != nil {
		t.Client.CloseIdleConnections()
	}
}

// Boot implements Contender. The first one starts trayd.
func (t *Trayd) Boot(ctx context.Context, names ...string) error {
	if err := t.boot(ctx, names...); err != nil {
		return err
	}
	if t.cmd == nil {
		if err := t.Start(ctx); err != nil {
			return err
		}
	}
	return until(ctx, "trayd to serve its machines", func() (bool, error) {
		says, err := t.Says(ctx)
		for _, name := range names {
			if s, ok := says[name]; !ok || !s.Running {
				return false, err
			}
		}
		return err == nil, err
	})
}

// Request asks over the warm connection of the API.
func (t *Trayd) Request(ctx context.Context, verb, vm string, r wire.ChangeRequest) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return t.do(ctx, "POST", "/v1/vms/"+vm+"/drives/"+driveID+"/"+verb, body, nil)
}

// Persistent implements Contender.
func (t *Trayd) Persistent() Ask {
	return func(ctx context.Context, verb, vm, disc string) error {
		return t.Request(ctx, verb, vm, wire.ChangeRequest{Medium: disc})
	}
}

// Command implements Contender.
func (t *Trayd) Command() Ask {
	return func(ctx context.Context, verb, vm, disc string) error {
		args := []string{"--socket", t.Socket(), verb, vm}
		if disc != "" {
			args = append(args, disc)
		}
		_, err := run(ctx, nil, filepath.Join(t.Bin, "trayctl"), args...)
		return err
	}
}

// do asks the API and reads the answer into result, unless that is nil.
func (t *Trayd) do(ctx context.Context, method, path string, body []byte, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://trayd"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer, result)
}

// Says implements Contender, by `GET /v1/vms`.
func (t *Trayd) Says(ctx context.Context) (map[string]Status, error) {
	var vms []wire.VMStatus
	if err := t.do(ctx, "GET", "/v1/vms", nil, &vms); err != nil {
		return nil, err
	}
	says := make(map[string]Status)
	for _, vm := range vms {
		s := Status{Running: vm.Answered}
		for _, d := range vm.Drives {
			s.Open = d.Tray == "open"
			s.Busy = d.Operation != nil || d.State != wire.StateEmpty && d.State != wire.StateLoaded || len(d.Releasing) > 0
			if d.Medium != nil {
				s.Disc = cmp.Or(d.Medium.Path, d.Medium.Name)
				if strings.HasPrefix(d.Medium.Name, logical) {
					s.Disc = d.Medium.Name // its path is that of a device
				}
			}
		}
		says[vm.Name] = s
	}
	return says, nil
}

// logical begins the name of a disc on a logical volume.
const logical = "lvm:"

// Left implements Contender: volumes that trayd knows and no disc is in from, and what
// trayd's own check finds where records, QEMU and the kernel don't agree.
func (t *Trayd) Left(ctx context.Context) (left []string, err error) {
	var volumes []wire.VolumeStatus
	if err := t.do(ctx, "GET", "/v1/volumes", nil, &volumes); err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if !slices.ContainsFunc(v.Users, func(u wire.VolumeUser) bool { return u.State != wire.StateReleasing }) {
			left = append(left, "volume "+v.Volume)
		}
	}
	var findings []wire.Finding
	if err := t.do(ctx, "GET", "/v1/state/check", nil, &findings); err != nil {
		return nil, err
	}
	for _, f := range findings {
		left = append(left, f.Problem)
	}
	return left, nil
}

// Close implements Contender.
func (t *Trayd) Close() {
	t.Stop()
	t.close()
	_ = os.RemoveAll(filepath.Join(t.Dir, "state"))
}

// until asks again and again whether it is so.
func until(ctx context.Context, what string, so func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		ok, err := so()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
